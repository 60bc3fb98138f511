// Adopting files of a volume in memory, with all promises of writer/adopt.h held against the
// result.
#pragma once

#include <map>

#include "ext4/format.h"
#include "ext4/inode_time.h"
#include "unit/layout_fixture.h"
#include "writer/adopt.h"

namespace atomic4::test {

inline constexpr uint64_t kUnit = 16384;

class AdoptTest : public LayoutTest {
  protected:
    using Blockwise = std::map<uint64_t, std::pair<uint64_t, MapState>>;  // lblk → pblk, state

    Blockwise blockwise(ext2_ino_t number) {
        Blockwise found;
        const FileState file = state(number);
        for (const Mapping& m :
             must(map_range(*volume, number, file.inode, Lblk(0), Blocks(1 << 16)))) {
            for (uint64_t i = 0; m.state != MapState::Hole && i < m.length.value(); ++i)
                found[m.lblk.value() + i] = {m.pblk.value() + i, m.state};
        }
        return found;
    }

    // What must stay: all that isn't the layout.
    struct Looks {
        Image content;
        std::string attributes;
    };
    Looks looks(ext2_ino_t number, const std::string& path) {
        FullInode full(volume->fs());
        EXPECT_EQ(ext2fs_read_inode_full(volume->fs(), number, full.core(), full.size()), 0);
        const ext2_inode_large& inode = *full.large();
        const bool large = full.size() > EXT2_GOOD_OLD_INODE_SIZE;
        return {dump_file(image(), path),
                fmt::format("{:o} {}:{} links {} size {} atime {}.{} mtime {}.{} crtime {}",
                            inode.i_mode, inode_uid(*full.core()), inode_gid(*full.core()),
                            inode.i_links_count, EXT2_I_SIZE(&inode), inode.i_atime,
                            large ? inode.i_atime_extra : 0, inode.i_mtime,
                            large ? inode.i_mtime_extra : 0, large ? inode.i_crtime : 0)};
    }

    // Holds every promise of the header against the file as it was.
    void expect_adopted(ext2_ino_t number, const std::string& path, uint64_t unit,
                        const Looks& before, const Blockwise& old, const AdoptReport& report) {
        const FileState file = state(number);
        EXPECT_TRUE(file.atomic);
        EXPECT_TRUE(file.extent_mapped());
        EXPECT_EQ(file.unit, Bytes(unit));
        EXPECT_NE(file.generation, 0u);
        const Looks now = looks(number, path);
        EXPECT_EQ(now.attributes, before.attributes);
        EXPECT_TRUE(now.content == before.content) << "the contents have changed";
        EXPECT_TRUE(content(number) == before.content) << "we read something else than debugfs";

        const uint64_t unit_blocks = unit / block;
        const uint64_t eof = (file.size.value() + block - 1) / block;
        const Blockwise after = blockwise(number);
        std::map<uint64_t, uint64_t> old_units;  // how many blocks each had
        for (const auto& [lblk, where] : old) ++old_units[lblk / unit_blocks];
        uint64_t moved = 0;
        for (const auto& [index, count] : old_units) {
            const uint64_t first = index * unit_blocks;
            ASSERT_TRUE(after.contains(first)) << "unit " << index << " is not mapped";
            const uint64_t start = after.at(first).first;
            EXPECT_EQ(start % unit_blocks, 0u) << "unit " << index;
            bool was_fine = count == unit_blocks && old.at(first).first % unit_blocks == 0;
            for (uint64_t i = 0; i < unit_blocks; ++i) {
                ASSERT_TRUE(after.contains(first + i)) << "block " << first + i;
                EXPECT_EQ(after.at(first + i).first, start + i);
                EXPECT_EQ(after.at(first + i).second,
                          first + i < eof ? MapState::Written : MapState::Unwritten);
                was_fine = was_fine && old.at(first + i).first == old.at(first).first + i;
            }
            if (was_fine)
                EXPECT_EQ(start, old.at(first).first) << "unit " << index << " moved for nothing";
            else
                ++moved;
        }
        EXPECT_EQ(after.size(), old_units.size() * unit_blocks) << "more is mapped than before";
        EXPECT_EQ(report.units_mapped, old_units.size());
        EXPECT_EQ(report.units_moved, moved);
        EXPECT_EQ(report.unit, Bytes(unit));
        const LayoutReport layout = must(check_layout(*volume, file, Bytes(unit)));
        EXPECT_EQ(layout.problems, 0u);
        EXPECT_EQ(layout.units_mapped, report.units_mapped);
        EXPECT_EQ(layout.units_hole, report.units_hole);
        EXPECT_EQ(fsck_complaints(image()), "");
    }

    uint64_t xattr_block(ext2_ino_t number) {
        const FileState file = state(number);
        return ext2fs_file_acl_block(volume->fs(), &file.inode);
    }

    void adopt_and_judge(ext2_ino_t number, const std::string& path, uint64_t unit) {
        const Looks before = looks(number, path);
        const Blockwise old = blockwise(number);
        const auto report = adopt_file(*volume, number, Bytes(unit));
        ASSERT_TRUE(report) << report.error().message;
        EXPECT_TRUE(report->changed);
        expect_adopted(number, path, unit, before, old, *report);
        // Once more: nothing to do, nothing written.
        const Image as_it_is = image();
        const auto again = must(adopt_file(*volume, number, Bytes(unit)));
        EXPECT_FALSE(again.changed);
        EXPECT_EQ(again.units_moved, 0u);
        EXPECT_EQ(again.units_mapped, report->units_mapped);
        EXPECT_TRUE(image() == as_it_is);
    }

    void expect_refused(ext2_ino_t number, std::optional<Bytes> unit, int code,
                        const std::string& words) {
        const Image before = image();
        const auto done = adopt_file(*volume, number, unit);
        ASSERT_FALSE(done);
        EXPECT_EQ(done.error().code, code) << done.error().message;
        EXPECT_THAT(done.error().message, testing::HasSubstr(words));
        EXPECT_TRUE(image() == before) << "a refusal has changed something";
        EXPECT_TRUE(volume->usable());
    }

    // Something in an inode that no interface of ours sets.
    void edit_inode(ext2_ino_t number, const std::function<void(ext2_inode&)>& edit) {
        Transaction transaction(*volume);
        ext2_inode inode = state(number).inode;
        edit(inode);
        must(check_errcode_ok(ext2fs_write_inode(volume->fs(), number, &inode)));
        must(transaction.commit());
    }
};

}  // namespace atomic4::test
