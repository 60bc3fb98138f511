// A keeper in a process of its own, whose workers and hooks tell the test what they do.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <csignal>

#include "daemon/keeper.h"
#include "support/other_process.h"

namespace atomic4::test {

struct KeeperNote {
    char what = 0;  // a test's own letters; 'l': a keeper's on_let_through
    pid_t pid = 0;  // of who tells
    int restarts = -1;
    int signal = 0;
    bool flag = false;
};

class KeeperFixture : public testing::Test {
  protected:
    void SetUp() override {
        int ends[2];
        ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
        from_them_.reset(ends[0]);
        to_us_.reset(ends[1]);
        options_.on_let_through = [this](const WorkerEnd& end) {
            tell({.what = 'l',
                  .restarts = static_cast<int>(end.restarts),
                  .signal = end.signal,
                  .flag = end.out_of_time});
        };
    }
    void TearDown() override {
        if (keeper_ <= 0) return;
        ::kill(keeper_, SIGKILL);
        ::waitpid(keeper_, nullptr, 0);
    }

    // In a worker or hook.
    void tell(KeeperNote note) const {
        note.pid = ::getpid();
        if (::write(to_us_.get(), &note, sizeof(note)) != sizeof(note)) std::abort();
    }
    void tell(char what, const WorkerStart& start) const {
        tell({.what = what, .restarts = static_cast<int>(start.restarts)});
    }
    // In the test: the next note. what is 0 if no process is left to write one.
    KeeperNote hear() const {
        KeeperNote note;
        if (!readable(from_them_.get(), kPatienceMs)) return {.what = '?'};
        return ::read(from_them_.get(), &note, sizeof(note)) == sizeof(note) ? note : KeeperNote{};
    }

    void keep(const Worker& worker) {
        keeper_ = ::fork();
        ASSERT_GE(keeper_, 0);
        if (keeper_ == 0) {
            from_them_.reset();
            const auto status = run_keeper(std::move(options_), worker);
            ::_exit(status.has_value() ? *status : 99);
        }
        to_us_.reset();
        options_.group.reset();  // or it would be us who keeps openers waiting
    }
    // -1: it was killed.
    int keepers_status() {
        int status = 0;
        const pid_t waited = ::waitpid(keeper_, &status, 0);
        keeper_ = -1;
        return waited > 0 && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    }

    // In a worker: waits for a signal that the keeper passes on.
    static int next_signal() {
        sigset_t set;
        ::sigemptyset(&set);
        for (const int signal : {SIGTERM, SIGINT, SIGHUP}) ::sigaddset(&set, signal);
        return ::sigwaitinfo(&set, nullptr);
    }

    KeeperOptions options_;
    UniqueFd from_them_;
    UniqueFd to_us_;
    pid_t keeper_ = -1;
};

}  // namespace atomic4::test
