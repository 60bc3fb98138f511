#include "ext4/inode_tables.h"

#include "unit/volume_fixture.h"

namespace atomic4::test {
namespace {

// Every block of the volume, by what libext2fs says of every inode.
void expect_right(const std::vector<std::string>& mke2fs) {
    MemoryDevice device(make_ext4(48 << 20, mke2fs));
    const auto volume = open_volume(device, OpenFor::Read);
    ext2_filsys fs = volume->fs();
    const auto in_block = static_cast<uint32_t>(EXT2_INODES_PER_BLOCK(fs->super));
    std::map<uint64_t, ext2_ino_t> first;
    for (dgrp_t group = 0; group < fs->group_desc_count; ++group) {
        for (uint32_t i = 0; i < fs->super->s_inodes_per_group; i += in_block)
            first[ext2fs_inode_table_loc(fs, group) + i / in_block] =
                group * fs->super->s_inodes_per_group + i + 1;
    }
    const InodeTables tables(fs);
    size_t found = 0;
    for (uint64_t block = 0; block < ext2fs_blocks_count(fs->super); ++block) {
        const auto inode = tables.first_inode_in(block);
        const auto want = first.find(block);
        if (inode) ++found;
        // (The last block of a table may be used in part only, or not at all.)
        if (want == first.end()) continue;
        ASSERT_EQ(inode, std::optional(want->second)) << block;
    }
    EXPECT_GE(found, first.size());
    EXPECT_LE(found, first.size() + fs->group_desc_count);
}

TEST(InodeTables, InTheirGroups) {
    expect_right({"-b", "1024", "-O", "^flex_bg"});
}

TEST(InodeTables, InTheirFlexGroups) {
    expect_right({"-b", "1024", "-G", "4"});
    expect_right({"-b", "4096", "-I", "128"});
}

TEST(InodeTables, AllAtTheBeginning) {
    expect_right({"-b", "1024", "-g", "1024", "-G", "4", "-E", "packed_meta_blocks=1"});
}

}  // namespace
}  // namespace atomic4::test
