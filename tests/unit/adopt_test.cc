// Adopting and releasing files, judged block by block and by stock tools.
#include <random>

#include "ext4/file_blocks.h"
#include "ext4/xattr.h"
#include "support/fault_device.h"
#include "unit/adopt_fixture.h"
#include "writer/open_volume.h"

namespace atomic4::test {
namespace {

using testing::HasSubstr;

struct Shape {
    const char* name;
    uint64_t blocks;  // i_size
    int64_t bytes;    // and so many more
    std::vector<Piece> pieces;
};

// In blocks, which units of a quarter to all of it cut in every way.
const Shape kShapes[] = {
    {"empty", 0, 0, {}},
    {"all_hole", 100, 7, {}},
    {"aligned", 64, 0, {{0, 64, 64}}},
    {"misaligned", 64, 0, {{0, 64, 5}}},
    {"one_byte", 0, 1, {{0, 1, 3}}},
    {"odd_size", 33, -100, {{0, 33, 64}}},
    {"two_halves", 64, 0, {{0, 8, 8}, {8, 56, 100}}},
    {"backwards", 8, 0, {{0, 1, 30}, {1, 1, 29}, {2, 1, 28}, {3, 1, 27}, {4, 1, 26}, {5, 3, 20}}},
    {"sparse", 200, -1, {{0, 3, 3}, {70, 20, 70}, {199, 1, 199}}},
    {"unwritten_aligned", 64, 0, {{0, 64, 64, MapState::Unwritten}}},
    {"unwritten_misaligned", 64, 0, {{0, 64, 67, MapState::Unwritten}}},
    {"mixed", 64, -5, {{0, 16, 0}, {16, 32, 16, MapState::Unwritten}, {48, 16, 48}}},
    {"mixed_misaligned", 64, -5, {{0, 3, 1}, {3, 32, 33, MapState::Unwritten}, {35, 29, 99}}},
    {"kept_size", 10, 0, {{0, 10, 0}, {10, 118, 10, MapState::Unwritten}}},
    {"kept_size_misaligned", 10, 0, {{0, 10, 1}, {10, 118, 11, MapState::Unwritten}}},
    {"only_beyond_eof", 0, 10, {{64, 64, 65, MapState::Unwritten}}},
};

class AdoptShapes : public AdoptTest, public testing::WithParamInterface<const char*> {};

TEST_P(AdoptShapes, EveryUnit) {
    const std::string block_size = GetParam();
    const Image empty = make_dirty_atomic4(24 << 20, {"-b", block_size});
    const uint64_t bs = std::stoull(block_size);
    for (const Shape& shape : kShapes) {
        for (const uint64_t unit : {bs, 4 * bs, kUnit, 64 * bs, uint64_t{1} << 20}) {
            SCOPED_TRACE(testing::Message() << shape.name << ", unit " << unit);
            open(empty);
            const uint64_t size = shape.blocks * bs + static_cast<uint64_t>(shape.bytes);
            const ext2_ino_t number = craft("/f", size, 0, shape.pieces);
            // What lies beyond EOF in its block must be zero, as the kernel keeps it.
            if (size % bs != 0) {
                const Blockwise old = blockwise(number);
                if (const auto last = old.find(size / bs);
                    last != old.end() && last->second.second == MapState::Written)
                    must(volume->device().zero(ByteOffset(last->second.first * bs + size % bs),
                                               Bytes(bs - size % bs)));
            }
            adopt_and_judge(number, "/f", unit);
        }
    }
}

INSTANTIATE_TEST_SUITE_P(BlockSizes, AdoptShapes, testing::Values("1024", "2048", "4096"),
                         [](const auto& info) { return std::string("block") + info.param; });

// Random extents, several units one after the other, then released.
TEST_F(AdoptTest, RandomFiles) {
    const uint32_t seed = std::random_device{}();
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 random(seed);
    const auto below = [&](uint64_t n) {
        return std::uniform_int_distribution<uint64_t>(0, n - 1)(random);
    };
    for (int round = 0; round < 24; ++round) {
        open(make_dirty_atomic4(16 << 20, {"-b", round % 2 == 0 ? "1024" : "4096"}));
        std::vector<Piece> pieces;
        std::vector<bool> used(256);
        uint64_t lblk = below(3);
        for (int i = 0; i < 30 && lblk < 400; ++i) {
            const uint64_t length = 1 + below(20);
            const uint64_t at = below(2) == 0 ? (lblk % 256) : below(256);
            bool fits = at + length <= used.size();
            for (uint64_t b = at; fits && b < at + length; ++b) fits = !used[b];
            if (!fits) continue;
            for (uint64_t b = at; b < at + length; ++b) used[b] = true;
            pieces.push_back(
                {lblk, length, at, below(3) == 0 ? MapState::Unwritten : MapState::Written});
            lblk += length + (below(2) == 0 ? 0 : below(40));
        }
        // e2fsck wants i_size behind the last written block.
        uint64_t size = 0;
        for (const Piece& piece : pieces) {
            if (piece.state == MapState::Written) size = piece.lblk + piece.length;
        }
        const ext2_ino_t number = craft("/f", size * block, 0, pieces);
        for (int i = 0; i < 3; ++i) {
            const uint64_t unit = block << below(9);
            SCOPED_TRACE(testing::Message() << "round " << round << ", unit " << unit);
            if (state(number).unit == Bytes(unit)) continue;
            adopt_and_judge(number, "/f", unit);
            if (HasFatalFailure()) return;
        }
        EXPECT_TRUE(must(release_if_atomic(*volume, number)));
        EXPECT_FALSE(state(number).atomic);
        EXPECT_FALSE(state(number).unit);
        EXPECT_EQ(fsck_complaints(image()), "");
    }
}

// --- Special files
// --------------------------------------------------------------------------------

// Needs a tree of two levels, before and after.
TEST_F(AdoptTest, ManyExtents) {
    open(make_dirty_atomic4(32 << 20, {"-b", "1024"}));
    constexpr uint64_t kBlocks = 1500;
    const ext2_ino_t number = create_plain_file(*volume, "/f");
    {
        Transaction transaction(*volume);
        ext2_inode inode = state(number).inode;
        const Pblk start = must(volume->allocator().allocate(12, Pblk(0))).start;
        for (uint64_t i = 0; i < kBlocks; ++i) {
            const Pblk at = start + Blocks(i * 2 + 1);
            must(set_mapping(*volume, number, &inode, Lblk(i), {at, Blocks(1)}, MapState::Written));
            must(volume->device().write(ByteOffset(at.value() * block),
                                        filled(block, static_cast<unsigned>(1 + i % 250))));
            must(volume->allocator().free({at - Blocks(1), Blocks(1)}));
        }
        must(volume->allocator().free({start + Blocks(2 * kBlocks), Blocks(4096 - 2 * kBlocks)}));
        must(check_errcode_ok(ext2fs_iblk_add_blocks(volume->fs(), &inode, kBlocks)));
        must(check_errcode_ok(ext2fs_inode_size_set(volume->fs(), &inode, kBlocks * block)));
        must(check_errcode_ok(ext2fs_write_inode(volume->fs(), number, &inode)));
        must(transaction.commit());
    }
    ASSERT_GT(must(read_blocks(*volume, state(number))).nodes.size(), 17u);
    ASSERT_EQ(fsck_complaints(image()), "");
    const uint64_t free = free_blocks();
    adopt_and_judge(number, "/f", 2048);
    const size_t nodes = must(read_blocks(*volume, state(number))).nodes.size();
    EXPECT_LT(nodes, 15u);  // pairs, and many of those next to each other
    EXPECT_GT(free_blocks(), free);
    adopt_and_judge(number, "/f", 1 << 20);
    EXPECT_EQ(must(read_blocks(*volume, state(number))).nodes.size(), 0u);
}

// Direct, indirect and doubly indirect blocks, holes between them; written by debugfs.
TEST_F(AdoptTest, IndirectBlocks) {
    for (const char* block_size : {"1024", "2048", "4096"}) {
        SCOPED_TRACE(block_size);
        const uint64_t bs = std::stoull(block_size);
        const TempDir dir;
        std::mt19937_64 random(bs);
        Image bytes = random_bytes((12 + bs / 4 + 700) * bs - 77, random);
        std::fill_n(bytes.begin() + static_cast<std::ptrdiff_t>(20 * bs), 100 * bs, std::byte{0});
        store_image(bytes, dir.file("bytes"));
        Image plain = make_ext4(32 << 20, {"-b", block_size, "-O", "^extent,^64bit"});
        plain = debugfs(plain, {"write " + dir.file("bytes") + " f", "set_inode_field f flags 0"});
        store_image(plain, dir.file("image"));
        ASSERT_EQ(run_command({"tune2fs", "-O", "extent", dir.file("image")}).status, 0);
        MemoryDevice with_extents(load_image(dir.file("image")));
        {
            const auto made = open_volume(with_extents);
            must(enable(*made, {}));
        }
        for (const uint64_t unit : {bs, kUnit, uint64_t{1} << 20}) {
            SCOPED_TRACE(unit);
            open(with_extents.contents());
            const ext2_ino_t number = must(lookup(*volume, "/f"));
            ASSERT_FALSE(state(number).extent_mapped());
            ASSERT_GE(must(read_blocks(*volume, state(number))).nodes.size(), 3u);
            ASSERT_TRUE(dump_file(image(), "/f") == bytes);
            adopt_and_judge(number, "/f", unit);
        }
    }
}

// What debugfs says to one command.
std::string ask_debugfs(const Image& image, const std::string& command) {
    const TempDir dir;
    store_image(without_our_bits(image), dir.file("image"));
    return run_command({"debugfs", "-R", command, dir.file("image")}).output;
}

TEST_F(AdoptTest, XattrsLinksAndTimesStay) {
    for (const char* inode_size : {"128", "256", "1024"}) {
        for (const bool many : {false, true}) {
            SCOPED_TRACE(testing::Message() << inode_size << (many ? ", many" : ", few"));
            open(make_dirty_atomic4(16 << 20, {"-b", "1024", "-I", inode_size}));
            craft("/f", 20 * block, 0, {{0, 20, 3}});
            const std::vector<std::pair<std::string, std::string>> values = {
                {"user.one", "first"},
                {"user.two", std::string(many ? 600 : 3, 'v')},
                {"trusted.three", "third"}};
            std::vector<std::string> commands = {"ln f other", "set_inode_field f links_count 2",
                                                 "set_inode_field f mtime 20010203040506",
                                                 "set_inode_field f ctime 20010203040506"};
            for (const auto& [name, value] : values)
                commands.push_back(fmt::format("ea_set f {} {}", name, value));
            open(debugfs(image(), commands));
            const ext2_ino_t number = must(lookup(*volume, "/f"));
            const uint64_t xattrs = xattr_block(number);
            const uint32_t ctime = state(number).inode.i_ctime;
            const uint64_t free = free_blocks();
            adopt_and_judge(number, "/f", kUnit);
            for (const auto& [name, value] : values) {
                EXPECT_THAT(ask_debugfs(image(), "ea_get f " + name),
                            HasSubstr(fmt::format("{} ({}) = \"{}\"", name, value.size(), value)));
            }
            EXPECT_THAT(ask_debugfs(image(), fmt::format("ea_get f {}", kUnitXattr)),
                        HasSubstr("\"16384\""));
            EXPECT_GT(state(number).inode.i_ctime, ctime);
            EXPECT_EQ(must(lookup(*volume, "/other")), number);
            // A block of xattrs is replaced, never rewritten; 20 blocks have become 32.
            const uint64_t now = xattr_block(number);
            if (xattrs != 0) {
                EXPECT_NE(now, xattrs);
            }
            EXPECT_EQ(free - free_blocks(), 12u + (now != 0 && xattrs == 0 ? 1 : 0));
            EXPECT_TRUE(must(release_if_atomic(*volume, number)));
            EXPECT_THAT(ask_debugfs(image(), "ea_get f user.one"), HasSubstr("first"));
            EXPECT_EQ(fsck_complaints(image()), "");
        }
    }
}

// Data in the inode: in i_block, and in an xattr beyond that.
TEST_F(AdoptTest, InlineData) {
    const TempDir dir;
    std::mt19937_64 random(3);
    for (const uint64_t cluster : {1024, 4096}) {
        std::vector<std::string> arguments{"-b", "1024", "-I", "256", "-O", "inline_data"};
        if (cluster > 1024) arguments = {"-b", "1024", "-O", "inline_data,bigalloc", "-C", "4096"};
        MemoryDevice memory(make_ext4(16 << 20, arguments));
        must(enable(*open_volume(memory), {}));
        for (const size_t size : {0, 1, 50, 59, 60, 61, 100, 120}) {
            for (const uint64_t unit : {uint64_t{1024}, kUnit}) {
                SCOPED_TRACE(testing::Message()
                             << size << " bytes, unit " << unit << ", clusters of " << cluster);
                const Image bytes = random_bytes(size, random);
                store_image(bytes, dir.file("bytes"));
                open(debugfs(memory.contents(),
                             {"write " + dir.file("bytes") + " f", "ea_set f user.kept value"}));
                const ext2_ino_t number = must(lookup(*volume, "/f"));
                ASSERT_NE(state(number).inode.i_flags & EXT4_INLINE_DATA_FL, 0u);
                const Looks before = looks(number, "/f");
                // (Of less than 60 bytes in an inode debugfs dumps 60.)
                ASSERT_TRUE(std::equal(bytes.begin(), bytes.end(), before.content.begin()));
                const AdoptReport report = must(adopt_file(*volume, number, Bytes(unit)));
                EXPECT_EQ(report.units_mapped,
                          size == 0 ? 0 : std::max(cluster / unit, uint64_t{1}));
                const FileState file = state(number);
                EXPECT_EQ(file.inode.i_flags & EXT4_INLINE_DATA_FL, 0u);
                EXPECT_TRUE(file.extent_mapped());
                EXPECT_NE(file.generation, 0u);
                EXPECT_EQ(file.unit, Bytes(unit));
                EXPECT_TRUE(looks(number, "/f").content == bytes);
                EXPECT_TRUE(content(number) == bytes);
                EXPECT_EQ(looks(number, "/f").attributes, before.attributes);
                EXPECT_TRUE(faults(number, unit).empty());
                EXPECT_EQ(must(read_xattr(volume->fs(), number, "system.data")), std::nullopt);
                EXPECT_EQ(must(read_xattr(volume->fs(), number, "user.kept")), "value");
                EXPECT_EQ(fsck_complaints(image()), "");
                EXPECT_FALSE(must(adopt_file(*volume, number, Bytes(unit))).changed);
                // And now it takes writes.
                const auto data = filled(unit, 0x44);
                must(put(number, unit, data, unit));
                EXPECT_EQ(fsck_complaints(image()), "");
            }
        }
    }
}

// Checksums of extent blocks go by the generation.
TEST_F(AdoptTest, GenerationZero) {
    open_default();
    for (const bool tree : {false, true}) {
        const std::string path = tree ? "/tree" : "/flat";
        std::vector<Piece> pieces;
        for (uint64_t i = 0; i < (tree ? 8 : 2); ++i) pieces.push_back({i * 32, 16, i * 32});
        const ext2_ino_t number = craft(path, pieces.size() * 32 * block, 0, pieces);
        open(debugfs(image(), {"set_inode_field " + path + " generation 0"}));
        // debugfs leaves the checksums of the tree as they were: e2fsck makes them right.
        Image repaired;
        ASSERT_LE(e2fsck(image(), {"-fy"}, &repaired).status, 1);
        open(std::move(repaired));
        ASSERT_EQ(must(lookup(*volume, path)), number);
        ASSERT_EQ(state(number).generation, 0u);
        ASSERT_EQ(must(read_blocks(*volume, state(number))).nodes.size(), tree ? 1u : 0u);
        // Aligned already: only flag, unit and generation are missing.
        const uint64_t free = free_blocks();
        adopt_and_judge(number, path, kUnit);
        EXPECT_EQ(free_blocks(), free);
        const uint32_t generation = state(number).generation;
        adopt_and_judge(number, path, 2048);
        EXPECT_EQ(state(number).generation, generation);
    }
}

// What looks like a finding to `check` is made right: a lost flag, a lost unit, a broken unit.
TEST_F(AdoptTest, Repairs) {
    open_default();
    const ext2_ino_t number = must(create_atomic_file(*volume, "/f", {Bytes(65536), Bytes(32768)}));
    edit_inode(number, [](ext2_inode& inode) { inode.i_flags &= ~kInodeFlagAtomic; });
    EXPECT_TRUE(must(adopt_file(*volume, number, std::nullopt)).changed);
    EXPECT_EQ(state(number).unit, Bytes(32768)) << "its own unit is the default";
    {
        Transaction transaction(*volume);
        must(write_xattr(volume->fs(), number, kUnitXattr, "3000"));
        must(transaction.commit());
    }
    EXPECT_TRUE(must(adopt_file(*volume, number, std::nullopt)).changed);
    EXPECT_EQ(state(number).unit, volume->attr()->unit) << "the volume's, without one";
    // One block elsewhere, as the kernel's defragmentation could leave it.
    {
        Transaction transaction(*volume);
        ext2_inode inode = state(number).inode;
        const auto old = must(map_range(*volume, number, inode, Lblk(20), Blocks(1)));
        const PblkRun run = must(volume->allocator().allocate(0, Pblk(0)));
        must(set_mapping(*volume, number, &inode, Lblk(20), run, MapState::Written));
        must(volume->device().write(ByteOffset(run.start.value() * block), filled(block, 0x77)));
        must(transaction.commit());
        Transaction freeing(*volume);
        must(volume->allocator().free({old[0].pblk, Blocks(1)}));
        must(freeing.commit(Transaction::Order::Freeing));
    }
    const auto report = must(adopt_file(*volume, number, std::nullopt));
    EXPECT_EQ(report.units_moved, 1u);
    EXPECT_EQ(report.copied, Bytes(kUnit));
    EXPECT_TRUE(faults(number, kUnit).empty());
    EXPECT_EQ(fsck_complaints(image()), "");
}

// --- Releasing
// ------------------------------------------------------------------------------------

TEST_F(AdoptTest, Release) {
    open_default();
    const ext2_ino_t number = craft("/f", 20 * block, 0, {{0, 20, 3}});
    const Image before = dump_file(image(), "/f");
    const Image untouched = image();
    EXPECT_FALSE(must(release_if_atomic(*volume, number)));
    EXPECT_TRUE(image() == untouched) << "nothing to release, and yet something was written";
    must(adopt_file(*volume, number, std::nullopt));
    const Blockwise adopted = blockwise(number);
    EXPECT_TRUE(must(release_if_atomic(*volume, number)));
    EXPECT_FALSE(state(number).atomic);
    EXPECT_FALSE(state(number).unit);
    EXPECT_EQ(blockwise(number), adopted);
    EXPECT_TRUE(dump_file(image(), "/f") == before);
    EXPECT_FALSE(must(release_if_atomic(*volume, number)));
    EXPECT_EQ(code_of(release_if_atomic(*volume, EXT2_ROOT_INO)), EISDIR);
    EXPECT_EQ(code_of(release_if_atomic(*volume, volume->attr()->log_inode)), EPERM);
    EXPECT_EQ(code_of(release_if_atomic(*volume, must(volume->lock_inode()))), EPERM);
    EXPECT_EQ(code_of(release_if_atomic(*volume, EXT2_JOURNAL_INO)), EPERM);
    EXPECT_EQ(fsck_complaints(image()), "");
}

// Torn where it stands, a block of xattrs would take the others with it. Only on a full volume
// there is no other way.
TEST_F(AdoptTest, ReleasingLeavesTheOldXattrBlock) {
    for (const bool full : {false, true}) {
        SCOPED_TRACE(full);
        open(make_atomic4(8 << 20, {"-b", "1024", "-I", "128"}));
        const ext2_ino_t number =
            must(create_atomic_file(*volume, "/f", {Bytes(65536), Bytes(kUnit)}));
        {
            Transaction transaction(*volume);
            must(write_xattr(volume->fs(), number, "user.other", "kept"));
            must(transaction.commit());
        }
        if (full) fill_up(*volume, 0);
        const auto acl_block = [&] {
            const FileState now = state(number);
            return ext2fs_file_acl_block(volume->fs(), &now.inode);
        };
        const uint64_t old = acl_block();
        ASSERT_NE(old, 0u);
        const Image before = image();
        const uint64_t free = free_blocks();
        EXPECT_TRUE(must(release_if_atomic(*volume, number)));
        EXPECT_EQ(free_blocks(), free);
        const Image after = image();
        const auto begin = static_cast<std::ptrdiff_t>(old * block);
        const bool untouched = std::equal(
            before.begin() + begin, before.begin() + begin + static_cast<std::ptrdiff_t>(block),
            after.begin() + begin);
        EXPECT_EQ(acl_block() == old, full);
        EXPECT_EQ(untouched, !full);
        EXPECT_EQ(must(read_xattr(volume->fs(), number, "user.other")), "kept");
        EXPECT_EQ(must(read_xattr(volume->fs(), number, kUnitXattr)), std::nullopt);
        EXPECT_EQ(fsck_complaints(image()), "");
    }
}

// --- I/O
// ------------------------------------------------------------------------------------------

// The data of what moves is read once and written once; what stays is not touched.
TEST_F(AdoptTest, CopiesWhatMovesAndNothingElse) {
    open_default();
    // Units of 16: three stay, one moves.
    const ext2_ino_t number = craft("/f", 64 * block, 0, {{0, 48, 0}, {48, 8, 60}, {56, 8, 100}});
    const auto old = must(map_range(*volume, number, state(number).inode, Lblk(0), Blocks(48)));
    recorder->events.clear();
    const auto report = must(adopt_file(*volume, number, Bytes(kUnit)));
    EXPECT_EQ(report.copied, Bytes(16 * block));
    EXPECT_EQ(report.units_moved, 1u);
    for (const auto& event : recorder->events) {
        const uint64_t begin = event.offset.value() / block;
        const uint64_t end = (event.offset + event.length).value() / block;
        EXPECT_FALSE(begin < old[0].pblk.value() + 48 && old[0].pblk.value() < end)
            << "a unit that stays was written";
    }
    // New blocks are complete and flushed before any metadata is written but the bitmaps.
    ASSERT_FALSE(recorder->events.empty());
    EXPECT_EQ(recorder->events.front().length, Bytes(16 * block));
}

// A large file is copied in pieces, and unwritten blocks are zeroed without being written.
TEST_F(AdoptTest, MemoryIsBounded) {
    open(make_dirty_atomic4(64 << 20, {"-b", "4096"}));
    const ext2_ino_t number = create_plain_file(*volume, "/f");
    constexpr uint64_t kBlocks = 3000;
    {
        Transaction transaction(*volume);
        ext2_inode inode = state(number).inode;
        const auto area = must(volume->allocator().allocate_units(0, 2 * kBlocks + 1, Pblk(9000)));
        ASSERT_EQ(area.size(), 1u);
        const Pblk start = area[0].start + Blocks(area[0].start.value() % 2 == 0 ? 1 : 0);
        must(volume->allocator().free(
            {start == area[0].start ? start + Blocks(2 * kBlocks) : area[0].start, Blocks(1)}));
        must(set_mapping(*volume, number, &inode, Lblk(0), {start, Blocks(kBlocks)},
                         MapState::Written));
        must(set_mapping(*volume, number, &inode, Lblk(kBlocks),
                         {start + Blocks(kBlocks), Blocks(kBlocks)}, MapState::Unwritten));
        must(check_errcode_ok(ext2fs_iblk_add_blocks(volume->fs(), &inode, 2 * kBlocks)));
        must(check_errcode_ok(ext2fs_inode_size_set(volume->fs(), &inode, 2 * kBlocks * block)));
        must(check_errcode_ok(ext2fs_write_inode(volume->fs(), number, &inode)));
        must(transaction.commit());
    }
    recorder->events.clear();
    const auto report = must(adopt_file(*volume, number, Bytes(kUnit)));
    EXPECT_EQ(report.copied, Bytes(kBlocks * block));
    uint64_t written = 0;
    uint64_t zeroed = 0;
    for (const auto& event : recorder->events) {
        EXPECT_LE(event.data.size(), 4u << 20);
        written += event.data.size();
        if (event.kind == RecordingDevice::Kind::Zero) zeroed += event.length.value();
    }
    EXPECT_GT(zeroed, (kBlocks - 1024) * block);
    EXPECT_LT(written, (kBlocks + 1200) * block);
    EXPECT_EQ(fsck_complaints(image()), "");
}

}  // namespace
}  // namespace atomic4::test
