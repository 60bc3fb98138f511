#include "daemon/open_gate.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <fstream>

#include "support/command.h"
#include "support/keeper_fixture.h"
#include "support/privileged.h"

namespace atomic4::test {
namespace {

// A worker's events, waited for.
std::vector<OpenEvent> wait_for_events(GateClient& opens) {
    std::vector<OpenEvent> found;
    if (!readable(opens.fd(), kPatienceMs)) ::_exit(20);
    if (!opens.drain([&](const OpenEvent& event) { found.push_back(event); }).has_value())
        ::_exit(21);
    return found;
}

// A watched file, and a keeper with workers that watch it.
class OpenGateTest : public KeeperFixture {
  protected:
    void SetUp() override {
        A4_REQUIRE_ROOT();
        KeeperFixture::SetUp();
        path_ = dir_.file("file");
        std::ofstream(path_) << std::string(65536, 'x');
        auto group = OpenWatch::new_group();
        ASSERT_TRUE(group.has_value()) << group.error().message;
        options_.group = std::move(*group);
    }

    // The first worker sets the mark, on a descriptor opened before.
    bool watch(const WorkerStart& start) const {
        const UniqueFd file(::open(path_.c_str(), O_RDONLY | O_CLOEXEC));
        return file && start.opens.watch(file.get()).has_value();
    }
    static int until_told_to_stop() { return next_signal() == SIGTERM ? 0 : 1; }

    TempDir dir_;
    std::string path_;
};

TEST_F(OpenGateTest, AnOpenerWaitsForItsAnswerAndIsMissedWhenItGoes) {
    keep([&](WorkerStart start) {
        if (!watch(start)) return 1;
        tell('w', start);
        const auto opened = wait_for_events(start.opens);
        if (opened.size() != 1 || opened[0].kind != OpenEvent::Kind::Open) return 2;
        tell('o', start);
        if (until_told_to_stop() != 0) return 3;  // only the signal: it isn't over
        if (!start.opens.allow(opened[0].token).has_value()) return 4;
        const auto closed = wait_for_events(start.opens);
        if (closed.size() != 1 || closed[0].kind != OpenEvent::Kind::CloseWrite) return 5;
        return closed[0].pid == opened[0].pid && closed[0].inode == opened[0].inode ? 0 : 6;
    });
    ASSERT_EQ(hear().what, 'w');
    OtherProcess other(path_);
    other.begin('w');
    const KeeperNote note = hear();
    ASSERT_EQ(note.what, 'o');
    EXPECT_FALSE(other.answered());
    ASSERT_EQ(::kill(note.pid, SIGTERM), 0);
    EXPECT_EQ(other.result(), '+');
    EXPECT_EQ(other.step('c'), '+');
    EXPECT_EQ(keepers_status(), 0);
}

// Killed with openers waiting, of whom it had answered one; the successor, which has to open the
// same file before it may answer, and finds the other.
TEST_F(OpenGateTest, OpenersWaitThroughADeath) {
    keep([&](WorkerStart start) {
        if (start.restarts == 0 && !watch(start)) return 1;
        tell('w', start);
        std::vector<OpenEvent> opened;
        const size_t expected = start.restarts == 0 ? 2 : 1;
        // Its own opens, from this very thread, wait for nobody.
        for (int i = 0; i < 100; ++i) {
            const UniqueFd own(::open(path_.c_str(), O_RDWR | O_CLOEXEC));
            if (!own) return 2;
        }
        while (opened.size() < expected) {
            for (const OpenEvent& event : wait_for_events(start.opens)) {
                if (event.kind == OpenEvent::Kind::Open) opened.push_back(event);
            }
        }
        tell('o', start);
        if (!start.opens.allow(opened[0].token).has_value()) return 3;
        if (!start.opens.ready().has_value()) return 4;
        return until_told_to_stop();
    });
    const KeeperNote first = hear();
    ASSERT_EQ(first.what, 'w');
    OtherProcess one(path_), two(path_);
    one.begin('w');
    two.begin('r');
    ASSERT_EQ(hear().what, 'o');
    // Who comes first is the kernel's choice.
    std::array<pollfd, 2> polled{{{.fd = one.answers(), .events = POLLIN, .revents = 0},
                                  {.fd = two.answers(), .events = POLLIN, .revents = 0}}};
    ASSERT_EQ(::poll(polled.data(), polled.size(), kPatienceMs), 1);
    OtherProcess& waiting = one.answered() ? two : one;
    ASSERT_EQ(::kill(first.pid, SIGKILL), 0);
    const KeeperNote second = hear();
    EXPECT_EQ(second.what, 'w');
    EXPECT_EQ(second.restarts, 1);
    EXPECT_NE(second.pid, first.pid);
    EXPECT_EQ(hear().what, 'o');
    EXPECT_EQ(waiting.result(), '+');
    ASSERT_EQ(::kill(keeper_, SIGTERM), 0);
    EXPECT_EQ(keepers_status(), 0);
}

// The mark is the keeper's, too: who comes while there is no worker waits for the next one.
TEST_F(OpenGateTest, AnOpenerBetweenTwoWorkers) {
    keep([&](WorkerStart start) {
        if (start.restarts == 0) {
            if (!watch(start)) return 1;
            tell('w', start);
            until_told_to_stop();
            ::raise(SIGKILL);
        }
        const auto opened = wait_for_events(start.opens);
        tell('o', start);
        if (opened.size() != 1 || !start.opens.allow(opened[0].token).has_value()) return 2;
        return until_told_to_stop();
    });
    const KeeperNote first = hear();
    ASSERT_EQ(first.what, 'w');
    ASSERT_EQ(::kill(keeper_, SIGSTOP), 0);
    OtherProcess other(path_);
    other.begin('w');
    ASSERT_EQ(::kill(first.pid, SIGKILL), 0);
    ASSERT_EQ(::kill(keeper_, SIGCONT), 0);
    const KeeperNote second = hear();
    EXPECT_EQ(second.what, 'o');
    EXPECT_EQ(second.restarts, 1);
    EXPECT_EQ(other.result(), '+');
    ASSERT_EQ(::kill(keeper_, SIGTERM), 0);
    EXPECT_EQ(keepers_status(), 0);
}

// First it is noted, then they go on.
TEST_F(OpenGateTest, GivingUpLetsThrough) {
    std::optional<OtherProcess> other;
    other.emplace(path_);
    options_.on_let_through = [&](const WorkerEnd& end) {
        tell({.what = other->answered() ? 'a' : 'l', .restarts = static_cast<int>(end.restarts)});
    };
    keep([&](WorkerStart start) {
        if (start.restarts == 0 && !watch(start)) return 1;
        tell('w', start);
        // Each dies of the opener's sight.
        if (wait_for_events(start.opens).size() == 1) ::raise(SIGKILL);
        return 2;
    });
    ASSERT_EQ(hear().what, 'w');
    other->begin('w');
    for (int restarts = 1; restarts <= 5; ++restarts) {
        const KeeperNote note = hear();
        EXPECT_EQ(note.what, 'w');
        EXPECT_EQ(note.restarts, restarts);
    }
    const KeeperNote end = hear();
    EXPECT_EQ(end.what, 'l');
    EXPECT_EQ(end.restarts, 5);
    EXPECT_EQ(other->result(), '+');
    EXPECT_EQ(keepers_status(), 128 + SIGKILL);
}

// Without its keeper a worker still holds openers, until it has drained and ends.
TEST_F(OpenGateTest, TheLastOfBothLetsThrough) {
    keep([&](WorkerStart start) {
        if (!watch(start)) return 1;
        tell('w', start);
        until_told_to_stop();
        tell('s', start);
        until_told_to_stop();
        return 0;
    });
    const KeeperNote worker = hear();
    ASSERT_EQ(worker.what, 'w');
    OtherProcess other(path_);
    other.begin('w');
    ASSERT_EQ(::kill(keeper_, SIGKILL), 0);
    ASSERT_EQ(hear().what, 's');
    EXPECT_FALSE(other.answered());
    ASSERT_EQ(::kill(worker.pid, SIGTERM), 0);
    EXPECT_EQ(other.result(), '+');
}

// The keeper's end alone, with a worker that doesn't listen: it is never held up.
TEST_F(OpenGateTest, AWorkerThatDoesNotListen) {
    const UniqueFd file(::open(path_.c_str(), O_RDONLY | O_CLOEXEC));
    const int group = options_.group.get();
    OpenGate gate(std::move(options_.group));
    int ends[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    GateClient client(UniqueFd(ends[1]), UniqueFd(::dup(group)));
    gate.connect(UniqueFd(ends[0]), 1);
    // Closings of two files in turn, so that the kernel doesn't merge them.
    const std::string second_path = dir_.file("second");
    std::ofstream(second_path) << "x";
    const UniqueFd second(::open(second_path.c_str(), O_RDONLY | O_CLOEXEC));
    ASSERT_TRUE(client.watch(file.get()).has_value());
    ASSERT_TRUE(client.watch(second.get()).has_value());
    OtherProcess one(path_), two(second_path);
    int opened = 0;
    for (int i = 0; i < 2000; ++i) {
        OtherProcess& other = i % 2 == 0 ? one : two;
        other.begin('w');
        ASSERT_TRUE(readable(group, kPatienceMs));
        ASSERT_TRUE(gate.take_events().has_value());
        ++opened;
        // Answered as if by the worker, which reads nothing.
        ASSERT_TRUE(client.allow(static_cast<uint64_t>(opened)).has_value());
        ASSERT_TRUE(gate.serve_channel().has_value());
        ASSERT_EQ(other.result(), '+');
        ASSERT_EQ(other.step('c'), '+');
        ASSERT_TRUE(gate.take_events().has_value());
    }
    EXPECT_TRUE(gate.wants_to_send());
    EXPECT_EQ(gate.held(), 0u);
    // It wakes up.
    int told = 0;
    for (bool more = true; more;) {
        more = gate.wants_to_send();
        ASSERT_TRUE(
            client
                .drain([&](const OpenEvent& event) { told += event.kind == OpenEvent::Kind::Open; })
                .has_value());
        ASSERT_TRUE(gate.serve_channel().has_value());
    }
    EXPECT_EQ(told, opened);
}

}  // namespace
}  // namespace atomic4::test
