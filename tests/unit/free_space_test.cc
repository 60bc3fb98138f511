// The survey of free space against two judges: brute force over the bitmap that libext2fs reads,
// and e2freefrag(8).
#include "check/free_space.h"

#include <algorithm>
#include <bit>
#include <random>
#include <regex>

#include "check/free_space_picture.h"
#include "support/free_bitmap.h"
#include "unit/volume_fixture.h"

namespace atomic4::test {
namespace {

std::vector<bool> free_by_libext2fs(const Image& image) {
    const TempDir dir;
    store_image(without_our_bits(image), dir.file("image"));
    return free_blocks_of(dir.file("image"));
}

std::vector<PblkRun> pieces_of(const std::vector<bool>& is_free) {
    std::vector<PblkRun> pieces;
    for (uint64_t block = 0; block < is_free.size(); ++block) {
        if (!is_free[block]) continue;
        if (block == 0 || !is_free[block - 1]) pieces.push_back({Pblk(block), Blocks(0)});
        pieces.back().length += Blocks(1);
    }
    return pieces;
}

void expect_as_brute_force(const Image& image, const FreeSpace& space) {
    const std::vector<bool> is_free = free_by_libext2fs(image);
    EXPECT_EQ(space.blocks.value(), is_free.size());
    EXPECT_EQ(space.free.value(), std::count(is_free.begin(), is_free.end(), true));
    EXPECT_EQ(space.units.front().unit, space.block_size);
    EXPECT_EQ(space.units.back().unit, Bytes(4 << 20));
    for (const FreeSpace::Unit& unit : space.units)
        EXPECT_EQ(unit.runs, aligned_runs(is_free, unit.unit.value() / space.block_size.value()))
            << unit.unit.value();

    std::vector<FreeSpace::Piece> sizes;
    PblkRun longest{};
    for (const PblkRun& piece : pieces_of(is_free)) {
        const auto size = static_cast<size_t>(std::bit_width(piece.length.value()) - 1);
        if (sizes.size() <= size) sizes.resize(size + 1);
        ++sizes[size].count;
        sizes[size].blocks += piece.length;
        if (piece.length > longest.length) longest = piece;
    }
    ASSERT_EQ(space.pieces.size(), sizes.size());
    for (size_t size = 0; size < sizes.size(); ++size) {
        EXPECT_EQ(space.pieces[size].length, space.block_size * (uint64_t{1} << size));
        EXPECT_EQ(space.pieces[size].count, sizes[size].count) << size;
        EXPECT_EQ(space.pieces[size].blocks, sizes[size].blocks) << size;
    }
    EXPECT_EQ(space.longest, longest);
    const uint64_t run = space.largest_aligned.length.value();
    if (run == 0) {
        EXPECT_EQ(space.free.value(), 0u);
        return;
    }
    EXPECT_TRUE(is_power_of_two(run));
    EXPECT_TRUE(is_aligned(space.largest_aligned.start.value(), run));
    EXPECT_EQ(aligned_runs(is_free, run * 2), 0u);
    for (uint64_t i = 0; i < run; ++i)
        EXPECT_TRUE(is_free[space.largest_aligned.start.value() + i]);
}

struct Freefrag {
    uint64_t free_blocks = 0;
    std::vector<std::array<uint64_t, 2>> sizes;  // extents and blocks of each line
};
Freefrag e2freefrag(const Image& image) {
    const TempDir dir;
    store_image(without_our_bits(image), dir.file("image"));
    const CommandOutput result = run_command({"e2freefrag", dir.file("image")});
    if (result.status != 0) throw std::runtime_error(result.output);
    Freefrag found;
    std::smatch match;
    if (std::regex_search(result.output, match, std::regex("Free blocks: ([0-9]+)")))
        found.free_blocks = std::stoull(match[1]);
    const std::regex line(R"(([0-9]+)([KMG])\.\.\. +[0-9]+[KMG]- +: +([0-9]+) +([0-9]+) +)");
    for (std::sregex_iterator it(result.output.begin(), result.output.end(), line), end; it != end;
         ++it)
        found.sizes.push_back({std::stoull((*it)[3]), std::stoull((*it)[4])});
    return found;
}

// A volume in use: every second of a random number of files is gone again.
Image fragmented(Image image, uint64_t seed) {
    std::mt19937_64 random(seed);
    MemoryDevice memory(std::move(image));
    const auto volume = open_volume(memory);
    std::vector<PblkRun> taken;
    Transaction transaction(*volume);
    for (int i = 0; i < 400; ++i) {
        const int order = static_cast<int>(random() % 6);
        const auto run = volume->allocator().allocate(order, Pblk(random() % 20000));
        if (run) taken.push_back(*run);
    }
    for (const PblkRun& run : taken) {
        if (random() % 2 == 0) must(volume->allocator().free(run));
    }
    must(transaction.commit());
    return memory.contents();
}

struct Layout {
    const char* name;
    uint64_t size;
    std::vector<std::string> arguments;
};
const std::vector<Layout>& layouts() {
    static const std::vector<Layout> all{
        {"1k", 24 << 20, {"-b", "1024"}},
        {"1k_small_groups", 4 << 20, {"-b", "1024", "-g", "264", "-N", "64"}},
        {"1k_short_last_group", (8 << 20) + 7 * 1024, {"-b", "1024"}},
        {"1k_no_csum", 16 << 20, {"-b", "1024", "-O", "^metadata_csum,^uninit_bg"}},
        {"2k_no_flex_bg", 40 << 20, {"-b", "2048", "-O", "^flex_bg"}},
        {"2k_meta_bg", 40 << 20, {"-b", "2048", "-O", "meta_bg,^resize_inode"}},
        {"4k", 64 << 20, {"-b", "4096"}},
        {"4k_no_64bit", 140 << 20, {"-b", "4096", "-O", "^64bit"}},
        {"4k_sparse_super2", 64 << 20, {"-b", "4096", "-O", "sparse_super2,^resize_inode"}},
    };
    return all;
}

class FreeSpaceSurvey : public testing::TestWithParam<size_t> {};

TEST_P(FreeSpaceSurvey, AgreesWithBruteForceAndE2freefrag) {
    const Layout& layout = layouts()[GetParam()];
    const Image fresh = make_ext4(layout.size, layout.arguments);
    for (const Image& image : {fresh, fragmented(fresh, GetParam()), fragmented(fresh, 77)}) {
        MemoryDevice memory(image);
        const auto volume = open_volume(memory, OpenFor::Inspect);
        const FreeSpace space = must(measure_free_space(*volume));
        EXPECT_TRUE(space.damaged.empty());
        expect_as_brute_force(image, space);

        const Freefrag theirs = e2freefrag(image);
        EXPECT_EQ(theirs.free_blocks, space.free.value());
        // Lines of no extents are left out there.
        std::vector<std::array<uint64_t, 2>> ours;
        for (const FreeSpace::Piece& piece : space.pieces) {
            if (piece.count != 0) ours.push_back({piece.count, piece.blocks.value()});
        }
        EXPECT_EQ(theirs.sizes, ours);
    }
}
INSTANTIATE_TEST_SUITE_P(Layouts, FreeSpaceSurvey, testing::Range(size_t{0}, layouts().size()),
                         [](const auto& info) { return layouts()[info.param].name; });

TEST(FreeSpaceSurveyMore, AFullVolumeHasNothing) {
    Image image = make_ext4(8 << 20, {"-b", "1024", "-m", "0"});
    MemoryDevice memory(std::move(image));
    {
        const auto volume = open_volume(memory);
        Transaction transaction(*volume);
        while (volume->allocator().allocate(0, Pblk(0))) {
        }
        must(transaction.commit());
    }
    const auto volume = open_volume(memory, OpenFor::Inspect);
    const FreeSpace space = must(measure_free_space(*volume));
    expect_as_brute_force(memory.contents(), space);
    EXPECT_EQ(space.free.value(), 0u);
    EXPECT_EQ(space.usable_percent(space.units[0]), 0);
    EXPECT_THAT(free_space_text(space, "vol"), testing::HasSubstr("nothing is free"));
    EXPECT_THAT(free_space_svg(space, "vol"), testing::HasSubstr("nothing is free"));
}

TEST(FreeSpaceSurveyMore, WorksOnAnAtomic4VolumeWithLiveRecordsToo) {
    Image image = make_atomic4(64 << 20, {"-b", "4096"});
    edit_super(image, [](ext2_super_block& super) { super.s_feature_incompat |= 0x10000000; });
    MemoryDevice memory(image);
    const auto volume = open_volume(memory, OpenFor::Inspect);
    expect_as_brute_force(image, must(measure_free_space(*volume)));
}

TEST(FreeSpaceSurveyMore, DamagedGroupsAreLeftOutAndNamed) {
    Image image = fragmented(make_ext4(24 << 20, {"-b", "1024"}), 3);
    const FreeSpace whole = [&] {
        MemoryDevice memory(image);
        return must(measure_free_space(*open_volume(memory, OpenFor::Inspect)));
    }();
    // Group 1's bitmap, and group 2's descriptor.
    uint64_t bitmap = 0;
    uint64_t lost = 0;
    {
        MemoryDevice memory(image);
        const auto volume = open_volume(memory, OpenFor::Inspect);
        bitmap = ext2fs_block_bitmap_loc(volume->fs(), 1);
        lost = ext2fs_bg_free_blocks_count(volume->fs(), 1) +
               ext2fs_bg_free_blocks_count(volume->fs(), 2);
        ASSERT_FALSE(ext2fs_bg_flags_test(volume->fs(), 1, EXT2_BG_BLOCK_UNINIT));
    }
    image[bitmap * 1024 + 100] ^= std::byte{1};
    const size_t descriptor = size_t{2} * 1024 + size_t{2} * 64;  // the table begins in block 2
    image[descriptor + 0x1e] ^= std::byte{1};                     // its checksum

    MemoryDevice memory(image);
    const auto volume = open_volume(memory, OpenFor::Inspect);
    const FreeSpace space = must(measure_free_space(*volume));
    ASSERT_EQ(space.damaged.size(), 2u);
    EXPECT_TRUE(space.damaged.contains(1));
    EXPECT_TRUE(space.damaged.contains(2));
    EXPECT_EQ(space.free.value(), whole.free.value() - lost);
    EXPECT_THAT(free_space_text(space, "vol"), testing::HasSubstr("2 groups left out"));
    EXPECT_THAT(free_space_svg(space, "vol"), testing::HasSubstr("2 groups left out"));
    EXPECT_EQ(memory.contents(), image);
}

// Reads fail once they are told to.
class FailingReads final : public ForwardingDevice {
  public:
    using ForwardingDevice::ForwardingDevice;
    bool fails = false;
    Result<> read(ByteOffset offset, std::span<std::byte> into) override {
        if (fails) return fail(EIO, "read at {}: Input/output error", offset);
        return below_.read(offset, into);
    }
};

TEST(FreeSpaceSurveyMore, AnErrorIsAnErrorNotDamage) {
    MemoryDevice memory(make_ext4(24 << 20, {"-b", "1024"}));
    FailingReads device(memory);
    const auto volume = open_volume(device, OpenFor::Inspect);
    device.fails = true;
    const auto space = measure_free_space(*volume);
    ASSERT_FALSE(space);
    EXPECT_EQ(space.error().code, EIO);
    EXPECT_THAT(space.error().message, testing::HasSubstr("group 0"));
}

}  // namespace
}  // namespace atomic4::test
