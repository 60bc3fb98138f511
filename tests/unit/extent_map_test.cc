// set_mapping against a model: any range over any other, and the tree no larger than it must be.
// e2fsck looks at every result.
#include "ext4/extent_map.h"

#include <algorithm>
#include <random>

#include "unit/volume_fixture.h"

namespace atomic4::test {
namespace {

// A file of a fixed size whose blocks come from one aligned area of the volume.
class ExtentMap : public testing::Test {
  protected:
    static constexpr uint64_t kBlocks = 2048;

    void SetUp() override {
        memory = std::make_unique<MemoryDevice>(make_dirty_atomic4(16 << 20, {"-b", "1024"}));
        make_file();
    }
    void make_file() {
        volume.reset();
        volume = open_volume(*memory, OpenFor::Write, true);
        number = create_plain_file(*volume, "/f");
        Transaction transaction(*volume);
        area = must(volume->allocator().allocate(11, Pblk(0)));
        inode = read();
        ext2fs_inode_size_set(volume->fs(), &inode, kBlocks * 1024);
        ext2fs_iblk_add_blocks(volume->fs(), &inode, kBlocks);
        ext2fs_write_inode(volume->fs(), number, &inode);
        must(transaction.commit());
    }
    void TearDown() override { volume.reset(); }

    ext2_inode read() { return must(read_file(*volume, number)).inode; }

    Result<> set(uint64_t lblk, uint64_t at, uint64_t length, MapState state) {
        Transaction transaction(*volume);
        inode = read();
        A4_CHECK(set_mapping(*volume, number, &inode, Lblk(lblk),
                             {area.start + Blocks(at), Blocks(length)}, state));
        return transaction.commit();
    }

    // On the disk, not joined.
    size_t extents() {
        inode = read();
        ext2_extent_handle_t handle = nullptr;
        EXPECT_EQ(ext2fs_extent_open2(volume->fs(), number, &inode, &handle), 0);
        size_t count = 0;
        ext2fs_extent extent{};
        errcode_t code = ext2fs_extent_get(handle, EXT2_EXTENT_ROOT, &extent);
        for (; code == 0; code = ext2fs_extent_get(handle, EXT2_EXTENT_NEXT, &extent)) {
            if ((extent.e_flags & EXT2_EXTENT_FLAGS_LEAF) != 0) ++count;
        }
        ext2fs_extent_free(handle);
        return count;
    }

    std::vector<Mapping> mappings() {
        return must(map_range(*volume, number, read(), Lblk(0), Blocks(kBlocks)));
    }

    std::unique_ptr<MemoryDevice> memory;
    std::unique_ptr<Volume> volume;
    ext2_ino_t number = 0;
    ext2_inode inode{};
    PblkRun area{Pblk(0), Blocks(0)};
};

TEST_F(ExtentMap, ConvertingUnitsInOrderNeedsNoMoreThanTwoExtents) {
    must(set(0, 0, kBlocks, MapState::Unwritten));
    for (uint64_t unit = 0; unit < kBlocks; unit += 16) {
        must(set(unit, unit, 16, MapState::Written));
        ASSERT_EQ(extents(), unit + 16 == kBlocks ? 1u : 2u) << unit;
    }
    EXPECT_EQ(fsck_complaints(memory->contents()), "");
}

TEST_F(ExtentMap, ConvertedInAnyOrderTheFileIsOneExtentAgain) {
    must(set(0, 0, kBlocks, MapState::Unwritten));
    std::vector<uint64_t> units;
    for (uint64_t unit = 0; unit < 64; unit += 2) units.push_back(unit);
    std::shuffle(units.begin(), units.end(), std::mt19937_64(1));
    for (const uint64_t unit : units) must(set(unit, unit, 1, MapState::Written));
    EXPECT_EQ(extents(), mappings().size());
    EXPECT_EQ(extents(), 64u);
    for (uint64_t unit = 1; unit < 64; unit += 2) must(set(unit, unit, 1, MapState::Written));
    must(set(64, 64, kBlocks - 64, MapState::Written));
    // A tree doesn't become flat again, and leaves aren't joined: one extent for each leaf.
    EXPECT_EQ(mappings().size(), 1u);
    EXPECT_EQ(extents(), must(tree_blocks(*volume, number, read())).size());
    EXPECT_EQ(fsck_complaints(memory->contents()), "");
}

TEST_F(ExtentMap, FillingHolesJoinsBothSides) {
    must(set(0, 0, 100, MapState::Written));
    must(set(200, 200, 100, MapState::Written));
    must(set(400, 400, 100, MapState::Unwritten));
    EXPECT_EQ(extents(), 3u);
    must(set(100, 100, 100, MapState::Written));
    EXPECT_EQ(extents(), 2u);
    // Beside an extent, but not where that one goes on, or not in its state.
    must(set(300, 350, 50, MapState::Written));
    must(set(350, 300, 50, MapState::Written));
    EXPECT_EQ(extents(), 4u);
    must(set(500, 500, kBlocks - 500, MapState::Written));
    EXPECT_EQ(fsck_complaints(memory->contents()), "");
}

// A conversion next to what is written already needs no room in the tree: it works on a volume
// without a free block, with an inode whose four extents are used.
TEST_F(ExtentMap, ConversionAtAnEdgeNeedsNoNewBlock) {
    must(set(0, 0, 512, MapState::Written));
    must(set(512, 512, 512, MapState::Unwritten));
    must(set(1024, 1536, 512, MapState::Written));
    must(set(1536, 1024, 512, MapState::Unwritten));
    ASSERT_EQ(extents(), 4u);
    fill_up(*volume, 0);
    for (uint64_t at = 512; at < 1024; at += 16) must(set(at, at, 16, MapState::Written));
    EXPECT_EQ(extents(), 3u);
    EXPECT_EQ(mappings().size(), 3u);
    // In the middle it needs one extent too many, and nothing changes.
    must(set(1536, 1024, 100, MapState::Written));
    ASSERT_EQ(extents(), 4u);
    const Image before = memory->contents();
    const auto refused = set(1800, 1288, 16, MapState::Written);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, ENOSPC);
    EXPECT_EQ(memory->contents(), before);
    EXPECT_EQ(fsck_complaints(memory->contents()), "");
}

// A leaf has to move when it changes. Without a block for that nothing changes, at any level.
TEST_F(ExtentMap, ALeafThatCannotMoveIsNotRewritten) {
    for (uint64_t at = 0; at < kBlocks; at += 2) must(set(at, at, 1, MapState::Written));
    ASSERT_GT(must(tree_blocks(*volume, number, read())).size(), 5u);
    fill_up(*volume, 0);
    const Image before = memory->contents();
    const auto refused = set(0, 0, 1, MapState::Unwritten);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, ENOSPC);
    EXPECT_THAT(refused.error().message, testing::HasSubstr("moving its extent tree"));
    EXPECT_EQ(memory->contents(), before);
}

// A leaf whose first extent belongs to another one's range: no path leads to it, and nothing is
// moved on a guess.
TEST_F(ExtentMap, AChangedNodeThatNoPathLeadsToIsRefused) {
    memory = std::make_unique<MemoryDevice>(
        make_dirty_atomic4(16 << 20, {"-b", "1024", "-O", "^metadata_csum"}));
    make_file();
    for (uint64_t at = 0; at < kBlocks; at += 2) must(set(at, at, 1, MapState::Written));
    const auto nodes = must(tree_blocks(*volume, number, read()));
    volume.reset();
    Image contents = memory->contents();
    size_t damaged = 0;
    for (const Pblk node : nodes) {
        auto* header = reinterpret_cast<ext3_extent_header*>(&contents[node.value() * 1024]);
        auto* first = reinterpret_cast<ext3_extent*>(header + 1);
        if (header->eh_depth != 0 || first->ee_block == 0 || damaged++ != 0) continue;
        first->ee_block = 0;
    }
    ASSERT_GT(damaged, 1u);
    memory = std::make_unique<MemoryDevice>(contents);
    volume = open_volume(*memory, OpenFor::Write, true);
    size_t refused = 0;
    for (uint64_t at = 0; at < kBlocks; at += 2) {
        const auto done = set(at, at, 1, MapState::Unwritten);
        if (done) continue;
        ++refused;
        EXPECT_EQ(done.error().code, EUCLEAN);
        EXPECT_THAT(done.error().message, testing::HasSubstr("e2fsck"));
    }
    EXPECT_GT(refused, 0u);
}

// Random ranges over each other, in a file whose logical order is not the physical one.
TEST_F(ExtentMap, RandomRangesAgainstAModel) {
    struct Block {
        uint64_t at;
        MapState state;
    };
    constexpr uint64_t kChunk = 32;
    for (const unsigned seed : {1u, 2u, 3u}) {
        SCOPED_TRACE(seed);
        TearDown();
        SetUp();
        std::mt19937_64 random(seed);
        std::vector<uint64_t> chunks(kBlocks / kChunk);
        for (size_t i = 0; i < chunks.size(); ++i) chunks[i] = i;
        if (seed != 1) std::shuffle(chunks.begin(), chunks.end(), random);
        std::vector<Block> model(kBlocks, Block{0, MapState::Hole});
        const auto put = [&](uint64_t first, uint64_t length, MapState state) {
            // A range inside one chunk is one run.
            length = std::min(length, kChunk - first % kChunk);
            const uint64_t at = chunks[first / kChunk] * kChunk + first % kChunk;
            must(set(first, at, length, state));
            for (uint64_t i = 0; i < length; ++i) model[first + i] = {at + i, state};
        };
        for (int op = 0; op < 700; ++op) {
            put(random() % kBlocks, 1 + random() % (op % 3 == 0 ? kChunk : 3),
                random() % 2 == 0 ? MapState::Written : MapState::Unwritten);
            if (op % 50 != 0) continue;
            std::vector<Block> seen;
            for (const Mapping& mapping : mappings()) {
                for (uint64_t i = 0; i < mapping.length.value(); ++i) {
                    const bool hole = mapping.state == MapState::Hole;
                    seen.push_back(
                        {hole ? 0 : (mapping.pblk - area.start).value() + i, mapping.state});
                }
            }
            ASSERT_EQ(seen.size(), kBlocks);
            for (uint64_t i = 0; i < kBlocks; ++i) {
                ASSERT_EQ(seen[i].state, model[i].state) << "block " << i << " after " << op;
                ASSERT_EQ(seen[i].at, model[i].at) << "block " << i << " after " << op;
            }
        }
        EXPECT_GT(must(tree_blocks(*volume, number, read())).size(), 3u);
        for (uint64_t first = 0; first < kBlocks; first += kChunk)
            put(first, kChunk, MapState::Written);
        EXPECT_EQ(fsck_complaints(memory->contents()), "");
    }
}

}  // namespace
}  // namespace atomic4::test
