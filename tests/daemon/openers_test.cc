// Who opens a file while the daemon dies: waits for the successor, goes on, and what it writes and
// synchronises right after is not lost to a replay of what the daemon had acknowledged before.
#include <unistd.h>

#include <atomic>
#include <fstream>

#include "support/forked.h"
#include "support/served_volume.h"
#include "support/shared_count.h"
#include "support/stamps.h"

namespace atomic4::test {
namespace {

constexpr size_t kUnits = 32;

// The test sets the wish and then `go`; the opener, a program of its own, answers in `done`.
struct Desk {
    SharedCount go, done;
    std::atomic<uint64_t> offset{0}, length{0};
    std::atomic<int> error{0};
};

int open_and_write(Desk& desk, const std::string& path) {
    for (uint32_t round = 1;; ++round) {
        desk.go.wait_for(round);
        const int fd = ::open(path.c_str(), O_RDWR);
        const auto bytes = stamped(desk.length, 2, round, desk.offset);
        const bool good =
            fd >= 0 &&
            ::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(desk.offset)) ==
                static_cast<ssize_t>(bytes.size()) &&
            ::fsync(fd) == 0 && ::close(fd) == 0;
        if (!good) desk.error = errno;
        desk.done.set(round);
    }
}

// It sleeps in open(2).
bool is_held(pid_t pid) {
    std::string number;
    std::ifstream(fmt::format("/proc/{}/syscall", pid)) >> number;
    return number == "257";  // openat
}

class OpenersTest : public ServedTest {
  protected:
    void rounds(size_t count, bool whole_daemon);
};

void OpenersTest::rounds(size_t count, bool whole_daemon) {
    serve();
    const uint64_t seed = test_seed();
    std::mt19937_64 random(seed);
    make_file("data", kUnits * kUnit);
    SharedValue<Desk> desk;
    Forked opener([&] { return open_and_write(*desk, path("data")); });
    size_t held = 0;
    double longest = 0;
    uint64_t exclusive = 0;
    uint64_t serial = 0;
    for (uint32_t round = 1; round <= count; ++round) {
        if (round % 5 == 0 && !whole_daemon) {
            // A keeper gives up after five deaths in ten seconds.
            ASSERT_EQ(daemon_->stop(), 0);
            daemon_->start();
        }
        const auto client = connect();
        const File file = open_through(*client, path("data"));
        ASSERT_TRUE(until_exclusive(*client, file));
        const size_t unit = random() % kUnits;
        const uint64_t at = unit * kUnit;
        ++serial;
        const uint64_t acked = serial;
        exclusive += must(client->write(file.handle, ByteOffset(at), stamped(kUnit, 1, serial, at)))
                         .ack_mode == wire::AckMode::Exclusive;
        // Others in flight.
        for (size_t i = 0; i < random() % 4; ++i) {
            const uint64_t other = (unit + 1 + random() % (kUnits - 1)) % kUnits * kUnit;
            ++serial;
            must(client->submit_write(file.handle, ByteOffset(other),
                                      stamped(kUnit, 1, serial, other)));
        }
        // All of the unit, or a part of it.
        const uint64_t part = random() % 3;
        desk->offset = part == 2 ? at + 4096 : at;
        desk->length = part == 0 ? kUnit : 4096;
        const bool stopped = !whole_daemon && random() % 2 == 0;
        if (stopped) ::kill(daemon_->worker(), SIGSTOP);
        const bool dead_first = whole_daemon && random() % 2 == 0;
        if (dead_first) daemon_->kill_all();
        desk->go.set(round);
        if (stopped) {
            while (!is_held(opener.pid()) && desk->done.value() < round) ::usleep(50);
            ASSERT_LT(desk->done.value(), round) << "it was let through by nobody";
            ++held;
        } else if (!dead_first) {
            ::usleep(static_cast<useconds_t>(random() % 3000));
        }
        const bool before = desk->done.value() == round;
        if (whole_daemon) {
            if (!dead_first) daemon_->kill_all();
            // Nobody holds it any more: it writes before there is a successor, or at the same time.
            while (random() % 2 == 0 && desk->done.value() < round) ::usleep(50);
            daemon_->start();
        } else {
            daemon_->kill_worker();
            daemon_->wait_ready();
        }
        const auto ready = std::chrono::steady_clock::now();
        desk->done.wait_for(round);
        if (!before)
            longest = std::max(
                longest,
                std::chrono::duration<double>(std::chrono::steady_clock::now() - ready).count());
        ASSERT_EQ(desk->error, 0);
        for (const int flags : {0, O_DIRECT}) {
            const auto bytes = read_path(path("data"), at, kUnit, flags);
            const auto theirs = std::span(bytes).subspan(desk->offset - at, desk->length);
            const auto is = whole(theirs, desk->offset);
            ASSERT_TRUE(is && is->writer == 2 && is->serial == round)
                << "round " << round << ", unit " << unit
                << ": synchronised bytes are lost: " << describe(bytes);
            if (desk->length == kUnit) continue;
            // And ours beside them.
            for (uint64_t block = 0; block < kUnit; block += 4096) {
                if (at + block == desk->offset) continue;
                const auto ours = whole(std::span(bytes).subspan(block, 4096), at + block);
                ASSERT_TRUE(ours && ours->writer == 1 && ours->serial == acked)
                    << "round " << round << ": acknowledged bytes are lost: " << describe(bytes);
            }
        }
    }
    fmt::print(
        "{} rounds, {} exclusive, {} openers held for sure; the longest went on {:.3f} s "
        "after the successor was ready\n",
        count, exclusive, held, longest);
    EXPECT_GT(exclusive, 0u);
    EXPECT_EQ(daemon_->said().find("giving up"), std::string::npos) << "openers were given up";
    stop_and_check();
}

TEST_F(OpenersTest, GoOnWithTheSuccessorAndLoseNothing) {
    rounds(long_form() ? 400 : 30, false);
}

TEST_F(OpenersTest, LoseNothingWhenTheKeeperDiesToo) {
    rounds(long_form() ? 400 : 30, true);
}

}  // namespace
}  // namespace atomic4::test
