// The layout of units: judging it, making ranges ready, growing files. e2fsck looks at every
// result.
#include <random>

#include "unit/layout_fixture.h"

namespace atomic4::test {
namespace {

using testing::ElementsAre;

class Layout : public LayoutTest {};

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

}  // namespace
}  // namespace atomic4::test
