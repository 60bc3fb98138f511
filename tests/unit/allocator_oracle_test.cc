// The aligned allocator against brute force: whatever the fragmentation, group size and block size,
// a request succeeds exactly if an absolutely aligned free run exists, and changes nothing else.
#include <algorithm>
#include <random>
#include <set>

#include "device/file_device.h"
#include "ext4/transaction.h"
#include "support/free_bitmap.h"
#include "unit/volume_fixture.h"

namespace atomic4::test {
namespace {

constexpr int kPercent = 60;  // of the rounds below; 100 and more for a long look

struct Shape {
    const char* name;
    uint64_t size;
    std::vector<std::string> arguments;
    int rounds;
};

// Zones are 8 MiB on 1 KiB blocks, 32 MiB on 2 KiB, 128 MiB on 4 KiB: some volumes have several,
// most end in the middle of one. 1001, 2001 … blocks: the last group is short.
const std::vector<Shape>& shapes() {
    static const std::vector<Shape> all{
        {"1k", 20 << 20, {"-b", "1024"}, 50},
        {"1k_small_groups", 4 << 20, {"-b", "1024", "-g", "264", "-N", "64"}, 300},
        {"1k_no_flex_bg", 4 << 20, {"-b", "1024", "-O", "^flex_bg", "-g", "1000", "-N", "64"}, 300},
        {"1k_meta_bg",
         4 << 20,
         {"-b", "1024", "-O", "meta_bg,^resize_inode", "-g", "520", "-N", "64"},
         300},
        {"1k_sparse_super2",
         9 << 20,
         {"-b", "1024", "-O", "sparse_super2,^resize_inode", "-g", "1016", "-N", "64"},
         60},
        {"1k_no_csum", 4 << 20, {"-b", "1024", "-O", "^metadata_csum,uninit_bg", "-g", "776"}, 200},
        {"1k_no_uninit", 4 << 20, {"-b", "1024", "-O", "^metadata_csum,^uninit_bg"}, 150},
        {"2k_odd_groups", 8 << 20, {"-b", "2048", "-g", "504", "-O", "^flex_bg", "-N", "64"}, 200},
        {"2k_two_zones", 40 << 20, {"-b", "2048"}, 40},
        {"4k", 8 << 20, {"-b", "4096"}, 200},
        {"4k_no_64bit", 8 << 20, {"-b", "4096", "-O", "^64bit", "-g", "312", "-N", "64"}, 200},
        {"4k_small_groups", 8 << 20, {"-b", "4096", "-g", "256", "-N", "64"}, 200},
        {"4k_bitmaps_apart", 16 << 20, {"-b", "4096", "-g", "1032", "-G", "2", "-N", "64"}, 150},
    };
    return all;
}

// Every block of a volume: in use, reserved in memory, or free.
class Model {
  public:
    explicit Model(Volume& volume) : volume_(volume) { load(); }

    void load() {
        ext2_filsys fs = volume_.fs();
        used_.assign(ext2fs_blocks_count(fs->super), true);
        reserved_.assign(used_.size(), false);
        for (uint32_t group = 0; group < fs->group_desc_count; ++group) {
            const auto bits = must(volume_.block_bitmaps().get(group));
            const uint64_t first = ext2fs_group_first_block2(fs, group);
            for (uint32_t bit = 0; bit < volume_.block_bitmaps().bits_in(group); ++bit)
                used_[first + bit] = ((*bits)[bit / 8] >> (bit % 8) & 1) != 0;
        }
    }

    uint64_t size() const { return used_.size(); }
    bool used(uint64_t block) const { return used_[block]; }
    bool taken(uint64_t block) const { return used_[block] || reserved_[block]; }
    bool run_is_free(uint64_t first, uint64_t count) const {
        for (uint64_t block = first; block < first + count; ++block) {
            if (block >= used_.size() || taken(block)) return false;
        }
        return true;
    }
    bool has_aligned_run(int order) const {
        const uint64_t length = uint64_t{1} << order;
        for (uint64_t first = 0; first + length <= used_.size(); first += length) {
            if (run_is_free(first, length)) return true;
        }
        return false;
    }
    uint64_t aligned_runs(int order) const {
        uint64_t runs = 0;
        const uint64_t length = uint64_t{1} << order;
        for (uint64_t first = 0; first + length <= used_.size(); first += length)
            runs += run_is_free(first, length) ? 1 : 0;
        return runs;
    }
    uint64_t free_blocks() const {
        return static_cast<uint64_t>(std::count(used_.begin(), used_.end(), false));
    }

    void set(PblkRun run, bool used) {
        for (uint64_t i = 0; i < run.length.value(); ++i) used_[run.start.value() + i] = used;
    }
    void reserve(PblkRun run, bool on) {
        for (uint64_t i = 0; i < run.length.value(); ++i) reserved_[run.start.value() + i] = on;
    }
    void release_all() { reserved_.assign(used_.size(), false); }

    // Bitmaps, group counts and the superblock's count all say what the model says.
    void expect_same() const {
        ext2_filsys fs = volume_.fs();
        Model now(volume_);
        EXPECT_EQ(now.used_, used_);
        EXPECT_EQ(ext2fs_free_blocks_count(fs->super), free_blocks());
        uint64_t sum = 0;
        for (uint32_t group = 0; group < fs->group_desc_count; ++group)
            sum += ext2fs_bg_free_blocks_count(fs, group);
        EXPECT_EQ(sum, free_blocks());
    }

  private:
    Volume& volume_;
    std::vector<bool> used_;
    std::vector<bool> reserved_;
};

// Marks blocks as somebody else's, through the bitmaps, as a filesystem in use would look.
void mark(Volume& volume, Model& model, uint64_t first, uint64_t count, bool used) {
    ext2_filsys fs = volume.fs();
    for (uint64_t block = first; block < std::min(first + count, model.size()); ++block) {
        if (model.used(block) == used || block < fs->super->s_first_data_block) continue;
        const dgrp_t group = ext2fs_group_of_blk2(fs, block);
        const auto bit = static_cast<uint32_t>(block - ext2fs_group_first_block2(fs, group));
        must(volume.block_bitmaps().set(group, bit, 1, used));
        model.set({Pblk(block), Blocks(1)}, used);
    }
}

// A random state: much or little free, in long or short runs.
void fragment(Volume& volume, Model& model, std::mt19937_64& random) {
    const uint64_t size = model.size();
    const auto below = [&](uint64_t n) { return random() % n; };
    const Model before = model;
    switch (below(6)) {
        case 0: {  // scattered files
            for (uint64_t i = below(60) + 1; i > 0; --i)
                mark(volume, model, below(size), below(400) + 1, true);
            break;
        }
        case 1: {  // every other block
            for (uint64_t block = below(2); block < size; block += 2)
                mark(volume, model, block, 1, true);
            break;
        }
        case 2: {  // full, but for a few single runs; they may lie across a group's border
            mark(volume, model, 0, size, true);
            ext2_filsys fs = volume.fs();
            for (uint64_t i = below(4); i > 0; --i) {
                const uint64_t length = uint64_t{1} << below(8);
                uint64_t first = below(size);
                if (below(2) == 0) {
                    const auto group = static_cast<dgrp_t>(below(fs->group_desc_count));
                    first = ext2fs_group_first_block2(fs, group);
                    first -= std::min(first, below(length) + 1);
                }
                if (below(2) == 0) first = round_down(first, length);
                for (uint64_t b = first; b < std::min(first + length, size); ++b) {
                    if (!before.used(b)) mark(volume, model, b, 1, false);
                }
            }
            break;
        }
        case 3: {  // nearly full, single free blocks
            mark(volume, model, 0, size, true);
            for (uint64_t i = below(30); i > 0; --i) {
                const uint64_t block = below(size);
                if (!before.used(block)) mark(volume, model, block, 1, false);
            }
            break;
        }
        case 4: {  // one block in the way of each aligned run of some order
            const uint64_t step = uint64_t{1} << (below(6) + 1);
            for (uint64_t block = 0; block < size; block += step)
                mark(volume, model, block + below(step), 1, true);
            break;
        }
        default:
            break;  // empty
    }
}

void expect_good(const Model& model, PblkRun run, uint64_t align) {
    EXPECT_EQ(run.start.value() % align, 0u) << "at " << run.start.value();
    EXPECT_LE((run.start + run.length).value(), model.size());
    EXPECT_TRUE(model.run_is_free(run.start.value(), run.length.value()));
}

class AllocatorOracle : public testing::TestWithParam<size_t> {};

TEST_P(AllocatorOracle, SucceedsExactlyWhenAnAlignedRunIsFree) {
    const Shape& shape = shapes()[GetParam()];
    MemoryDevice memory(make_ext4(shape.size, shape.arguments));
    const Image before = memory.contents();
    const auto volume = open_volume(memory);
    AlignedAllocator& allocator = volume->allocator();
    const int max_order = allocator.max_order();
    const ext2_super_block super_before = *volume->fs()->super;
    const size_t table = size_t{volume->fs()->desc_blocks} * volume->fs()->blocksize;
    const Image descriptors_before(
        reinterpret_cast<const std::byte*>(volume->fs()->group_desc),
        reinterpret_cast<const std::byte*>(volume->fs()->group_desc) + table);
    const Model untouched(*volume);

    for (int round = 0; round < shape.rounds * kPercent / 100; ++round) {
        const uint64_t seed = GetParam() * 1000 + static_cast<uint64_t>(round);
        SCOPED_TRACE(testing::Message() << shape.name << " seed " << seed);
        std::mt19937_64 random(seed);
        const auto below = [&](uint64_t n) { return random() % n; };
        {
            Transaction transaction(*volume);
            Model model = untouched;
            fragment(*volume, model, random);
            std::vector<PblkRun> ours;
            std::vector<PblkRun> windows;
            for (int step = 0; step < 25; ++step) {
                const int order = static_cast<int>(below(static_cast<uint64_t>(max_order) + 2));
                const Pblk goal(below(model.size() + 10));
                switch (below(8)) {
                    case 0:
                    case 1:
                    case 2: {
                        const auto run = allocator.allocate(order, goal);
                        ASSERT_EQ(run.has_value(), model.has_aligned_run(order)) << order;
                        if (!run) {
                            ASSERT_EQ(run.error().code, ENOSPC) << run.error().message;
                            break;
                        }
                        ASSERT_EQ(run->length.value(), uint64_t{1} << order);
                        expect_good(model, *run, run->length.value());
                        model.set(*run, true);
                        ours.push_back(*run);
                        break;
                    }
                    case 3: {
                        const uint64_t there = model.aligned_runs(order);
                        const uint64_t count = below(there + 3);
                        const auto runs = allocator.allocate_units(order, count, goal);
                        ASSERT_EQ(runs.has_value(), count <= there) << order << " x " << count;
                        if (!runs) {
                            ASSERT_EQ(runs.error().code, ENOSPC) << runs.error().message;
                            break;
                        }
                        uint64_t total = 0;
                        for (const PblkRun& run : *runs) {
                            expect_good(model, run, uint64_t{1} << order);
                            ASSERT_EQ(run.length.value() % (uint64_t{1} << order), 0u);
                            total += run.length.value();
                            model.set(run, true);
                            ours.push_back(run);
                        }
                        ASSERT_EQ(total, count << order);
                        break;
                    }
                    case 4: {
                        const auto block = allocator.choose_block(goal);
                        ASSERT_EQ(block.has_value(), model.has_aligned_run(0));
                        if (block) {
                            expect_good(model, {*block, Blocks(1)}, 1);
                        }
                        break;
                    }
                    case 5: {
                        if (ours.empty()) break;
                        const size_t which = below(ours.size());
                        must(allocator.free(ours[which]));
                        model.set(ours[which], false);
                        ours.erase(ours.begin() + static_cast<std::ptrdiff_t>(which));
                        break;
                    }
                    case 6: {
                        const auto run = allocator.reserve(order, goal);
                        ASSERT_EQ(run.has_value(), model.has_aligned_run(order)) << order;
                        if (!run) break;
                        expect_good(model, *run, run->length.value());
                        model.reserve(*run, true);
                        windows.push_back(*run);
                        break;
                    }
                    default: {
                        if (windows.empty()) break;
                        PblkRun& window = windows[below(windows.size())];
                        if (window.length.value() == 0) break;
                        if (below(3) == 0) {
                            allocator.release_reserved(window);
                            model.reserve(window, false);
                            window.length = Blocks(0);
                            break;
                        }
                        // A part from its front is taken, the rest stays hidden.
                        const PblkRun part{window.start, Blocks(below(window.length.value()) + 1)};
                        must(allocator.take_reserved(part));
                        model.reserve(part, false);
                        model.set(part, true);
                        ours.push_back(part);
                        window = {part.start + part.length, window.length - part.length};
                        break;
                    }
                }
            }
            model.expect_same();
            for (uint64_t block = 0; block < model.size() + 5; block += 1 + below(4)) {
                ASSERT_EQ(must(allocator.is_free(Pblk(block))), model.run_is_free(block, 1))
                    << block;
            }
            if (testing::Test::HasFailure()) return;
            allocator.release_all_reserved();
            model.release_all();
            for (int order = 0; order <= max_order + 1; ++order) {
                ASSERT_EQ(allocator.reserve(order, Pblk(0)).has_value(),
                          model.has_aligned_run(order))
                    << order;
                allocator.release_all_reserved();
            }
            // The transaction goes without commit.
        }
        untouched.expect_same();
        ASSERT_EQ(std::memcmp(&super_before, volume->fs()->super, sizeof super_before), 0);
        ASSERT_EQ(std::memcmp(descriptors_before.data(), volume->fs()->group_desc, table), 0);
        for (int order = 0; order <= max_order + 1; ++order) {
            ASSERT_EQ(allocator.reserve(order, Pblk(0)).has_value(),
                      untouched.has_aligned_run(order))
                << order;
            allocator.release_all_reserved();
        }
        if (testing::Test::HasFailure()) return;
    }
    EXPECT_TRUE(memory.contents() == before);
}

// What is allocated and committed, then freed and committed, leaves a volume that e2fsck likes: the
// counts, flags and checksums of the groups that lost their "uninitialised" are right.
TEST_P(AllocatorOracle, CommittedChangesPassE2fsck) {
    const Shape& shape = shapes()[GetParam()];
    MemoryDevice memory(make_ext4(shape.size, shape.arguments));
    const auto volume = open_volume(memory);
    std::vector<PblkRun> runs;
    {
        Transaction transaction(*volume);
        const uint64_t units = volume->allocator().available() / 2 / 8;
        runs = must(volume->allocator().allocate_units(3, units / 2, Pblk(0)));
        must(transaction.commit());
    }
    {
        Transaction transaction(*volume);
        for (const PblkRun& run : runs) must(volume->allocator().free(run));
        must(transaction.commit(Transaction::Order::Freeing));
    }
    EXPECT_EQ(fsck_complaints(memory.contents()), "");
}

INSTANTIATE_TEST_SUITE_P(Shapes, AllocatorOracle, testing::Range<size_t>(0, shapes().size()),
                         [](const auto& info) { return std::string(shapes()[info.param].name); });

// A failed allocate_units gives back what it had, also without an abort.
TEST(Allocator, AllOrNothing) {
    MemoryDevice memory(make_ext4(4 << 20, {"-b", "1024"}));
    const auto volume = open_volume(memory);
    Transaction transaction(*volume);
    const Model model(*volume);
    const uint64_t there = model.aligned_runs(4);
    EXPECT_EQ(code_of(volume->allocator().allocate_units(4, there + 1, Pblk(0))), ENOSPC);
    model.expect_same();
    EXPECT_EQ(code_of(volume->allocator().allocate_units(4, ~uint64_t{0} / 3, Pblk(0))), ENOSPC);
    model.expect_same();
    EXPECT_TRUE(must(volume->allocator().allocate_units(4, 0, Pblk(0))).empty());
    uint64_t blocks = 0;
    for (const PblkRun& run : must(volume->allocator().allocate_units(4, there, Pblk(0))))
        blocks += run.length.value();
    EXPECT_EQ(blocks, there * 16);
}

TEST(Allocator, OrderBeyondAZoneIsNoSpace) {
    MemoryDevice memory(make_ext4(20 << 20, {"-b", "1024"}));
    const auto volume = open_volume(memory);
    Transaction transaction(*volume);
    EXPECT_EQ(code_of(volume->allocator().allocate(volume->allocator().max_order() + 1, Pblk(0))),
              ENOSPC);
}

// A used block marked used, or a free one freed, is damage, and changes nothing.
TEST(Allocator, EveryChangeFlipsEveryBit) {
    MemoryDevice memory(make_ext4(4 << 20, {"-b", "1024"}));
    const auto volume = open_volume(memory);
    Transaction transaction(*volume);
    const PblkRun run = must(volume->allocator().allocate(4, Pblk(0)));
    must(volume->allocator().free({run.start + Blocks(3), Blocks(1)}));
    const Model model(*volume);
    EXPECT_EQ(code_of(volume->allocator().free(run)), EUCLEAN);
    const dgrp_t group = ext2fs_group_of_blk2(volume->fs(), run.start.value());
    const auto bit =
        static_cast<uint32_t>(run.start.value() - ext2fs_group_first_block2(volume->fs(), group));
    EXPECT_EQ(code_of(volume->block_bitmaps().set(group, bit, 16, true)), EUCLEAN);
    EXPECT_EQ(code_of(volume->block_bitmaps().set(group, volume->block_bitmaps().bits_in(group) - 1,
                                                  2, true)),
              EUCLEAN);
    model.expect_same();
}

// The nearest zone at or after the goal, and in it the nearest block.
TEST(Allocator, StaysNearTheGoal) {
    MemoryDevice memory(make_ext4(40 << 20, {"-b", "1024"}));
    const auto volume = open_volume(memory);
    AlignedAllocator& allocator = volume->allocator();
    const uint64_t zone = allocator.zone_size().value();
    Transaction transaction(*volume);
    for (const uint64_t goal : {3 * zone + 100, 2 * zone, zone + 4096, 4 * zone + 1}) {
        const Model model(*volume);
        for (const int order : {0, 2, 4, 8}) {
            const PblkRun run = must(allocator.allocate(order, Pblk(goal)));
            // Nothing free and aligned lies between the goal and what came.
            EXPECT_GE(run.start.value(), goal);
            EXPECT_LT(run.start.value() / zone, goal / zone + 1);
            must(allocator.free(run));
            for (uint64_t at = round_up(goal, uint64_t{1} << order); at < run.start.value();
                 at += uint64_t{1} << order)
                EXPECT_FALSE(model.run_is_free(at, uint64_t{1} << order)) << at;
        }
    }
    // No whole zone is left behind the goal: round to the first one.
    const PblkRun wrapped = must(allocator.allocate(allocator.max_order(), Pblk(5 * zone - 1)));
    EXPECT_LT(wrapped.start.value(), 5 * zone);
}

// Single blocks for trees and directories come from where the least aligned space is spoilt.
TEST(Allocator, ChooseBlockSparesAlignedRuns) {
    MemoryDevice memory(make_ext4(40 << 20, {"-b", "1024"}));
    const auto volume = open_volume(memory);
    AlignedAllocator& allocator = volume->allocator();
    Transaction transaction(*volume);
    Model model(*volume);
    const uint64_t zone = allocator.zone_size().value();
    // Zone 3 is full but for single blocks.
    for (uint64_t block = 3 * zone; block < 4 * zone; ++block) {
        if (!model.used(block) && block % 2 == 0) mark(*volume, model, block, 1, true);
    }
    // The order of a zone is known once somebody has asked for it.
    (void)allocator.allocate(1, Pblk(3 * zone));
    const Pblk block = must(allocator.choose_block(Pblk(0)));
    EXPECT_EQ(block.value() / zone, 3u);
}

// John Garry's report in the RFC's thread: 358,400 blocks of 1 KiB. Groups start at block 1, so
// what is aligned inside a group is off by one on the device.
TEST(Allocator, JohnGarrysVolume) {
    const TempDir dir;
    const std::string path = make_john_garrys_volume(dir);
    auto device = must(FileDevice::open(path, {Access::ReadWrite, true}));
    const auto volume = open_volume(*device);
    ASSERT_EQ(volume->fs()->super->s_first_data_block, 1u);
    ASSERT_EQ(ext2fs_blocks_count(volume->fs()->super), 358400u);
    Transaction transaction(*volume);
    for (int order = 0; order <= volume->allocator().max_order(); ++order) {
        for (const uint64_t goal : {1u, 8193u, 16385u, 200001u}) {
            const PblkRun run = must(volume->allocator().allocate(order, Pblk(goal)));
            EXPECT_EQ(run.start.value() % run.length.value(), 0u);
            if (order > 0) {
                // Seen from its group it is misaligned: the group's first block is odd.
                const dgrp_t group = ext2fs_group_of_blk2(volume->fs(), run.start.value());
                EXPECT_NE((run.start.value() - ext2fs_group_first_block2(volume->fs(), group)) %
                              run.length.value(),
                          0u);
            }
        }
    }
    const PblkRun unit = must(volume->allocator().allocate(2, Pblk(1)));
    EXPECT_EQ(unit.start.value() % 4, 0u);
}

// Root's share stays root's, in every kind of request.
TEST(Allocator, ReservedShareIsNotTaken) {
    const Image image = make_ext4(8 << 20, {"-b", "1024", "-m", "25"});
    for (const bool root : {false, true}) {
        SCOPED_TRACE(root);
        MemoryDevice memory(image);
        const auto volume = open_volume(memory, OpenFor::Write, false, root);
        AlignedAllocator& allocator = volume->allocator();
        ext2_super_block& super = *volume->fs()->super;
        const uint64_t share = ext2fs_r_blocks_count(&super);
        ASSERT_EQ(share, 2048u);
        Transaction transaction(*volume);
        EXPECT_EQ(allocator.available(), ext2fs_free_blocks_count(&super) - (root ? 0 : share));
        const PblkRun window = must(allocator.reserve(3, Pblk(0)));
        while (allocator.allocate(5, Pblk(0)) || allocator.allocate(0, Pblk(0)))
            ASSERT_GE(ext2fs_free_blocks_count(&super), root ? 0 : share);
        // The window was only hidden, and taking it counts against the share too.
        EXPECT_EQ(ext2fs_free_blocks_count(&super), root ? 8u : share);
        EXPECT_EQ(code_of(allocator.allocate(0, Pblk(0))), ENOSPC);
        EXPECT_EQ(code_of(allocator.choose_block(Pblk(0))), ENOSPC);
        EXPECT_EQ(code_of(allocator.allocate_units(0, 1, Pblk(0))), ENOSPC);
        const auto taken = allocator.take_reserved(window);
        EXPECT_EQ(code_of(taken), root ? 0 : ENOSPC);
        if (!root) {
            EXPECT_THAT(message_of(taken), testing::HasSubstr("reserved for root"));
            EXPECT_EQ(ext2fs_free_blocks_count(&super), share);
        }
    }
}

// A bitmap that disagrees with its checksum is never allocated from.
TEST(Allocator, BadBitmapRefusesItsGroup) {
    Image image = make_ext4(20 << 20, {"-b", "1024"});
    uint64_t at = 0;
    {
        MemoryDevice memory(image);
        const auto volume = open_volume(memory);
        ASSERT_FALSE(ext2fs_bg_flags_test(volume->fs(), 1, EXT2_BG_BLOCK_UNINIT));
        at = ext2fs_block_bitmap_loc(volume->fs(), 1) * 1024;
    }
    image[at + 700] ^= std::byte{4};
    MemoryDevice memory(image);
    const auto volume = open_volume(memory);
    {
        Transaction transaction(*volume);
        const auto refused = volume->block_bitmaps().get(1);
        EXPECT_EQ(code_of(refused), EUCLEAN);
        EXPECT_THAT(message_of(refused), testing::HasSubstr("e2fsck"));
        // Another group serves.
        const PblkRun run = must(volume->allocator().allocate(0, Pblk(8193)));
        EXPECT_NE(ext2fs_group_of_blk2(volume->fs(), run.start.value()), 1u);
        EXPECT_TRUE(volume->allocator().free({Pblk(9000), Blocks(1)}));
        EXPECT_TRUE(volume->allocator().allocate(0, Pblk(100)));
    }
    EXPECT_TRUE(memory.contents() == image);
}

// The bitmap may be sound and the descriptor's count wrong: also damage.
TEST(Allocator, CountThatDisagreesRefusesItsGroup) {
    MemoryDevice memory(make_ext4(20 << 20, {"-b", "1024", "-O", "^metadata_csum,^uninit_bg"}));
    const auto volume = open_volume(memory);
    const uint32_t free = ext2fs_bg_free_blocks_count(volume->fs(), 1);
    ext2fs_bg_free_blocks_count_set(volume->fs(), 1, free - 1);
    Transaction transaction(*volume);
    EXPECT_EQ(code_of(volume->block_bitmaps().get(1)), EUCLEAN);
    EXPECT_TRUE(volume->block_bitmaps().get(0));
}

}  // namespace
}  // namespace atomic4::test
