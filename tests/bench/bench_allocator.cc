// The allocator by itself, with Google Benchmark: how many aligned runs a second, on empty and on
// fragmented maps; how that changes from 10^3 to 10^5 groups; and how long a volume takes to open.
//   bench_allocator [--benchmark_filter=REGEX] [--benchmark_min_time=SECONDS] …
//
// Volumes are sparse images, of 4 KiB blocks, with bitmaps that mke2fs has left uninitialised; what
// is in use there is marked in memory, in a transaction that is never committed. So an allocation
// costs what it does while bitmaps are in memory or computed; reading one from a disk comes on top.
// Goals are random: on the empty map, where no bitmap has been marked, nearly every allocation
// computes one anew (those that change stay in memory until the transaction ends, the others only
// for a while).

#include <benchmark/benchmark.h>
#include <unistd.h>

#include <random>
#include <vector>

#include "bench/bench.h"
#include "device/file_device.h"
#include "ext4/transaction.h"
#include "support/loop.h"

namespace atomic4::bench {
namespace {

constexpr uint64_t kBlock = 4 * kKiB;
constexpr uint64_t kGroup = 128 * kMiB;

// A sparse plain ext4, as long as it is the last one asked for.
const std::string& image_of(uint64_t size) {
    static const test::TempDir directory;
    static std::string path;
    std::string wanted = directory.file(std::to_string(size) + ".img");
    if (path == wanted) return path;
    if (!path.empty()) must(::unlink(path.c_str()) == 0, path);
    path = std::move(wanted);
    test::make_image(path, size);
    run_program({"mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-E",
                 "lazy_itable_init=1,lazy_journal_init=1,nodiscard", path});
    return path;
}

std::unique_ptr<Volume> open_image(const std::string& path) {
    VolumeOptions options;
    options.purpose = OpenFor::Write;
    options.require_atomic4 = false;
    options.may_use_reserved = true;
    return must(Volume::open(must(FileDevice::open(path, {.access = Access::ReadWrite})), options));
}

// Marks so many per cent of each group as in use, in pieces of 1 to 16 blocks between free ones
// that make up the rest.
void fragment(Volume& volume, unsigned percent, std::mt19937_64& random) {
    GroupBitmaps& bitmaps = volume.block_bitmaps();
    for (uint32_t group = 0; group < volume.fs()->group_desc_count; ++group) {
        const GroupBitmaps::Bits before = *must(bitmaps.get(group));
        const auto in_use = [&](uint32_t bit) { return (before[bit / 8] >> (bit % 8) & 1) != 0; };
        const uint32_t count = bitmaps.bits_in(group);
        for (uint32_t bit = 0; bit < count;) {
            const auto length = std::min<uint32_t>(count - bit, random() % 16 + 1);
            bool take = random() % 100 < percent;
            for (uint32_t i = 0; i < length && take; ++i) take = !in_use(bit + i);
            if (take) must(bitmaps.set(group, bit, length, true));
            bit += length;
        }
    }
    std::vector<uint32_t> all(volume.fs()->group_desc_count);
    for (uint32_t group = 0; group < all.size(); ++group) all[group] = group;
    volume.allocator().groups_changed(all);
}

// Takes runs near random places and, off the clock, gives them back.
void allocate(benchmark::State& state, Volume& volume, int order) {
    constexpr int kBatch = 64;
    AlignedAllocator& allocator = volume.allocator();
    const uint64_t blocks = ext2fs_blocks_count(volume.fs()->super);
    std::mt19937_64 random(3);
    std::vector<PblkRun> taken;
    taken.reserve(kBatch);
    int64_t none = 0;
    for (auto _ : state) {
        for (int i = 0; i < kBatch; ++i) {
            const auto run = allocator.allocate(order, Pblk(random() % blocks));
            if (run)
                taken.push_back(*run);
            else
                ++none;
        }
        state.PauseTiming();
        for (const PblkRun& run : taken) must(allocator.free(run));
        taken.clear();
        state.ResumeTiming();
    }
    state.SetItemsProcessed(state.iterations() * kBatch);
    if (none != 0) state.counters["refused"] = static_cast<double>(none);
}

// Arguments: how full in per cent, and the unit. 200 groups.
void BM_Allocate(benchmark::State& state) {
    const auto volume = open_image(image_of(200 * kGroup));
    const Transaction undone(*volume);
    std::mt19937_64 random(5);
    if (state.range(0) != 0) fragment(*volume, static_cast<unsigned>(state.range(0)), random);
    int order = 0;
    while (kBlock << order < static_cast<uint64_t>(state.range(1))) ++order;
    allocate(state, *volume, order);
    state.SetLabel(fmt::format("{} % full, unit {}", state.range(0),
                               as_size(static_cast<uint64_t>(state.range(1)))));
}
BENCHMARK(BM_Allocate)
    ->ArgNames({"full", "unit"})
    ->ArgsProduct({{0, 50, 90}, {4096, 16384, 65536, 1 << 20}});

// Arguments: groups, and how many per cent of them are full (by their descriptors, which is all
// that the allocator looks at there).
void BM_Groups(benchmark::State& state) {
    const auto volume = open_image(image_of(static_cast<uint64_t>(state.range(0)) * kGroup));
    const Transaction undone(*volume);
    std::mt19937_64 random(7);
    std::vector<uint32_t> full;
    for (uint32_t group = 0; group < volume->fs()->group_desc_count; ++group) {
        if (random() % 100 >= static_cast<uint64_t>(state.range(1))) continue;
        ext2fs_bg_free_blocks_count_set(volume->fs(), group, 0);
        full.push_back(group);
    }
    volume->allocator().groups_changed(full);
    allocate(state, *volume, 2);
    state.SetLabel(fmt::format("{} % of the groups full, unit 16K", state.range(1)));
}
BENCHMARK(BM_Groups)
    ->ArgNames({"groups", "full"})
    ->ArgsProduct({{1000, 10'000, 100'000}, {0, 90, 99}});

void open(benchmark::State& state, OpenFor purpose) {
    const std::string& path = image_of(static_cast<uint64_t>(state.range(0)) * kGiB);
    VolumeOptions options;
    options.purpose = purpose;
    options.require_atomic4 = false;
    for (auto _ : state) {
        auto volume = must(
            Volume::open(must(FileDevice::open(path, {.access = Access::ReadWrite})), options));
        benchmark::DoNotOptimize(volume);
        state.PauseTiming();
        volume.reset();
        state.ResumeTiming();
    }
    state.SetLabel(as_size(static_cast<uint64_t>(state.range(0)) * kGiB));
}
void BM_OpenToRead(benchmark::State& state) {
    open(state, OpenFor::Read);
}
void BM_OpenToWrite(benchmark::State& state) {
    open(state, OpenFor::Write);
}
void sizes(benchmark::internal::Benchmark* bench) {
    bench->ArgName("GiB")->Arg(1)->Arg(64)->Arg(1024)->Arg(15360)->Unit(benchmark::kMillisecond);
}
BENCHMARK(BM_OpenToRead)->Apply(sizes);
BENCHMARK(BM_OpenToWrite)->Apply(sizes);

}  // namespace
}  // namespace atomic4::bench

BENCHMARK_MAIN();
