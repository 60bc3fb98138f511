// The aligned allocator on volumes that other tools have used: it gives all that is there.
#include <algorithm>
#include <fstream>
#include <random>
#include <set>

#include "ext4/transaction.h"
#include "support/free_bitmap.h"
#include "unit/volume_fixture.h"

namespace atomic4::test {
namespace {

// Volumes that have been used, by other tools than ours. Blocks that hold nothing but zeros would
// be left out by debugfs.
class UsedVolume {
  public:
    UsedVolume(uint64_t size, uint64_t block) : block_(block) {
        const std::string count = std::to_string(size / block);
        const auto made = run_command({"mke2fs", "-q", "-F", "-t", "ext4", "-b",
                                       std::to_string(block), "-m", "0", path(), count});
        if (made.status != 0) throw std::runtime_error(made.output);
    }
    std::string path() const { return dir_.file("image"); }
    uint64_t free_blocks() const {
        const auto is_free = free_blocks_of(path());
        return static_cast<uint64_t>(std::count(is_free.begin(), is_free.end(), true));
    }
    void write(const std::string& name, uint64_t blocks) {
        const std::string data = dir_.file("data" + std::to_string(blocks));
        if (sources_.insert(blocks).second)
            std::ofstream(data) << std::string(blocks * block_, 'x');
        script_ += "write " + data + " " + name + "\n";
    }
    void command(const std::string& line) { script_ += line + "\n"; }
    void run() {
        std::ofstream(dir_.file("script")) << script_;
        script_.clear();
        const auto ran = run_command({"debugfs", "-w", "-f", dir_.file("script"), path()});
        if (ran.status != 0) throw std::runtime_error(ran.output);
    }

  private:
    TempDir dir_;
    uint64_t block_;
    std::set<uint64_t> sources_;
    std::string script_;
};

// 90 % of it one file, and every other block of that given back.
void punch(UsedVolume& used) {
    const uint64_t blocks = used.free_blocks() * 9 / 10;
    used.write("file", blocks);
    for (uint64_t block = 1; block < blocks; block += 2)
        used.command(fmt::format("punch file {} {}", block, block));
    used.run();
}

// Files of up to 512 blocks come and go, for as many operations, until it is full; then every third
// one goes.
void age(UsedVolume& used, int operations) {
    std::mt19937_64 random(17);
    const uint64_t limit = used.free_blocks() * 97 / 100;
    std::vector<std::pair<std::string, uint64_t>> files;
    uint64_t full = 0;
    for (int i = 0; i < operations; ++i) {
        const uint64_t blocks = uint64_t{1} << random() % 10;
        const uint64_t size = blocks - random() % (blocks / 2 + 1);
        while (full + size > limit) {
            std::swap(files[random() % files.size()], files.back());
            used.command("rm " + files.back().first);
            full -= files.back().second;
            files.pop_back();
        }
        files.emplace_back(fmt::format("file{}", i), size);
        used.write(files.back().first, size);
        full += size;
    }
    for (size_t i = 0; i < files.size(); i += 3) used.command("rm " + files[i].first);
    used.run();
}

// Asked until it refuses, the allocator gives each aligned run that libext2fs's bitmap has free,
// and nothing else.
void expect_gives_all(const UsedVolume& used) {
    const std::vector<bool> is_free = free_blocks_of(used.path());
    MemoryDevice memory(load_image(used.path()));
    const auto volume = open_volume(memory);
    std::mt19937_64 random(23);
    uint64_t short_of = 0;  // units of which less than the free space can be had
    for (int order = 0; volume->block_size() * (uint64_t{1} << order) <= Bytes(1 << 20); ++order) {
        const uint64_t unit = uint64_t{1} << order;
        const uint64_t possible = aligned_runs(is_free, unit);
        Transaction transaction(*volume);
        std::set<uint64_t> given;
        for (;;) {
            const auto run = volume->allocator().allocate(order, Pblk(random() % is_free.size()));
            if (!run) {
                ASSERT_EQ(run.error().code, ENOSPC) << run.error().message;
                break;
            }
            const uint64_t start = run->start.value();
            ASSERT_EQ(start % unit, 0u);
            ASSERT_TRUE(given.insert(start).second);
            for (uint64_t i = 0; i < unit; ++i) ASSERT_TRUE(is_free[start + i]) << start + i;
        }
        EXPECT_EQ(given.size(), possible) << "unit of " << unit << " blocks";
        if (possible * unit * 2 < used.free_blocks()) ++short_of;
    }
    EXPECT_GE(short_of, 2u) << "this volume is hardly fragmented";
}

class UsedVolumes : public testing::TestWithParam<uint64_t> {};

TEST_P(UsedVolumes, PunchedGivesAllThatThereIs) {
    UsedVolume used(GetParam() * 4096, GetParam());
    punch(used);
    expect_gives_all(used);
}

TEST_P(UsedVolumes, AgedGivesAllThatThereIs) {
    UsedVolume used(GetParam() * 16384, GetParam());
    age(used, 600);
    expect_gives_all(used);
}
INSTANTIATE_TEST_SUITE_P(Blocks, UsedVolumes, testing::Values(1024, 2048, 4096),
                         testing::PrintToStringParamName());

}  // namespace
}  // namespace atomic4::test
