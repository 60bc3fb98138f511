// Files of given extents, for the tests that judge and change layouts. Free blocks hold garbage
// before anything begins, so that whatever is not zeroed shows.
#pragma once

#include "ext4/layout.h"
#include "redo/place.h"
#include "unit/volume_fixture.h"

namespace atomic4::test {

// A piece of a crafted file: where it is, counted from the start of an aligned area of the volume.
struct Piece {
    uint64_t lblk;
    uint64_t length;
    uint64_t at;
    MapState state = MapState::Written;
};

class LayoutTest : public testing::Test {
  protected:
    static constexpr int kAreaOrder = 8;

    void open(Image contents) {
        volume.reset();
        memory = std::make_unique<MemoryDevice>(std::move(contents));
        recorder = std::make_unique<RecordingDevice>(*memory);
        volume = open_volume(*recorder, OpenFor::Write, true);
        block = volume->block_size().value();
    }
    void open_default(const char* block_size = "1024") {
        open(make_dirty_atomic4(8 << 20, {"-b", block_size}));
    }
    void TearDown() override { volume.reset(); }

    const Image& image() const { return memory->contents(); }
    FileState state(ext2_ino_t number) { return must(read_file(*volume, number)); }
    uint64_t free_blocks() const { return ext2fs_free_blocks_count(volume->fs()->super); }

    // A file with exactly these extents; atomic if it has a unit.
    ext2_ino_t craft(const std::string& path, uint64_t size, uint64_t unit,
                     const std::vector<Piece>& pieces) {
        const ext2_ino_t number =
            unit != 0 ? must(create_atomic_file(*volume, path, {Bytes(0), Bytes(unit)}))
                      : create_plain_file(*volume, path);
        Transaction transaction(*volume);
        const PblkRun area = must(volume->allocator().allocate(kAreaOrder, Pblk(0)));
        ext2_inode inode = state(number).inode;
        std::vector<bool> used(area.length.value());
        uint64_t blocks = 0;
        for (const Piece& piece : pieces) {
            const PblkRun run{area.start + Blocks(piece.at), Blocks(piece.length)};
            must(set_mapping(*volume, number, &inode, Lblk(piece.lblk), run, piece.state));
            for (uint64_t i = 0; i < piece.length; ++i) used[piece.at + i] = true;
            blocks += piece.length;
            // Written blocks hold something of their own.
            for (uint64_t i = 0; i < piece.length; ++i) {
                if (piece.state == MapState::Written)
                    must(volume->device().write(
                        ByteOffset((run.start.value() + i) * block),
                        filled(block, static_cast<unsigned>(1 + (piece.lblk + i) % 100))));
            }
        }
        for (uint64_t i = 0; i < used.size(); ++i) {
            if (!used[i]) must(volume->allocator().free({area.start + Blocks(i), Blocks(1)}));
        }
        must(check_errcode_ok(ext2fs_iblk_add_blocks(volume->fs(), &inode, blocks)));
        must(check_errcode_ok(
            ext2fs_inode_size_set(volume->fs(), &inode, static_cast<ext2_off64_t>(size))));
        must(check_errcode_ok(ext2fs_write_inode(volume->fs(), number, &inode)));
        must(transaction.commit());
        return number;
    }
    static Result<> check_errcode_ok(errcode_t code) {
        if (code != 0) return fail(EIO, "libext2fs: {}", code);
        return {};
    }

    std::vector<std::pair<uint64_t, UnitFault>> faults(ext2_ino_t number, uint64_t unit) {
        const LayoutReport report = must(check_layout(*volume, state(number), Bytes(unit)));
        EXPECT_EQ(report.problems, report.first_problems.size());
        std::vector<std::pair<uint64_t, UnitFault>> found;
        for (const UnitProblem& problem : report.first_problems)
            found.emplace_back(problem.lblk.value(), problem.fault);
        return found;
    }

    // The file's bytes up to EOF, as its extents say.
    Image content(ext2_ino_t number) {
        const FileState file = state(number);
        const uint64_t blocks = (file.size.value() + block - 1) / block;
        Image bytes(blocks * block);
        for (const Mapping& mapping :
             must(map_range(*volume, number, file.inode, Lblk(0), Blocks(blocks)))) {
            if (mapping.state != MapState::Written) continue;
            must(volume->device().read(ByteOffset(mapping.pblk.value() * block),
                                       std::span(bytes).subspan(mapping.lblk.value() * block,
                                                                mapping.length.value() * block)));
        }
        // The kernel counts on zeros between EOF and the end of its block.
        const auto tail = bytes.begin() + static_cast<std::ptrdiff_t>(file.size.value());
        EXPECT_TRUE(std::all_of(tail, bytes.end(), [](std::byte b) { return b == std::byte{0}; }))
            << "stale bytes beyond EOF";
        bytes.resize(file.size.value());
        return bytes;
    }

    // One write, in the steps that writers and replay take.
    Result<> put(ext2_ino_t number, uint64_t offset, std::span<const std::byte> data,
                 uint64_t align) {
        const Bytes length(data.size());
        A4_CHECK(make_ready(*volume, state(number), ByteOffset(offset), length, Bytes(align)));
        const FileState file = state(number);
        const Bytes new_size = std::max(file.size, Bytes(offset + data.size()));
        A4_CHECK(zero_gap(*volume, file, ByteOffset(offset), length, new_size));
        A4_CHECK(place(*volume, file, ByteOffset(offset), data));
        A4_CHECK(volume->device().flush());
        if (new_size > file.size)
            A4_CHECK(finish_growth(*volume, file, ByteOffset(offset), length, new_size));
        return {};
    }

    std::unique_ptr<MemoryDevice> memory;
    std::unique_ptr<RecordingDevice> recorder;
    std::unique_ptr<Volume> volume;
    uint64_t block = 0;
};

}  // namespace atomic4::test
