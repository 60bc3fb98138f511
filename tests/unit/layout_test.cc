// The layout of units: judging it, making ranges ready, growing files. Free blocks hold garbage
// before anything begins, so that whatever is not zeroed shows; e2fsck looks at every result.
#include "ext4/layout.h"

#include <random>

#include "redo/place.h"
#include "unit/volume_fixture.h"

namespace atomic4::test {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// A piece of a crafted file: where it is, counted from the start of an aligned area of the volume.
struct Piece {
    uint64_t lblk;
    uint64_t length;
    uint64_t at;
    MapState state = MapState::Written;
};

class Layout : public testing::Test {
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

// --- check_layout --------------------------------------------------------------------------------

TEST_F(Layout, SoundFiles) {
    open_default();
    const auto made = must(create_atomic_file(*volume, "/made", {Bytes(100'000), Bytes(16384)}));
    const LayoutReport report = must(check_layout(*volume, state(made), Bytes(16384)));
    EXPECT_EQ(report.problems, 0u);
    EXPECT_EQ(report.units_mapped, 7u);
    EXPECT_EQ(report.units_hole, 0u);
    // Smaller units hold as well; larger ones need not.
    EXPECT_EQ(must(check_layout(*volume, state(made), Bytes(4096))).problems, 0u);

    const auto empty = must(create_atomic_file(*volume, "/empty", {Bytes(0), Bytes(16384)}));
    EXPECT_EQ(must(check_layout(*volume, state(empty), Bytes(16384))).units_hole, 0u);

    // Units of 4 blocks: mapped, hole, mapped, and a hole up to EOF.
    const auto sparse = craft("/sparse", 16 * 1024, 4096, {{0, 4, 8}, {8, 4, 64}});
    const LayoutReport holes = must(check_layout(*volume, state(sparse), Bytes(4096)));
    EXPECT_EQ(holes.problems, 0u);
    EXPECT_EQ(holes.units_mapped, 2u);
    EXPECT_EQ(holes.units_hole, 2u);
    EXPECT_EQ(fsck_complaints(image()), "");
}

TEST_F(Layout, EachFault) {
    open_default();
    using F = UnitFault;
    struct Row {
        const char* what;
        uint64_t size;  // blocks
        std::vector<Piece> pieces;
        std::vector<std::pair<uint64_t, UnitFault>> want;
    };
    constexpr auto W = MapState::Written;
    constexpr auto U = MapState::Unwritten;
    const std::vector<Row> rows{
        {"one run, one block late", 4, {{0, 4, 1}}, {{0, F::Misaligned}}},
        {"a long misaligned run",
         12,
         {{0, 12, 2}},
         {{0, F::Misaligned}, {4, F::Misaligned}, {8, F::Misaligned}}},
        {"sound, then misaligned", 8, {{0, 4, 4}, {4, 4, 10}}, {{4, F::Misaligned}}},
        {"two halves apart", 4, {{0, 2, 0}, {2, 2, 8}}, {{0, F::Broken}}},
        {"halves swapped", 4, {{0, 2, 2}, {2, 2, 0}}, {{0, F::Broken}}},
        {"blocks backwards", 4, {{0, 1, 3}, {1, 1, 2}, {2, 1, 1}, {3, 1, 0}}, {{0, F::Broken}}},
        {"a hole at its end", 4, {{0, 3, 0}}, {{0, F::PartMapped}}},
        {"a hole at its start", 4, {{1, 3, 1}}, {{0, F::PartMapped}}},
        {"a hole inside", 4, {{0, 1, 0}, {2, 2, 2}}, {{0, F::PartMapped}}},
        {"a hole and moved", 4, {{0, 1, 0}, {2, 2, 8}}, {{0, F::Broken}}},
        {"part-mapped beyond EOF", 4, {{0, 4, 0}, {4, 1, 4, U}}, {{4, F::PartMapped}}},
        {"unwritten", 4, {{0, 4, 0, U}}, {{0, F::UnwrittenInFile}}},
        {"unwritten inside",
         8,
         {{0, 5, 0, W}, {5, 1, 5, U}, {6, 2, 6, W}},
         {{4, F::UnwrittenInFile}}},
        {"many unwritten",
         12,
         {{0, 12, 0, U}},
         {{0, F::UnwrittenInFile}, {4, F::UnwrittenInFile}, {8, F::UnwrittenInFile}}},
        {"unwritten into the file's last unit",
         6,
         {{0, 4, 0, W}, {4, 4, 4, U}},
         {{4, F::UnwrittenInFile}}},
        {"written beyond EOF", 4, {{0, 8, 0}}, {{4, F::WrittenBeyondEof}}},
        {"a written tail", 5, {{0, 8, 0}}, {{4, F::WrittenBeyondEof}}},
        {"the EOF rule kept", 5, {{0, 5, 0, W}, {5, 3, 5, U}}, {}},
        {"whole units unwritten beyond EOF", 4, {{0, 4, 0, W}, {4, 8, 4, U}}, {}},
        {"misaligned in any case",
         5,
         {{0, 4, 0}, {4, 1, 33, W}, {5, 3, 34, U}},
         {{4, F::Misaligned}}},
    };
    int n = 0;
    for (const Row& row : rows) {
        SCOPED_TRACE(row.what);
        const auto number = craft(fmt::format("/f{}", n++), row.size * 1024, 4096, row.pieces);
        EXPECT_EQ(faults(number, 4096), row.want);
    }
    for (const F fault :
         {F::Misaligned, F::Broken, F::PartMapped, F::UnwrittenInFile, F::WrittenBeyondEof})
        EXPECT_STRNE(to_text(fault), "?");
}

TEST_F(Layout, ReportIsBounded) {
    open_default();
    const auto number = craft("/f", 255 * 1024, 1024, {});
    Transaction transaction(*volume);
    ext2_inode inode = state(number).inode;
    // 200 units of two blocks, each with only one of them.
    for (uint64_t i = 0; i < 200; ++i) {
        const PblkRun run = must(volume->allocator().allocate(0, Pblk(0)));
        must(set_mapping(*volume, number, &inode, Lblk(2 * i), run, MapState::Written));
    }
    FileState file = state(number);
    file.inode = inode;
    file.size = Bytes(400 * 1024);
    const LayoutReport report = must(check_layout(*volume, file, Bytes(2048)));
    EXPECT_EQ(report.problems, 200u);
    EXPECT_EQ(report.first_problems.size(), LayoutReport::kMaxProblems);
}

// ext4/063: many extents, in several leaves, but physically one run.
TEST_F(Layout, SplitExtentsAreFineIfContiguous) {
    open_default();
    const auto number = must(create_atomic_file(*volume, "/f", {Bytes(0), Bytes(16384)}));
    {
        Transaction transaction(*volume);
        ext2_inode inode = state(number).inode;
        const PblkRun area = must(volume->allocator().allocate(9, Pblk(0)));
        std::vector<PblkRun> singles;
        for (uint64_t i = 0; i < 512; ++i) singles.push_back({area.start + Blocks(i), Blocks(1)});
        must(map_empty_file(*volume, number, &inode, singles, Blocks(512)));
        ext2fs_iblk_add_blocks(volume->fs(), &inode, 512);
        ext2fs_inode_size_set(volume->fs(), &inode, 512 * 1024);
        ext2fs_write_inode(volume->fs(), number, &inode);
        must(transaction.commit());
    }
    // 84 extents of 12 bytes a leaf: leaves end inside units.
    EXPECT_GE(must(tree_blocks(*volume, number, state(number).inode)).size(), 6u);
    EXPECT_EQ(must(check_layout(*volume, state(number), Bytes(16384))).problems, 0u);
    EXPECT_EQ(must(check_layout(*volume, state(number), Bytes(512 * 1024))).problems, 0u);
    const RangeShape shape =
        must(range_shape(*volume, state(number), ByteOffset(65536), Bytes(65536)));
    EXPECT_TRUE(shape.one_written_run);
    EXPECT_EQ(shape.device_offset.value() % 65536, 0u);
    EXPECT_EQ(must(locate_range(*volume, state(number), ByteOffset(1), Bytes(500'000))).size(), 1u);
    EXPECT_EQ(fsck_complaints(image()), "");
}

// --- Shapes and places ---------------------------------------------------------------------------

TEST_F(Layout, RangeShape) {
    open_default();
    const auto number = craft(
        "/f", 20 * 1024, 0, {{0, 4, 4}, {4, 4, 16}, {8, 2, 32, MapState::Unwritten}, {12, 8, 40}});
    const FileState file = state(number);
    const auto shape = [&](uint64_t offset, uint64_t length) {
        return must(range_shape(*volume, file, ByteOffset(offset), Bytes(length)));
    };
    EXPECT_TRUE(shape(0, 4096).one_written_run);
    EXPECT_TRUE(shape(1024, 2048).one_written_run);
    EXPECT_EQ(shape(1024, 2048).device_offset, shape(0, 4096).device_offset + Bytes(1024));
    EXPECT_EQ(shape(100, 50).device_offset, shape(0, 4096).device_offset + Bytes(100));
    EXPECT_FALSE(shape(0, 8192).one_written_run);
    EXPECT_FALSE(shape(0, 8192).holes);
    EXPECT_TRUE(shape(8192, 1024).unwritten);
    EXPECT_FALSE(shape(8192, 1024).one_written_run);
    EXPECT_TRUE(shape(10 * 1024, 2048).holes);
    EXPECT_TRUE(shape(8192, 4096).holes);
    EXPECT_TRUE(shape(8192, 4096).unwritten);
    EXPECT_FALSE(shape(16384, 4096).beyond_eof);
    EXPECT_TRUE(shape(16384, 8192).beyond_eof);
    EXPECT_TRUE(shape(1 << 20, 4096).beyond_eof);
    EXPECT_TRUE(shape(1 << 20, 4096).holes);
}

TEST_F(Layout, LocateRange) {
    open_default();
    const auto number =
        craft("/f", 20 * 1024, 0, {{0, 4, 4}, {4, 4, 16}, {8, 2, 18 + 14, MapState::Unwritten}});
    const FileState file = state(number);
    const auto runs = must(locate_range(*volume, file, ByteOffset(3000), Bytes(6000)));
    ASSERT_EQ(runs.size(), 3u);
    EXPECT_EQ(runs[0].length, Bytes(1096));
    EXPECT_EQ(runs[1].length, Bytes(4096));
    EXPECT_EQ(runs[2].length, Bytes(808));
    EXPECT_TRUE(runs[1].written);
    EXPECT_FALSE(runs[2].written);
    EXPECT_TRUE(must(locate_range(*volume, file, ByteOffset(3000), Bytes(0))).empty());
    EXPECT_EQ(code_of(locate_range(*volume, file, ByteOffset(9000), Bytes(2000))), EIO);
}

// --- make_ready ----------------------------------------------------------------------------------

// One letter a block: M mapped and written, U unwritten, h hole. generic/770's cases, at 64 KiB for
// real; blocks stay what they were, the rest becomes zeros.
TEST_F(Layout, MakeReadyMixedRanges) {
    const std::vector<std::string> cases{
        "hhhhhhhhhhhhhhhh", "UUUUUUUUUUUUUUUU", "MMMMMMMMMMMMMMMM", "hhhhMMMMMMMMhhhh",
        "MMMMMMMMhhhhhhhh", "hhhhhhhhMMMMMMMM", "MMMMhhhhhhhhMMMM", "UUUUMMMMMMMMUUUU",
        "MMMMMMMMUUUUUUUU", "UUUUUUUUMMMMMMMM", "MMMMUUUUUUUUMMMM", "hUMhUMhUMhUMhUMh",
        "MhMhMhMhMhMhMhMh", "UhUhUhUhUhUhUhUh", "hhhhhhhhhhhhhhhM", "Mhhhhhhhhhhhhhhh",
    };
    for (const uint64_t unit : {0u, 4096u, 65536u}) {
        for (const char* block_size : {"1024", "4096"}) {
            open(make_dirty_atomic4(32 << 20, {"-b", block_size}));
            int n = 0;
            for (const std::string& pattern : cases) {
                SCOPED_TRACE(testing::Message()
                             << pattern << " unit " << unit << " " << block_size);
                // The range is [64 KiB, 128 KiB) of a file of 192 KiB; a letter is 4 KiB.
                const uint64_t each = 4096 / block;
                std::vector<Piece> pieces;
                for (size_t i = 0; i < pattern.size(); ++i) {
                    if (pattern[i] == 'h') continue;
                    // Scattered, but each letter's blocks aligned; on 1 KiB only every other one
                    // fits the area.
                    pieces.push_back({(16 + i) * each, each, (i * 7 % 16) * 2 * each,
                                      pattern[i] == 'M' ? MapState::Written : MapState::Unwritten});
                }
                const auto number = craft(fmt::format("/f{}", n++), 192 * 1024, unit, pieces);
                const Image before = content(number);
                must(make_ready(*volume, state(number), ByteOffset(65536), Bytes(65536),
                                Bytes(65536)));
                const RangeShape shape =
                    must(range_shape(*volume, state(number), ByteOffset(65536), Bytes(65536)));
                EXPECT_FALSE(shape.holes);
                EXPECT_FALSE(shape.unwritten);
                EXPECT_TRUE(content(number) == before);
                // A whole window that was a hole comes as one aligned run.
                if (pattern.find_first_not_of('h') == pattern.npos) {
                    EXPECT_TRUE(shape.one_written_run);
                    EXPECT_EQ(shape.device_offset.value() % 65536, 0u);
                }
                // Again: nothing to do, nothing written.
                recorder->events.clear();
                must(make_ready(*volume, state(number), ByteOffset(65536), Bytes(65536),
                                Bytes(65536)));
                EXPECT_TRUE(recorder->events.empty());
                const auto data = filled(65536, 0x77);
                must(put(number, 65536, data, 65536));
                Image want = before;
                std::copy(data.begin(), data.end(), want.begin() + 65536);
                EXPECT_TRUE(content(number) == want);
                if (unit == 4096) {
                    EXPECT_TRUE(faults(number, unit).empty());
                }
            }
            EXPECT_EQ(fsck_complaints(image()), "");
        }
    }
}

// The RFC's transcript: 4 KiB at 0, then 8 KiB at 8192 of the same file: the second is aligned
// to 8.
TEST_F(Layout, OjaswinsTranscript) {
    open_default("4096");
    const auto number = must(create_atomic_file(*volume, "/f", {Bytes(0), Bytes(4096)}));
    must(put(number, 0, filled(4096, 1), 4096));
    must(put(number, 8192, filled(8192, 2), 8192));
    const auto mappings = must(map_range(*volume, number, state(number).inode, Lblk(0), Blocks(4)));
    ASSERT_EQ(mappings.size(), 3u);
    EXPECT_EQ(mappings[1].state, MapState::Hole);
    EXPECT_EQ(mappings[2].length, Blocks(2));
    EXPECT_EQ(mappings[2].pblk.value() % 2, 0u);
    EXPECT_EQ(fsck_complaints(image()), "");
}

TEST_F(Layout, MakeReadyAllocatesWholeUnits) {
    open_default();
    const auto number = must(create_atomic_file(*volume, "/f", {Bytes(0), Bytes(16384)}));
    // 1 KiB at 40 KiB: its unit is [32 KiB, 48 KiB), all beyond EOF, so unwritten.
    must(make_ready(*volume, state(number), ByteOffset(40960), Bytes(1024), Bytes(1024)));
    auto mappings = must(map_range(*volume, number, state(number).inode, Lblk(0), Blocks(64)));
    ASSERT_EQ(mappings.size(), 3u);
    EXPECT_EQ(mappings[1].lblk, Lblk(32));
    EXPECT_EQ(mappings[1].length, Blocks(16));
    EXPECT_EQ(mappings[1].pblk.value() % 16, 0u);
    EXPECT_EQ(mappings[1].state, MapState::Unwritten);
    EXPECT_EQ(state(number).size, Bytes(0));
    EXPECT_EQ(fsck_complaints(image()), "");
    // Growth into its middle converts up to EOF.
    must(put(number, 40960, filled(1024, 5), 1024));
    EXPECT_EQ(state(number).size, Bytes(41984));
    mappings = must(map_range(*volume, number, state(number).inode, Lblk(32), Blocks(16)));
    ASSERT_EQ(mappings.size(), 2u);
    EXPECT_EQ(mappings[0].length, Blocks(9));
    EXPECT_EQ(mappings[0].state, MapState::Written);
    EXPECT_EQ(mappings[1].state, MapState::Unwritten);
    EXPECT_TRUE(faults(number, 16384).empty());
    Image want(41984);
    std::fill(want.begin() + 40960, want.end(), std::byte{5});
    EXPECT_TRUE(content(number) == want);
    EXPECT_TRUE(dump_file(image(), "/f") == want);
    EXPECT_EQ(fsck_complaints(image()), "");
}

TEST_F(Layout, MakeReadyLimits) {
    open_default();
    const auto number = must(create_atomic_file(*volume, "/f", {Bytes(0), Bytes(16384)}));
    const Image before = image();
    must(make_ready(*volume, state(number), ByteOffset(0), Bytes(0), Bytes(1024)));
    for (const uint64_t offset : {uint64_t{1} << 42, uint64_t{1} << 50, uint64_t{1} << 62,
                                  (uint64_t{0xffffffff} << 10) - 1024}) {
        EXPECT_EQ(code_of(make_ready(*volume, state(number), ByteOffset(offset), Bytes(1024),
                                     Bytes(1024))),
                  EFBIG)
            << offset;
    }
    EXPECT_TRUE(image() == before);
    // The last unit that there is.
    const uint64_t last = (uint64_t{0xffffffff} << 10) - 8 * 1024 * 1024;
    must(put(number, round_down(last, 16384), filled(1024, 9), 1024));
    EXPECT_EQ(must(check_layout(*volume, state(number), Bytes(16384))).problems, 0u);
    EXPECT_EQ(fsck_complaints(image()), "");
}

// --- ENOSPC --------------------------------------------------------------------------------------

TEST_F(Layout, NoSpaceChangesNothing) {
    for (const char* block_size : {"1024", "4096"}) {
        SCOPED_TRACE(block_size);
        open_default(block_size);
        const auto number = must(create_atomic_file(*volume, "/f", {Bytes(0), Bytes(16384)}));
        const auto plain = create_plain_file(*volume, "/p");
        fill_up(*volume, 3);
        const Image before = image();
        const uint64_t free = free_blocks();
        for (const uint64_t length : {uint64_t{1} << 14, uint64_t{1} << 20}) {
            const auto refused =
                make_ready(*volume, state(number), ByteOffset(0), Bytes(length), Bytes(16384));
            EXPECT_EQ(code_of(refused), ENOSPC);
            EXPECT_EQ(code_of(make_ready(*volume, state(plain), ByteOffset(0), Bytes(length),
                                         Bytes(16384))),
                      ENOSPC);
            EXPECT_EQ(free_blocks(), free);
            EXPECT_TRUE(image() == before);
        }
        // What there is can be had.
        must(make_ready(*volume, state(plain), ByteOffset(0), Bytes(3 * block), Bytes(block)));
        EXPECT_EQ(free_blocks(), 0u);
        EXPECT_EQ(fsck_complaints(image()), "");
    }
}

// There is room for the data, but not for the tree block that points at it.
TEST_F(Layout, NoSpaceForTheTreeChangesNothing) {
    open_default("1024");
    // The inode itself holds four extents.
    const auto number = craft("/f", 64 * 1024, 0, {{0, 1, 0}, {2, 1, 8}, {4, 1, 16}, {6, 1, 24}});
    fill_up(*volume, 4);
    ASSERT_EQ(free_blocks(), 4u);
    const Image before = image();
    const auto refused =
        make_ready(*volume, state(number), ByteOffset(20 * 1024), Bytes(4096), Bytes(1024));
    EXPECT_EQ(code_of(refused), ENOSPC) << message_of(refused);
    EXPECT_EQ(free_blocks(), 4u);
    EXPECT_TRUE(image() == before);
    EXPECT_EQ(code_of(volume->usable()), 0);
    // One block less for the data, and it fits.
    must(make_ready(*volume, state(number), ByteOffset(20 * 1024), Bytes(1024), Bytes(1024)));
    EXPECT_EQ(fsck_complaints(image()), "");
}

// A fragmented volume: every other 4 KiB in use. Blocks of 1 KiB in units of 4 KiB still come.
TEST_F(Layout, FragmentedVolume) {
    open_default("1024");
    const auto number = must(create_atomic_file(*volume, "/f", {Bytes(0), Bytes(4096)}));
    const auto large = must(create_atomic_file(*volume, "/large", {Bytes(0), Bytes(8192)}));
    {
        Transaction transaction(*volume);
        while (const auto run = volume->allocator().allocate(3, Pblk(0)))
            must(volume->allocator().free({run->start, Blocks(4)}));
        while (volume->allocator().allocate(3, Pblk(0))) {
        }
        must(transaction.commit());
    }
    const Image before = image();
    EXPECT_EQ(code_of(make_ready(*volume, state(large), ByteOffset(0), Bytes(1024), Bytes(1024))),
              ENOSPC);
    EXPECT_TRUE(image() == before);
    // Aligned to 64 KiB where that can be had, which is nowhere: ENOSPC says the caller's wish.
    const auto data = filled(65536, 0x31);
    const auto done = put(number, 0, data, 4096);
    ASSERT_TRUE(done) << message_of(done);
    EXPECT_TRUE(content(number) == data);
    EXPECT_EQ(must(check_layout(*volume, state(number), Bytes(4096))).problems, 0u);
}

// --- Growth --------------------------------------------------------------------------------------

// Random writes that grow a file, of any length and alignment, against a model; no stale byte ever
// shows, and the invariant holds after each step.
TEST_F(Layout, GrowthAgainstAModel) {
    struct Case {
        const char* block_size;
        uint64_t unit;  // 0: a plain file
        bool whole_blocks;
    };
    const Case cases[] = {{"1024", 16384, true}, {"1024", 16384, false}, {"1024", 0, false},
                          {"1024", 1024, false}, {"4096", 65536, true},  {"4096", 65536, false},
                          {"4096", 0, false},    {"4096", 0, true},      {"2048", 4096, false}};
    uint64_t seed = 100;
    for (const Case& c : cases) {
        SCOPED_TRACE(testing::Message() << c.block_size << " unit " << c.unit << " seed " << seed);
        std::mt19937_64 random(seed++);
        open_default(c.block_size);
        const auto number =
            c.unit != 0
                ? must(create_atomic_file(*volume, "/f", {Bytes(random() % 5000), Bytes(c.unit)}))
                : create_plain_file(*volume, "/f");
        Image model = content(number);
        for (int step = 0; step < 60 && model.size() < (2u << 20); ++step) {
            uint64_t offset = 0;
            switch (random() % 4) {
                case 0:  // append
                    offset = model.size();
                    break;
                case 1:  // overwrite, maybe beyond the end
                    offset = random() % (model.size() + 1);
                    break;
                default:  // leave a gap
                    offset = model.size() + random() % (random() % 3 == 0 ? 200'000 : 6000);
            }
            uint64_t length = 1 + random() % (random() % 3 == 0 ? 100'000 : 5000);
            if (c.whole_blocks) {
                offset = round_down(offset, block);
                length = round_up(length, block);
            }
            const auto data = random_bytes(length, random);
            const auto done = put(number, offset, data, block);
            ASSERT_TRUE(done) << message_of(done);
            if (model.size() < offset + length) model.resize(offset + length);
            std::copy(data.begin(), data.end(),
                      model.begin() + static_cast<std::ptrdiff_t>(offset));
            ASSERT_EQ(state(number).size.value(), model.size());
            ASSERT_TRUE(content(number) == model)
                << "step " << step << ": " << length << " at " << offset;
            if (c.unit != 0) {
                ASSERT_TRUE(faults(number, c.unit).empty()) << "step " << step;
            }
            if (step % 10 == 0) {
                ASSERT_EQ(fsck_complaints(image()), "");
            }
            if (testing::Test::HasFailure()) return;
        }
        EXPECT_EQ(fsck_complaints(image()), "");
        EXPECT_TRUE(dump_file(image(), "/f") == model);
    }
}

// What fallocate --keep-size left beyond EOF is not shown with its old bytes.
TEST_F(Layout, PreallocationBeyondEof) {
    open_default("1024");
    const auto number = craft("/f", 1500, 0, {{0, 2, 0}, {2, 30, 2, MapState::Unwritten}});
    // The crafted second block is written whole; its part beyond EOF is the kernel's to zero.
    must(volume->device().zero(
        must(locate_range(*volume, state(number), ByteOffset(0), Bytes(1500)))[0].device_offset +
            Bytes(1500),
        Bytes(548)));
    Image model = content(number);
    const auto append = [&](uint64_t offset, uint64_t length) {
        const auto data = filled(length, 0x42);
        must(put(number, offset, data, block));
        model.resize(std::max<size_t>(model.size(), offset + length));
        std::copy(data.begin(), data.end(), model.begin() + static_cast<std::ptrdiff_t>(offset));
        EXPECT_TRUE(content(number) == model) << length << " at " << offset;
        EXPECT_EQ(fsck_complaints(image()), "");
    };
    append(5000, 100);
    append(5500, 3000);
    append(20'000, 1);
    append(20'001, 10'000);
    append(40'000, 1000);
    EXPECT_TRUE(dump_file(image(), "/f") == model);
}

// --- Deep trees ----------------------------------------------------------------------------------

TEST_F(Layout, DeepTrees) {
    open(make_dirty_atomic4(24 << 20, {"-b", "1024"}));
    const auto number = must(create_atomic_file(*volume, "/f", {Bytes(0), Bytes(1024)}));
    constexpr uint64_t kBlocks = 6000;
    {
        // Every other block, each far from its neighbour: some 3000 extents, two levels of index.
        Transaction transaction(*volume);
        ext2_inode inode = state(number).inode;
        const auto runs = must(volume->allocator().allocate_units(0, kBlocks, Pblk(0)));
        std::vector<uint64_t> blocks;
        for (const PblkRun& run : runs) {
            for (uint64_t i = 0; i < run.length.value(); ++i)
                blocks.push_back(run.start.value() + i);
        }
        for (uint64_t i = 0; i < kBlocks; ++i) {
            if (i % 2 == 1) must(volume->allocator().free({Pblk(blocks[i]), Blocks(1)}));
        }
        uint64_t mapped = 0;
        for (uint64_t i = 0; i < kBlocks; i += 2) {
            const PblkRun run{Pblk(blocks[kBlocks - 2 - i]), Blocks(1)};
            must(volume->device().write(ByteOffset(run.start.value() * block),
                                        filled(block, static_cast<unsigned>(i))));
            must(set_mapping(*volume, number, &inode, Lblk(i), run, MapState::Written));
            ++mapped;
        }
        ext2fs_iblk_add_blocks(volume->fs(), &inode, mapped);
        ext2fs_inode_size_set(volume->fs(), &inode, static_cast<ext2_off64_t>(kBlocks * block));
        ext2fs_write_inode(volume->fs(), number, &inode);
        must(transaction.commit());
    }
    EXPECT_GT(must(tree_blocks(*volume, number, state(number).inode)).size(), 35u);
    EXPECT_EQ(fsck_complaints(image()), "");
    const auto mappings =
        must(map_range(*volume, number, state(number).inode, Lblk(0), Blocks(kBlocks)));
    ASSERT_EQ(mappings.size(), kBlocks);
    uint64_t at = 0;
    for (const Mapping& mapping : mappings) {
        ASSERT_EQ(mapping.lblk.value(), at);
        ASSERT_EQ(mapping.length.value(), 1u);
        ASSERT_EQ(mapping.state, at % 2 == 0 ? MapState::Written : MapState::Hole);
        ++at;
    }
    Image model = content(number);
    // Any part of it is the same as that part of the whole.
    std::mt19937_64 random(1);
    for (int i = 0; i < 300; ++i) {
        const uint64_t first = random() % kBlocks;
        const uint64_t count = 1 + random() % (random() % 2 == 0 ? 5 : 700);
        const auto part =
            must(map_range(*volume, number, state(number).inode, Lblk(first), Blocks(count)));
        for (const Mapping& mapping : part) {
            if (mapping.lblk.value() >= kBlocks) continue;
            ASSERT_EQ(mapping.state,
                      mapping.lblk.value() % 2 == 0 ? MapState::Written : MapState::Hole);
            if (mapping.state == MapState::Written) {
                ASSERT_EQ(mapping, mappings[mapping.lblk.value()]);
            }
        }
        ASSERT_EQ(part.front().lblk, Lblk(first));
        ASSERT_EQ(part.back().end(), Lblk(first + count));
    }
    // Holes filled at random places, in one go each.
    for (int i = 0; i < 40; ++i) {
        const uint64_t offset = random() % (kBlocks * block - 70'000);
        const auto data = random_bytes(1 + random() % 65536, random);
        const auto done = put(number, offset, data, block);
        ASSERT_TRUE(done) << message_of(done);
        std::copy(data.begin(), data.end(), model.begin() + static_cast<std::ptrdiff_t>(offset));
    }
    EXPECT_TRUE(content(number) == model);
    EXPECT_TRUE(dump_file(image(), "/f") == model);
    EXPECT_EQ(must(check_layout(*volume, state(number), Bytes(1024))).problems, 0u);
    EXPECT_EQ(fsck_complaints(image()), "");
    const uint64_t free = free_blocks();
    ext2_inode inode = state(number).inode;
    const uint64_t all_blocks = ext2fs_inode_i_blocks(volume->fs(), &inode) / 2;
    {
        // Deleting gives all of it back.
        Transaction transaction(*volume);
        must(unlink_name(*volume, {EXT2_ROOT_INO, "f"}, number));
        must(stage_delete(*volume, number));
        must(transaction.commit(Transaction::Order::Freeing));
    }
    EXPECT_EQ(free_blocks() - free, all_blocks);
    EXPECT_EQ(fsck_complaints(image()), "");
}

// --- Indirect files ------------------------------------------------------------------------------

TEST_F(Layout, IndirectFiles) {
    const TempDir dir;
    const std::string source = dir.file("source");
    std::mt19937_64 random(4);
    Image model(700 * 1024);
    {
        // Data at 0, at 300 KiB (double indirect on 1 KiB blocks) and at the end; holes between.
        Image sparse(0);
        for (const uint64_t at : {0u, 300u * 1024, 690u * 1024}) {
            const auto data = random_bytes(10 * 1024, random);
            std::copy(data.begin(), data.end(), model.begin() + at);
        }
        store_image(model, source);
        const CommandOutput dug = run_command({"fallocate", "--dig-holes", source});
        ASSERT_EQ(dug.status, 0) << dug.output;
    }
    Image contents = make_ext4(8 << 20, {"-b", "1024", "-O", "^extents,^64bit"});
    contents = debugfs(with_dirty_free_blocks([&] {
                           // Only the bit: files made before stay as they are.
                           edit_super(contents, [](auto& s) {
                               s.s_feature_incompat |= EXT3_FEATURE_INCOMPAT_EXTENTS;
                           });
                           return contents;
                       }()),
                       {"feature -extents", "write " + source + " /old", "sif /old generation 77",
                        "feature extents"});
    {
        MemoryDevice plain(contents);
        const auto before = open_volume(plain);
        must(enable(*before, {}));
        contents = plain.contents();
    }
    open(contents);
    const auto number = must(lookup(*volume, "/old"));
    ASSERT_FALSE(state(number).extent_mapped());
    EXPECT_TRUE(content(number) == model);
    EXPECT_EQ(fsck_complaints(image()), "");
    // Mapped ranges take writes; holes don't.
    const auto data = filled(4096, 0x66);
    must(put(number, 300 * 1024 + 512, data, block));
    std::copy(data.begin(), data.end(), model.begin() + 300 * 1024 + 512);
    EXPECT_TRUE(content(number) == model);
    const Image before = image();
    const auto refused = put(number, 100 * 1024, data, block);
    EXPECT_EQ(code_of(refused), EOPNOTSUPP);
    EXPECT_THAT(message_of(refused), HasSubstr("not extent-mapped"));
    EXPECT_EQ(code_of(put(number, 700 * 1024, data, block)), EOPNOTSUPP);
    EXPECT_EQ(code_of(put(number, uint64_t{1} << 38, data, block)), EFBIG);
    EXPECT_TRUE(image() == before);
    EXPECT_EQ(must(range_shape(*volume, state(number), ByteOffset(0), Bytes(8192))).holes, false);
    EXPECT_GT(must(check_layout(*volume, state(number), Bytes(4096))).units_mapped, 0u);
    EXPECT_TRUE(dump_file(image(), "/old") == model);
    EXPECT_EQ(fsck_complaints(image()), "");
}

// --- Damage --------------------------------------------------------------------------------------

// Extents that can't be: never followed.
TEST_F(Layout, ImpossibleExtentsAreDamage) {
    open_default("1024");
    const auto number = must(create_atomic_file(*volume, "/f", {Bytes(65536), Bytes(16384)}));
    struct Row {
        const char* what;
        size_t at;  // in i_block: a header of 12 bytes, then {u32 lblk, u16 len, u16 hi, u32 lo}
        uint32_t value;
    };
    for (const Row& row : {Row{"beyond the volume", 5, 0x00ffffff}, Row{"block 0", 5, 0}}) {
        SCOPED_TRACE(row.what);
        FileState file = state(number);
        file.inode.i_block[row.at] = row.value;
        const auto mapped = map_range(*volume, number, file.inode, Lblk(0), Blocks(64));
        EXPECT_EQ(code_of(mapped), EUCLEAN) << message_of(mapped);
        EXPECT_THAT(message_of(mapped), HasSubstr("e2fsck"));
    }
    // Random damage in the tree's root: any error, no crash.
    std::mt19937_64 random(8);
    for (int round = 0; round < 2000; ++round) {
        FileState file = state(number);
        auto* bytes = reinterpret_cast<uint8_t*>(file.inode.i_block);
        for (uint64_t n = random() % 4 + 1; n > 0; --n)
            bytes[random() % 40] ^= static_cast<uint8_t>(1u << (random() % 8));
        (void)map_range(*volume, number, file.inode, Lblk(0), Blocks(64));
        (void)tree_blocks(*volume, number, file.inode);
        (void)check_layout(*volume, file, Bytes(16384));
    }
}

}  // namespace
}  // namespace atomic4::test
