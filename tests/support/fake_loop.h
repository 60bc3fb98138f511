// An event loop under the test's control: writes happen when the test lets them, timers when it
// moves the clock. Sockets and polling are not for it.
#pragma once

#include <functional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "device/event_loop.h"

namespace atomic4::test {

class FakeLoop final : public EventLoop {
  public:
    struct Write {
        int fd;
        ByteOffset offset;
        std::span<const std::byte> from;
        int flags;
        Completion done;
    };

    bool hold = false;                           // writes stay in `pending`
    std::vector<Write> pending;                  // in the order of their submission
    std::vector<int> flags_seen;                 // of all writes
    std::function<int(const Write&)> write_now;  // does one: the result
    std::chrono::nanoseconds now{0};

    // Does a held write now; its completion comes with the next turn.
    void let_go(size_t index) {
        Write write = std::move(pending.at(index));
        pending.erase(pending.begin() + static_cast<ptrdiff_t>(index));
        perform(std::move(write));
    }
    // Until nothing is to do but held writes and timers.
    void run() {
        for (;;) {
            auto called = run_once(false);
            if (!called) throw std::runtime_error(called.error().message);
            if (*called == 0) return;
        }
    }
    void advance(std::chrono::nanoseconds time) {
        now += time;
        run();
    }

    const char* name() const override { return "fake"; }
    void write(int fd, ByteOffset offset, std::span<const std::byte> from, int flags,
               Completion done) override {
        flags_seen.push_back(flags);
        Write write{fd, offset, from, flags, std::move(done)};
        if (hold)
            pending.push_back(std::move(write));
        else
            perform(std::move(write));
    }
    void after(std::chrono::nanoseconds time, Completion done) override {
        timers_.push_back({now + time, std::move(done)});
    }
    void read(int, ByteOffset, std::span<std::byte>, Completion) override { no(); }
    void fdatasync(int, Completion) override { no(); }
    void receive(int, msghdr*, Completion) override { no(); }
    void send(int, const msghdr*, Completion) override { no(); }
    void accept(int, Completion) override { no(); }
    PollId poll(int, short, Completion) override {
        no();
        return 0;
    }
    void unpoll(PollId) override { no(); }

  protected:
    Result<size_t> turn(bool) override {
        for (size_t i = 0; i < timers_.size();) {
            if (timers_[i].at > now) {
                ++i;
                continue;
            }
            completed_.emplace_back(std::move(timers_[i].done), 0);
            timers_.erase(timers_.begin() + static_cast<ptrdiff_t>(i));
        }
        const auto completed = std::exchange(completed_, {});
        for (const auto& [done, result] : completed) done(result);
        return completed.size();
    }

  private:
    struct Timer {
        std::chrono::nanoseconds at;
        Completion done;
    };
    static void no() { throw std::logic_error("not part of the fake loop"); }
    void perform(Write write) {
        const int result = write_now(write);
        completed_.emplace_back(std::move(write.done), result);
    }

    std::vector<std::pair<Completion, int>> completed_;
    std::vector<Timer> timers_;
};

}  // namespace atomic4::test
