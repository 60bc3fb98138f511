// fsck.atomic4 interrupted: at every write of a recorded run, and killed at random moments. The
// volume is protected whatever happens, and the next run brings it back.
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <random>
#include <sstream>

#include "support/command.h"
#include "support/crash_device.h"
#include "support/fsck_run.h"
#include "support/privileged.h"
#include "support/results.h"

namespace atomic4::test {
namespace {

bool long_form() {
    return std::getenv("ATOMIC4_LONG") != nullptr;
}

// One run more, and everything is as it has to be.
void expect_repaired(const DirtyVolume& dirty, Image image) {
    const FsckRun run = run_fsck(image, FsckMode::Yes);
    ASSERT_TRUE(run.status == 0 || run.status == tools::kFsckCorrected) << run.output;
    EXPECT_EQ(superblock_complaint(image), "");
    EXPECT_EQ(mapping_of_file(image, "/db"), dirty.db) << run.output;
    EXPECT_EQ(content_of_file(image, "/db"), dirty.db_content) << run.output;
    EXPECT_EQ(fsck_complaints(image), "") << run.output;
    const FsckRun again = run_fsck(image, FsckMode::Preen);
    EXPECT_EQ(again.status, 0) << run.output << again.output;
}

class FsckCrash : public testing::TestWithParam<uint64_t> {
  protected:
    void SetUp() override { A4_REQUIRE_ROOT(); }
};

TEST_P(FsckCrash, EveryWriteOfARun) {
    const DirtyVolume dirty = make_dirty_volume(GetParam());
    ASSERT_EQ(superblock_complaint(dirty.image), "");
    CrashDevice device(dirty.image);
    const FsckRun run = run_fsck(device, FsckMode::Yes);
    ASSERT_EQ(run.status, tools::kFsckCorrected) << run.output;
    ASSERT_GT(device.events(), 20u);
    Image image;
    for (size_t event = 0; event <= device.events(); ++event) {
        // All that was written until then, and only what had been flushed.
        for (const uint64_t seed : {1, 0}) {
            device.image_after(event, seed, image);
            ASSERT_EQ(superblock_complaint(image), "")
                << "after " << event << " events, seed " << seed << ": " << device.describe(event);
        }
    }
    const size_t moments = long_form() ? device.events() : 24;
    for (size_t i = 0; i < moments; ++i) {
        const size_t event = i * device.events() / moments;
        for (const uint64_t seed : {uint64_t{1}, uint64_t{2} + i}) {
            SCOPED_TRACE(
                fmt::format("cut at event {}, seed {}: {}", event, seed, device.describe(event)));
            expect_repaired(dirty, device.image_after(event, seed));
            if (HasFatalFailure()) return;
        }
    }
}

// Its e2fsck, if it runs. (The leak sanitizer has a child at the end, too, which it waits for in
// vain if that is killed.)
pid_t e2fsck_of(pid_t parent) {
    std::ifstream children(fmt::format("/proc/{}/task/{}/children", parent, parent));
    pid_t child = 0;
    std::string name;
    if (children >> child) std::ifstream(fmt::format("/proc/{}/comm", child)) >> name;
    return name == "e2fsck" ? child : 0;
}

// fsck.atomic4 -fy as a process of its own, on a file that has the image.
pid_t start_on(const DirtyVolume& dirty, const std::string& path) {
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(dirty.image.data()),
               static_cast<std::streamsize>(dirty.image.size()));
    const pid_t fsck = ::fork();
    if (fsck != 0) return fsck;
    const std::string program = our_program("fsck.atomic4");
    if (std::freopen("/dev/null", "w", stdout) == nullptr ||
        std::freopen("/dev/null", "w", stderr) == nullptr)
        ::_exit(126);
    ::execl(program.c_str(), "fsck.atomic4", "-fy", path.c_str(), nullptr);
    ::_exit(127);
}

// So that moments lie within it. At most a second: nanosleep(2) takes no more of these.
long nanoseconds_of_a_run(const DirtyVolume& dirty, const std::string& path) {
    timespec begin{};
    timespec end{};
    ::clock_gettime(CLOCK_MONOTONIC, &begin);
    ::waitpid(start_on(dirty, path), nullptr, 0);
    ::clock_gettime(CLOCK_MONOTONIC, &end);
    const long whole = (end.tv_sec - begin.tv_sec) * 1'000'000'000 + end.tv_nsec - begin.tv_nsec;
    return std::clamp(whole, 1'000'000L, 999'999'999L);
}

// Whatever it has left behind comes to its end by itself: an uninterruptible process would not.
bool nobody_is_left() {
    for (int i = 0; i < 1000; ++i) {
        pid_t ended = 0;
        while ((ended = ::waitpid(-1, nullptr, WNOHANG)) > 0) {
        }
        if (ended < 0) return errno == ECHILD;
        ::usleep(10'000);
    }
    return false;
}

TEST_P(FsckCrash, KilledAtRandomMoments) {
    ASSERT_EQ(::prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
    const DirtyVolume dirty = make_dirty_volume(GetParam());
    const TempDir directory;
    const std::string path = directory.file("image");
    std::mt19937 random(GetParam());
    const int rounds = long_form() ? 500 : 25;
    const long whole_run = nanoseconds_of_a_run(dirty, path);
    int killed = 0;
    for (int round = 0; round < rounds; ++round) {
        SCOPED_TRACE(fmt::format("round {}", round));
        const pid_t fsck = start_on(dirty, path);
        // A random moment of its run.
        const timespec moment{0, static_cast<long>(random() % static_cast<uint64_t>(whole_run))};
        ::nanosleep(&moment, nullptr);
        const pid_t e2fsck = e2fsck_of(fsck);
        const pid_t victim = e2fsck > 0 && random() % 2 == 0 ? e2fsck : fsck;
        ::kill(victim, SIGKILL);
        int status = 0;
        ::waitpid(fsck, &status, 0);
        ASSERT_TRUE(nobody_is_left());
        if (WIFSIGNALED(status) || victim == e2fsck) ++killed;
        // e2fsck dies with it; the lock is gone with both.
        std::ostringstream bytes;
        bytes << std::ifstream(path, std::ios::binary).rdbuf();
        const std::string text = bytes.str();
        Image image(text.size());
        std::memcpy(image.data(), text.data(), text.size());
        ASSERT_EQ(superblock_complaint(image), "");
        expect_repaired(dirty, image);
        if (HasFatalFailure()) return;
    }
    EXPECT_GT(killed, rounds / 4);
}

INSTANTIATE_TEST_SUITE_P(BlockSizes, FsckCrash, testing::Values(1024, 4096),
                         [](const auto& info) { return fmt::format("block{}", info.param); });

}  // namespace
}  // namespace atomic4::test
