#include "daemon/keeper.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "support/keeper_fixture.h"

namespace atomic4::test {
namespace {

using std::chrono::milliseconds;

using KeeperTest = KeeperFixture;

TEST_F(KeeperTest, ACleanExitIsTheEnd) {
    keep([&](const WorkerStart& start) {
        tell('s', start);
        return 0;
    });
    EXPECT_EQ(keepers_status(), 0);
    const KeeperNote note = hear();
    EXPECT_EQ(note.what, 's');
    EXPECT_EQ(note.restarts, 0);
    EXPECT_EQ(hear().what, 0);
}

TEST_F(KeeperTest, AFailureIsTheEndToo) {
    keep([](const WorkerStart&) { return 3; });
    EXPECT_EQ(keepers_status(), 3);
    const KeeperNote note = hear();
    EXPECT_EQ(note.what, 'l');
    EXPECT_EQ(note.signal, 0);
    EXPECT_EQ(note.restarts, 0);
}

TEST_F(KeeperTest, AKilledWorkerHasASuccessorAtTheSameSocket) {
    const UniqueFd listening(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    ASSERT_TRUE(listening);
    sockaddr_un name{.sun_family = AF_UNIX, .sun_path = {}};
    socklen_t length = sizeof(sa_family_t);  // a name of the kernel's choice
    ASSERT_EQ(::bind(listening.get(), reinterpret_cast<sockaddr*>(&name), length), 0);
    ASSERT_EQ(::listen(listening.get(), 5), 0);
    length = sizeof(name);
    ASSERT_EQ(::getsockname(listening.get(), reinterpret_cast<sockaddr*>(&name), &length), 0);

    keep([&](const WorkerStart& start) {
        tell('s', start);
        const UniqueFd client(::accept(listening.get(), nullptr, nullptr));
        const char greeting = static_cast<char>('0' + start.restarts);
        if (::write(client.get(), &greeting, 1) != 1) return 1;
        return next_signal() == SIGTERM ? 0 : 1;
    });
    pid_t last = -1;
    for (int round = 0; round < 3; ++round) {
        const KeeperNote note = hear();
        ASSERT_EQ(note.what, 's');
        EXPECT_EQ(note.restarts, round);
        EXPECT_NE(note.pid, last);
        last = note.pid;
        const UniqueFd client(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
        ASSERT_EQ(::connect(client.get(), reinterpret_cast<sockaddr*>(&name), length), 0);
        char greeting = 0;
        ASSERT_EQ(::read(client.get(), &greeting, 1), 1);
        EXPECT_EQ(greeting, '0' + round);
        if (round < 2) ::kill(note.pid, SIGKILL);
    }
    ASSERT_EQ(::kill(keeper_, SIGTERM), 0);
    EXPECT_EQ(keepers_status(), 0);
    EXPECT_EQ(hear().what, 0);
}

TEST_F(KeeperTest, AWorkerMayAskForASuccessor) {
    keep([&](const WorkerStart& start) {
        tell('s', start);
        return start.restarts == 0 ? kRestartStatus : 0;
    });
    EXPECT_EQ(keepers_status(), 0);
    EXPECT_EQ(hear().restarts, 0);
    EXPECT_EQ(hear().restarts, 1);
    EXPECT_EQ(hear().what, 0);
}

TEST_F(KeeperTest, AStormOfDeathsEnds) {
    options_.restart_window = milliseconds(3600'000);
    keep([&](const WorkerStart& start) {
        tell('s', start);
        ::raise(SIGKILL);
        return 0;
    });
    for (int round = 0; round <= 5; ++round) {
        const KeeperNote note = hear();
        EXPECT_EQ(note.what, 's');
        EXPECT_EQ(note.restarts, round);
    }
    const KeeperNote end = hear();
    EXPECT_EQ(end.what, 'l');
    EXPECT_EQ(end.signal, SIGKILL);
    EXPECT_EQ(end.restarts, 5);
    EXPECT_FALSE(end.flag);
    EXPECT_EQ(keepers_status(), 128 + SIGKILL);
}

// Deaths that lie far apart are no storm.
TEST_F(KeeperTest, OldDeathsAreForgotten) {
    options_.most_restarts = 1;
    options_.restart_window = milliseconds(-1);  // all are old at once
    keep([&](const WorkerStart& start) {
        if (start.restarts < 20) ::raise(SIGKILL);
        return 0;
    });
    EXPECT_EQ(keepers_status(), 0);
    EXPECT_EQ(hear().what, 0);
}

TEST_F(KeeperTest, SignalsArePassedOn) {
    keep([&](const WorkerStart& start) {
        tell('s', start);
        for (;;) {
            const int signal = next_signal();
            tell({.what = 'g', .signal = signal});
            if (signal == SIGTERM) return 0;
        }
    });
    const pid_t worker = hear().pid;
    for (const int signal : {SIGHUP, SIGINT, SIGHUP, SIGTERM}) {
        ASSERT_EQ(::kill(keeper_, signal), 0);
        const KeeperNote note = hear();
        EXPECT_EQ(note.what, 'g');
        EXPECT_EQ(note.signal, signal);
        EXPECT_EQ(note.pid, worker);
    }
    EXPECT_EQ(keepers_status(), 0);
}

// Even one that comes before the worker listens.
TEST_F(KeeperTest, WhoDiesWhileStoppingHasNoSuccessor) {
    keep([&](const WorkerStart& start) {
        tell('s', start);
        if (next_signal() == SIGTERM) ::raise(SIGKILL);
        return 1;
    });
    EXPECT_EQ(hear().what, 's');
    ASSERT_EQ(::kill(keeper_, SIGTERM), 0);
    const KeeperNote end = hear();
    EXPECT_EQ(end.what, 'l');
    EXPECT_EQ(end.signal, SIGKILL);
    EXPECT_EQ(end.restarts, 0);
    EXPECT_EQ(keepers_status(), 128 + SIGKILL);
}

TEST_F(KeeperTest, AWorkerWithoutItsKeeperIsToldToStop) {
    keep([&](WorkerStart start) {
        tell('s', start);
        const int signal = next_signal();
        const bool gone = start.opens.drain([](const OpenEvent&) {}).has_value();
        tell({.what = 'g', .signal = signal, .flag = gone});
        return 0;
    });
    EXPECT_EQ(hear().what, 's');
    ASSERT_EQ(::kill(keeper_, SIGKILL), 0);
    const KeeperNote note = hear();
    EXPECT_EQ(note.what, 'g');
    EXPECT_EQ(note.signal, SIGTERM);
    EXPECT_FALSE(note.flag);
    EXPECT_EQ(hear().what, 0);  // it has ended
    EXPECT_EQ(keepers_status(), -1);
}

TEST_F(KeeperTest, ASuccessorThatIsNotReadyInTimeIsTheLast) {
    options_.patience = milliseconds(50);
    keep([&](const WorkerStart& start) {
        tell('s', start);
        if (start.restarts == 0) ::raise(SIGKILL);
        for (;;) next_signal();
        return 0;
    });
    EXPECT_EQ(hear().what, 's');
    EXPECT_EQ(hear().what, 's');
    const KeeperNote end = hear();
    EXPECT_EQ(end.what, 'l');
    EXPECT_EQ(end.restarts, 1);
    EXPECT_TRUE(end.flag);
    EXPECT_EQ(keepers_status(), 128 + SIGKILL);
}

TEST_F(KeeperTest, PatienceIsForSuccessorsThatAreNotReady) {
    options_.patience = milliseconds(50);
    keep([&](WorkerStart start) {
        // Both, the first that needn't say so and the second that does, take longer.
        if (start.restarts == 1 && !start.opens.ready().has_value()) return 1;
        const timespec longer{.tv_sec = 0, .tv_nsec = 300'000'000};
        ::nanosleep(&longer, nullptr);
        return start.restarts == 0 ? kRestartStatus : 0;
    });
    EXPECT_EQ(keepers_status(), 0);
    EXPECT_EQ(hear().what, 0);
}

TEST_F(KeeperTest, WithoutAGroupNothingCanBeWatched) {
    keep([&](const WorkerStart& start) {
        const auto watched = start.opens.watch(STDIN_FILENO);
        if (start.opens.can_watch() || watched.has_value()) return 1;
        return watched.error().code == EOPNOTSUPP ? 0 : 2;
    });
    EXPECT_EQ(keepers_status(), 0);
}

}  // namespace
}  // namespace atomic4::test
