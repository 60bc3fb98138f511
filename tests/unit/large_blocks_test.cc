// Blocks of 64 KiB: owned only, since x86 kernels mount none larger than a page. e2fsck is the
// judge.
#include "ext4/zone_index.h"
#include "unit/layout_fixture.h"
#include "writer/adopt.h"

namespace atomic4::test {
namespace {

constexpr uint64_t kBlock = 65536;
constexpr uint64_t kSize = uint64_t{128} << 20;

TEST(LargeBlocks, UnitsUpToFourMebibytes) {
    for (const uint64_t unit : {kBlock, 4 * kBlock, 64 * kBlock}) {
        SCOPED_TRACE(unit);
        Opened opened(make_dirty_atomic4(kSize, {"-b", "65536"}));
        const ext2_ino_t inode =
            must(create_atomic_file(*opened.volume, "/file", {Bytes(2 * unit + 1), Bytes(unit)}));
        const LayoutReport layout =
            must(check_layout(*opened.volume, opened.state(inode), Bytes(unit)));
        EXPECT_EQ(layout.problems, 0u);
        EXPECT_EQ(layout.units_mapped, 3u);
        EXPECT_EQ(fsck_complaints(opened.image()), "");
        EXPECT_TRUE(dump_file(opened.image(), "/file") == Image(2 * unit + 1));
    }
}

TEST(LargeBlocks, TheUnitIsABlockAtLeast) {
    MemoryDevice memory(make_ext4(kSize, {"-b", "65536"}));
    const auto volume = open_volume(memory);
    EnableOptions options;
    options.unit = Bytes(16384);
    EXPECT_EQ(code_of(enable(*volume, options)), EINVAL);
    EXPECT_EQ(must(enable(*volume, {})).unit, Bytes(kBlock));
}

// Block 0 holds the superblock and 63 KiB more: only the 4 KiB around it are written.
TEST(LargeBlocks, TheSuperblockIsOneAlignedWrite) {
    MemoryDevice memory(make_atomic4(kSize, {"-b", "65536"}));
    RecordingDevice recorder(memory);
    const auto volume = open_volume(recorder);
    must(volume->write_needs_replay(true));
    ASSERT_EQ(recorder.events.size(), 2u);
    EXPECT_EQ(recorder.events[0].offset, ByteOffset(0));
    EXPECT_EQ(recorder.events[0].length, Bytes(4096));
    must(volume->write_needs_replay(false));
    EXPECT_EQ(fsck_complaints(memory.contents()), "");
}

// Zones are as large as their index allows, not 8 blocks for each byte of one.
TEST(LargeBlocks, ZonesFitTheirIndex) {
    MemoryDevice memory(make_atomic4(kSize, {"-b", "65536"}));
    const auto volume = open_volume(memory);
    EXPECT_LT(volume->allocator().max_order(), ZoneIndex::kOrders);
    EXPECT_EQ(code_of(volume->allocator().allocate(volume->allocator().max_order(), Pblk(0))),
              ENOSPC);
}

// Misaligned, in pieces, with holes, unwritten blocks before EOF and beyond it.
class AdoptLargeBlocks : public LayoutTest, public testing::WithParamInterface<uint64_t> {};

TEST_P(AdoptLargeBlocks, KeepsTheContents) {
    const Bytes unit(GetParam());
    open(make_dirty_atomic4(kSize / 2, {"-b", "65536"}));
    const uint64_t size = 30 * kBlock - 100;
    const ext2_ino_t number = craft("/file", size, 0,
                                    {{0, 3, 1},
                                     {3, 5, 8},
                                     {9, 2, 40, MapState::Unwritten},
                                     {16, 4, 16},
                                     {29, 1, 77},
                                     {32, 2, 90, MapState::Unwritten}});
    // What is left of the last block is zero, as the kernel keeps it.
    const auto last = must(map_range(*volume, number, state(number).inode, Lblk(29), Blocks(1)));
    must(volume->device().zero(ByteOffset((last[0].pblk.value() + 1) * kBlock - 100), Bytes(100)));
    ASSERT_EQ(fsck_complaints(image()), "");
    const Image before = dump_file(image(), "/file");
    ASSERT_EQ(before.size(), size);

    const AdoptReport report = must(adopt_file(*volume, number, unit));
    EXPECT_TRUE(report.changed);
    EXPECT_EQ(report.units_moved > 0, unit > Bytes(kBlock)) << "a block is aligned by itself";
    EXPECT_TRUE(state(number).atomic);
    EXPECT_EQ(state(number).unit, unit);
    EXPECT_TRUE(faults(number, unit.value()).empty());
    EXPECT_TRUE(dump_file(image(), "/file") == before);
    EXPECT_TRUE(content(number) == before) << "we read something else than debugfs";
    EXPECT_EQ(fsck_complaints(image()), "");
    EXPECT_FALSE(must(adopt_file(*volume, number, unit)).changed);
}

INSTANTIATE_TEST_SUITE_P(Units, AdoptLargeBlocks, testing::Values(kBlock, 2 * kBlock, 16 * kBlock),
                         testing::PrintToStringParamName());

// A primary superblock with a wrong checksum is proved against a copy, wherever blocks put that.
TEST(LargeBlocks, SuperblockRepair) {
    for (const std::vector<std::string>& arguments :
         {std::vector<std::string>{"-b", "65536", "-g", "1024"},
          {"-b", "1024", "-O", "bigalloc", "-C", "16384", "-g", "256"},
          {"-b", "4096", "-O", "bigalloc", "-C", "65536", "-g", "256"}}) {
        SCOPED_TRACE(testing::PrintToString(arguments));
        Image image = make_atomic4(uint64_t{256} << 20, arguments);
        image[kSuperOffset + offsetof(ext2_super_block, s_checksum)] ^= std::byte{1};
        MemoryDevice memory(image);
        {
            const auto volume = open_volume(memory);
            ASSERT_EQ(volume->notices().size(), 1u);
        }
        EXPECT_TRUE(raw_super(memory.contents()).checksum_right);
        EXPECT_EQ(fsck_complaints(memory.contents()), "");
    }
}

}  // namespace
}  // namespace atomic4::test
