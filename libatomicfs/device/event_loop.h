// EventLoop: asynchronous I/O, sockets, polling and timers for one thread.
//
// Two backends behind one interface: io_uring (uring_loop.cc, the only file that includes liburing)
// and, where io_uring is disabled, plain system calls with poll(2) (syscall_loop.cc). Both do what
// is submitted in no particular order; a caller who needs one thing before another waits for the
// first one's completion. With plain system calls a read, write or flush is carried out, and the
// loop stands still meanwhile.
//
// A completion is called from run_once, never from inside a submitting call, exactly once, with
// what the system call would have returned: a count, or a negative errno. Reads and writes can be
// short. Descriptors and memory must stay valid until then.
//
// run_once submits, waits for something to complete and calls the completions. It may spin for a
// while before it sleeps (set_spin), while the caller says that it is worth it (spin_now). It
// yields all the time (sched_yield(2)), since the thread that would answer may need this processor.
//
// Threads: one, the one that made it.
#pragma once

#include <poll.h>
#include <sys/socket.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/result.h"
#include "base/units.h"

namespace atomic4 {

class EventLoop {
  public:
    using Completion = std::function<void(int result)>;
    using PollId = uint64_t;

    enum class Backend { Auto, Uring, Syscalls };
    // Auto: io_uring where the kernel lets us.
    static Result<std::unique_ptr<EventLoop>> create(Backend backend = Backend::Auto);

    EventLoop() = default;
    EventLoop(const EventLoop&) = delete;
    EventLoop& operator=(const EventLoop&) = delete;
    virtual ~EventLoop() = default;

    virtual const char* name() const = 0;  // "io_uring", "system calls"

    virtual void read(int fd, ByteOffset offset, std::span<std::byte> into, Completion done) = 0;
    // flags: RWF_DSYNC, RWF_ATOMIC.
    virtual void write(int fd, ByteOffset offset, std::span<const std::byte> from, int flags,
                       Completion done) = 0;
    virtual void fdatasync(int fd, Completion done) = 0;
    // recvmsg and sendmsg on a socket; they wait until they can. Messages and what they point to
    // must stay valid. shutdown(2) ends those that wait.
    virtual void receive(int fd, msghdr* message, Completion done) = 0;
    virtual void send(int fd, const msghdr* message, Completion done) = 0;
    virtual void accept(int fd, Completion done) = 0;  // accept4, close-on-exec
    // Called each time the descriptor is ready (level-triggered), until unpoll.
    virtual PollId poll(int fd, short events, Completion ready) = 0;
    virtual void unpoll(PollId id) = 0;
    // Once, after the time has passed.
    virtual void after(std::chrono::nanoseconds time, Completion done) = 0;

    // At the beginning of the next run_once, in the order of the calls.
    void defer(std::function<void()> work) { deferred_.push_back(std::move(work)); }
    // In the next run_once, when all that is submitted by then is on its way.
    void after_submit(std::function<void()> work) { after_submit_.push_back(std::move(work)); }

    // Does what was deferred; then waits for at least one completion, unless `wait` is false or
    // there was something to do. Returns how many were called.
    Result<size_t> run_once(bool wait = true);

    void set_spin(std::chrono::microseconds spin) { spin_ = spin; }
    void spin_now(bool worth_it) { spin_now_ = worth_it; }

  protected:
    virtual Result<size_t> turn(bool wait) = 0;
    virtual Result<> submit() { return {}; }

    std::chrono::microseconds spin_{0};
    bool spin_now_ = false;

  private:
    std::vector<std::function<void()>> deferred_;
    std::vector<std::function<void()>> deferred_now_;
    std::vector<std::function<void()>> after_submit_;
    std::vector<std::function<void()>> after_submit_now_;
};

}  // namespace atomic4
