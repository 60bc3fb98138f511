// Inode preallocation: what is predicted, what a window serves, and what happens without one.
#include "ext4/inode_prealloc.h"

#include "ext4/transaction.h"
#include "unit/volume_fixture.h"

namespace atomic4::test {
namespace {

constexpr uint64_t kKiB = 1024;
constexpr uint64_t kMiB = 1024 * kKiB;

// predict_order as bytes: the window for a request of so many bytes at an offset.
uint64_t window(uint64_t file_size, uint64_t offset, uint64_t request, uint64_t block) {
    const int order = std::countr_zero(request / block);
    return block << InodePreallocations::predict_order(Bytes(file_size), Lblk(offset / block),
                                                       order, Bytes(block));
}

TEST(PredictOrder, FollowsTheFilesSize) {
    struct Row {
        uint64_t file_size, offset, request, want;
    };
    const Row rows[] = {
        // The size that counts is the one the file is about to have.
        {0, 0, 4 * kKiB, 16 * kKiB},
        {0, 0, 16 * kKiB, 16 * kKiB},
        {16 * kKiB, 0, 4 * kKiB, 16 * kKiB},
        {16 * kKiB + 1, 0, 4 * kKiB, 32 * kKiB},
        {0, 16 * kKiB, 4 * kKiB, 32 * kKiB},
        {0, 32 * kKiB, 4 * kKiB, 64 * kKiB},
        {100 * kKiB, 0, 4 * kKiB, 128 * kKiB},
        {256 * kKiB, 0, 4 * kKiB, 256 * kKiB},
        {256 * kKiB + 1, 0, 4 * kKiB, 512 * kKiB},
        {700 * kKiB, 0, 4 * kKiB, kMiB},
        {kMiB, 0, 4 * kKiB, kMiB},
        {kMiB + 1, 0, 4 * kKiB, 2 * kMiB},
        {0, 4 * kMiB - 4 * kKiB, 4 * kKiB, 2 * kMiB},
        {4 * kMiB, 0, 4 * kKiB, 2 * kMiB},
        {4 * kMiB + 1, 0, 4 * kKiB, 4 * kMiB},
        {8 * kMiB, 0, 4 * kKiB, 4 * kMiB},
        {8 * kMiB + 1, 0, 4 * kKiB, 8 * kMiB},
        {uint64_t{1} << 40, 0, 4 * kKiB, 8 * kMiB},
        {0, uint64_t{1} << 40, 4 * kKiB, 8 * kMiB},
        // Never smaller than the request.
        {0, 0, 64 * kKiB, 64 * kKiB},
        {0, 0, 4 * kMiB, 4 * kMiB},
        {0, 0, 2 * kMiB, 2 * kMiB},
    };
    for (const uint64_t block : {kKiB, 2 * kKiB, 4 * kKiB}) {
        for (const Row& row : rows) {
            EXPECT_EQ(window(row.file_size, row.offset, row.request, block), row.want)
                << row.request << " at " << row.offset << " of " << row.file_size << ", block "
                << block;
        }
    }
}

class InodePrealloc : public testing::Test {
  protected:
    static constexpr uint32_t kFile = 12;
    static constexpr uint32_t kOther = 13;

    void open(uint64_t size, const std::vector<std::string>& arguments) {
        memory = std::make_unique<MemoryDevice>(make_ext4(size, arguments));
        volume = open_volume(*memory);
        transaction = std::make_unique<Transaction>(*volume);
    }
    void TearDown() override {
        transaction.reset();
        volume.reset();
    }
    InodePreallocations& pa() { return volume->preallocations(); }
    AlignedAllocator& allocator() { return volume->allocator(); }
    uint64_t free_blocks() const { return ext2fs_free_blocks_count(volume->fs()->super); }
    bool is_used(Pblk block) {
        const dgrp_t group = ext2fs_group_of_blk2(volume->fs(), block.value());
        const uint64_t bit = block.value() - ext2fs_group_first_block2(volume->fs(), group);
        return ((*must(volume->block_bitmaps().get(group)))[bit / 8] >> (bit % 8) & 1) != 0;
    }
    // Leaves nothing free but runs of 2^order blocks, aligned to their length only: the run at
    // twice its length after each stays in use.
    void leave_only_runs(int order, uint64_t count) {
        std::vector<PblkRun> keep;
        const uint64_t length = uint64_t{1} << order;
        for (uint64_t i = 0; i < count; ++i) {
            const PblkRun pair = must(allocator().allocate(order + 1, Pblk(0)));
            keep.push_back({pair.start, Blocks(length)});
        }
        while (allocator().allocate(5, Pblk(0)) || allocator().allocate(0, Pblk(0))) {
        }
        ASSERT_EQ(free_blocks(), 0u);
        for (const PblkRun& run : keep) must(allocator().free(run));
    }

    std::unique_ptr<MemoryDevice> memory;
    std::unique_ptr<Volume> volume;
    std::unique_ptr<Transaction> transaction;
};

TEST_F(InodePrealloc, WritesInAWindowAreNeighbours) {
    open(8 << 20, {"-b", "1024"});
    const uint64_t before = free_blocks();
    Pblk first;
    for (uint64_t i = 0; i < 4; ++i) {
        const PblkRun run = must(pa().allocate(kFile, Lblk(4 * i), 2, Bytes(16384), Pblk(1)));
        ASSERT_EQ(run.length.value(), 4u);
        if (i == 0)
            first = run.start;
        else
            EXPECT_EQ(run.start, first + Blocks(4 * i));
        // Somebody else's requests in between stay out of the window.
        const PblkRun other = must(allocator().allocate(0, first));
        EXPECT_TRUE(other.start < first || other.start >= first + Blocks(16));
    }
    EXPECT_EQ(first.value() % 16, 0u);
    // Only what was asked for is counted as used.
    EXPECT_EQ(before - free_blocks(), 16u + 4u);
    // Two inodes have two windows.
    const PblkRun mine = must(pa().allocate(kFile, Lblk(64), 2, Bytes(0), Pblk(1)));
    const PblkRun theirs = must(pa().allocate(kOther, Lblk(68), 2, Bytes(0), Pblk(1)));
    EXPECT_NE(mine.start + Blocks(4), theirs.start);
}

TEST_F(InodePrealloc, RandomOrderFillsTheSameWindow) {
    open(8 << 20, {"-b", "1024"});
    std::map<uint64_t, uint64_t> where;
    for (const uint64_t lblk : {8u, 0u, 12u, 4u})
        where[lblk] =
            must(pa().allocate(kFile, Lblk(lblk), 2, Bytes(16384), Pblk(1))).start.value();
    EXPECT_EQ(where[0] % 16, 0u);
    for (const uint64_t lblk : {4u, 8u, 12u}) EXPECT_EQ(where[lblk], where[0] + lblk);
}

// A window is aligned to its own length in the file and on the device, so it serves what is
// smaller, at any offset aligned for that.
TEST_F(InodePrealloc, ServedOnlyAligned) {
    open(8 << 20, {"-b", "1024"});
    std::mt19937_64 random(3);
    std::set<uint64_t> taken;
    std::set<uint64_t> mapped;
    for (int i = 0; i < 400; ++i) {
        const int order = static_cast<int>(random() % 4);
        const uint64_t length = uint64_t{1} << order;
        const uint64_t lblk = round_down(random() % 2000, length);
        bool fresh = true;
        for (uint64_t at = lblk; at < lblk + length; ++at) fresh = fresh && !mapped.contains(at);
        if (!fresh) continue;
        const auto inode = static_cast<uint32_t>(kFile);
        const PblkRun run = must(pa().allocate(inode, Lblk(lblk), order, Bytes(65536), Pblk(1)));
        ASSERT_EQ(run.length.value(), length);
        ASSERT_EQ(run.start.value() % length, 0u);
        for (uint64_t at = 0; at < length; ++at) {
            ASSERT_TRUE(taken.insert(run.start.value() + at).second);
            ASSERT_TRUE(is_used(run.start + Blocks(at)));
            mapped.insert(lblk + at);
        }
    }
}

TEST_F(InodePrealloc, WindowIsNotServedWhereItIsInTheWay) {
    open(8 << 20, {"-b", "1024"});
    // The window of 16 blocks begins at logical block 16; a request that only partly lies in it
    // goes elsewhere.
    const PblkRun first = must(pa().allocate(kFile, Lblk(16), 2, Bytes(16384), Pblk(1)));
    const PblkRun large = must(pa().allocate(kFile, Lblk(0), 5, Bytes(16384), Pblk(1)));
    EXPECT_EQ(large.start.value() % 32, 0u);
    EXPECT_TRUE(large.start + large.length <= first.start ||
                first.start + Blocks(4) <= large.start);
}

// What the RFC left open: the normalised size can't be had, the request itself can.
TEST_F(InodePrealloc, FallsBackToTheOriginalSize) {
    open(8 << 20, {"-b", "1024"});
    leave_only_runs(2, 3);
    for (uint64_t i = 0; i < 3; ++i) {
        const PblkRun run = must(pa().allocate(kFile, Lblk(4 * i), 2, Bytes(1 << 20), Pblk(1)));
        EXPECT_EQ(run.start.value() % 4, 0u);
    }
    EXPECT_EQ(code_of(pa().allocate(kFile, Lblk(12), 2, Bytes(1 << 20), Pblk(1))), ENOSPC);
    EXPECT_EQ(code_of(pa().allocate(kFile, Lblk(12), 0, Bytes(1 << 20), Pblk(1))), ENOSPC);
    EXPECT_EQ(free_blocks(), 0u);
}

// Everybody's windows are given back before anyone is told ENOSPC.
TEST_F(InodePrealloc, WindowsAreNoReasonForNoSpace) {
    open(8 << 20, {"-b", "1024"});
    leave_only_runs(4, 1);
    const PblkRun run = must(pa().allocate(kFile, Lblk(0), 2, Bytes(16384), Pblk(1)));
    EXPECT_EQ(free_blocks(), 12u);
    // The window holds the rest.
    EXPECT_EQ(code_of(allocator().allocate(2, Pblk(1))), ENOSPC);
    for (int i = 0; i < 3; ++i) {
        const PblkRun other = must(pa().allocate(kOther, Lblk(100 + 4 * i), 2, Bytes(0), Pblk(1)));
        EXPECT_NE(other.start, run.start);
    }
    EXPECT_EQ(code_of(pa().allocate(kOther, Lblk(200), 2, Bytes(0), Pblk(1))), ENOSPC);
}

TEST_F(InodePrealloc, WhatIsUnusedGoesBack) {
    open(8 << 20, {"-b", "1024"});
    leave_only_runs(4, 2);
    must(pa().allocate(kFile, Lblk(0), 2, Bytes(16384), Pblk(1)));
    must(pa().allocate(kOther, Lblk(0), 2, Bytes(16384), Pblk(1)));
    EXPECT_EQ(code_of(allocator().allocate(3, Pblk(1))), ENOSPC);
    pa().release(kFile);
    EXPECT_TRUE(allocator().allocate(3, Pblk(1)));
    EXPECT_EQ(code_of(allocator().allocate(3, Pblk(1))), ENOSPC);
    pa().release(99);  // has none
    pa().release_all();
    EXPECT_TRUE(allocator().allocate(3, Pblk(1)));
    EXPECT_EQ(free_blocks(), 32u - 8u - 16u);
}

// Nothing of a window reaches the disk, and an aborted operation leaves the bookkeeping usable.
TEST_F(InodePrealloc, AbortKeepsWindowsConsistent) {
    open(8 << 20, {"-b", "1024"});
    const Image before = memory->contents();
    const uint64_t free = free_blocks();
    must(pa().allocate(kFile, Lblk(0), 2, Bytes(16384), Pblk(1)));
    transaction.reset();
    EXPECT_EQ(free_blocks(), free);
    transaction = std::make_unique<Transaction>(*volume);
    std::set<uint64_t> starts;
    for (uint64_t i = 0; i < 8; ++i) {
        const PblkRun run = must(pa().allocate(kFile, Lblk(4 * i), 2, Bytes(16384), Pblk(1)));
        EXPECT_EQ(run.start.value() % 4, 0u);
        EXPECT_TRUE(starts.insert(run.start.value()).second);
    }
    EXPECT_EQ(free_blocks(), free - 32);
    transaction.reset();
    EXPECT_TRUE(memory->contents() == before);
}

// Root's share: a window may reach into it, what is taken may not.
TEST_F(InodePrealloc, ReservedShareIsNotTaken) {
    memory = std::make_unique<MemoryDevice>(make_ext4(4 << 20, {"-b", "1024", "-m", "25"}));
    volume = open_volume(*memory, OpenFor::Write, false, false);
    transaction = std::make_unique<Transaction>(*volume);
    uint64_t lblk = 0;
    Result<PblkRun> run = pa().allocate(kFile, Lblk(lblk), 2, Bytes(16 << 20), Pblk(1));
    while (run) run = pa().allocate(kFile, Lblk(lblk += 4), 2, Bytes(16 << 20), Pblk(1));
    EXPECT_EQ(code_of(run), ENOSPC);
    EXPECT_GE(free_blocks(), ext2fs_r_blocks_count(volume->fs()->super));
    EXPECT_LT(free_blocks(), ext2fs_r_blocks_count(volume->fs()->super) + 4);
}

}  // namespace
}  // namespace atomic4::test
