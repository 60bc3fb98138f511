// The event loop where io_uring is disabled: plain system calls and poll(2). What touches a disk is
// carried out when it is submitted.
#include <fcntl.h>
#include <sched.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <deque>
#include <list>
#include <vector>

#include "device/event_loop_backends.h"

namespace atomic4 {
namespace {

using Clock = std::chrono::steady_clock;

class SyscallLoop final : public EventLoop {
  public:
    const char* name() const override { return "system calls"; }

    void read(int fd, ByteOffset offset, std::span<std::byte> into, Completion done) override {
        finished(std::move(done), [&] {
            return ::pread(fd, into.data(), into.size(), static_cast<off_t>(offset.value()));
        });
    }
    void write(int fd, ByteOffset offset, std::span<const std::byte> from, int flags,
               Completion done) override {
        iovec part{const_cast<std::byte*>(from.data()), from.size()};
        finished(std::move(done), [&] {
            return ::pwritev2(fd, &part, 1, static_cast<off_t>(offset.value()), flags);
        });
    }
    void fdatasync(int fd, Completion done) override {
        finished(std::move(done), [&]() -> ssize_t { return ::fdatasync(fd); });
    }
    void receive(int fd, msghdr* message, Completion done) override {
        wait(fd, POLLIN, std::move(done),
             [fd, message] { return ::recvmsg(fd, message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC); });
    }
    void send(int fd, const msghdr* message, Completion done) override {
        wait(fd, POLLOUT, std::move(done),
             [fd, message] { return ::sendmsg(fd, message, MSG_DONTWAIT | MSG_NOSIGNAL); });
    }
    void accept(int fd, Completion done) override {
        // The listening socket may be shared with another process, which may be quicker.
        const int flags = ::fcntl(fd, F_GETFL);
        if (flags >= 0) ::fcntl(fd, F_SETFL, flags | O_NONBLOCK);
        wait(fd, POLLIN, std::move(done),
             [fd]() -> ssize_t { return ::accept4(fd, nullptr, nullptr, SOCK_CLOEXEC); });
    }
    PollId poll(int fd, short events, Completion ready) override {
        waiting_.push_back({++last_id_, fd, events, true, std::move(ready), nullptr});
        return last_id_;
    }
    void unpoll(PollId id) override {
        for (Waiting& one : waiting_)
            if (one.id == id) one.gone = true;
    }
    void after(std::chrono::nanoseconds time, Completion done) override {
        timers_.push_back({Clock::now() + time, std::move(done)});
    }

    Result<size_t> turn(bool wait) override {
        if (finished_.empty()) A4_CHECK(look(wait));
        expire();
        // Those that are there now; what the calls cause comes in the next round.
        size_t called = 0;
        for (size_t left = finished_.size(); left > 0; --left) {
            auto [done, result] = std::move(finished_.front());
            finished_.pop_front();
            done(result);
            ++called;
        }
        return called;
    }

  private:
    struct Waiting {
        PollId id;
        int fd;
        short events;
        bool poll;
        Completion done;
        std::function<ssize_t()> attempt;  // not of a poll
        bool gone = false;
    };
    struct Timer {
        Clock::time_point when;
        Completion done;
    };

    template <class Call>
    static int result_of(const Call& call) {
        ssize_t result = 0;
        do result = call();
        while (result < 0 && errno == EINTR);
        return result < 0 ? -errno : static_cast<int>(result);
    }
    template <class Call>
    void finished(Completion done, Call call) {
        finished_.emplace_back(std::move(done), result_of(call));
    }
    void wait(int fd, short events, Completion done, std::function<ssize_t()> attempt) {
        waiting_.push_back({++last_id_, fd, events, false, std::move(done), std::move(attempt)});
    }

    int timeout(bool wait) const {
        if (!wait || !finished_.empty()) return 0;
        if (timers_.empty()) return -1;
        const auto first = std::ranges::min_element(timers_, {}, &Timer::when)->when;
        const auto left =
            std::chrono::duration_cast<std::chrono::milliseconds>(first - Clock::now()).count() + 1;
        return static_cast<int>(std::clamp<long long>(left, 0, 1000LL * 1000));
    }

    Result<> look(bool wait) {
        waiting_.remove_if([](const Waiting& one) { return one.gone; });
        std::vector<pollfd> fds;
        for (const Waiting& one : waiting_) fds.push_back({one.fd, one.events, 0});
        int ready = 0;
        if (wait && spin_now_ && spin_.count() > 0) {
            const auto until = Clock::now() + spin_;
            while ((ready = ::poll(fds.data(), fds.size(), 0)) == 0 && Clock::now() < until)
                ::sched_yield();
        }
        if (ready == 0) ready = ::poll(fds.data(), fds.size(), timeout(wait));
        if (ready < 0 && errno != EINTR) return fail(Error::from_errno(errno, "poll"));
        if (ready <= 0) return {};
        size_t i = 0;
        for (Waiting& one : waiting_) {
            const short found = fds[i++].revents;
            if (found == 0) continue;
            if (one.poll) {
                // Looked at again when it is called: it may have been given up by then.
                finished_.emplace_back(
                    [this, id = one.id](int events) {
                        for (const Waiting& same : waiting_) {
                            if (same.id != id || same.gone) continue;
                            const Completion call = same.done;
                            call(events);
                            return;
                        }
                    },
                    found);
                continue;
            }
            const int result = result_of(one.attempt);
            if (result == -EAGAIN) continue;
            one.gone = true;
            finished_.emplace_back(std::move(one.done), result);
        }
        return {};
    }

    void expire() {
        const auto now = Clock::now();
        for (size_t i = 0; i < timers_.size();) {
            if (timers_[i].when > now) {
                ++i;
                continue;
            }
            finished_.emplace_back(std::move(timers_[i].done), 0);
            timers_.erase(timers_.begin() + static_cast<std::ptrdiff_t>(i));
        }
    }

    std::deque<std::pair<Completion, int>> finished_;
    std::list<Waiting> waiting_;
    std::vector<Timer> timers_;
    PollId last_id_ = 0;
};

}  // namespace

std::unique_ptr<EventLoop> make_syscall_loop() {
    return std::make_unique<SyscallLoop>();
}

}  // namespace atomic4
