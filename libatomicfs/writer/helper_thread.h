// A thread for the few system calls that may block and that io_uring can't do for us, or that the
// loop's own thread must not make: opening a watched file (open_watch.h), fallocate, writes through
// the page cache.
//
// Work is done in order, one at a time; its result comes back as a completion of the event loop.
// Threads: run() is called by the loop's; the work runs in the other and touches nothing else's.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/unique_fd.h"
#include "device/event_loop.h"

namespace atomic4 {

class HelperThread {
  public:
    static Result<std::unique_ptr<HelperThread>> start(EventLoop& loop);
    // What isn't begun is dropped.
    ~HelperThread();

    // work returns what `done` gets: a result, or a negative errno.
    void run(std::function<int()> work, EventLoop::Completion done);
    size_t pending() const { return pending_; }

  private:
    struct Job {
        std::function<int()> work;
        EventLoop::Completion done;
        int result = 0;
    };

    HelperThread(EventLoop& loop, UniqueFd event) : loop_(loop), event_(std::move(event)) {}
    void work();
    void deliver();

    EventLoop& loop_;
    UniqueFd event_;
    EventLoop::PollId poll_ = 0;
    size_t pending_ = 0;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::deque<Job> jobs_;
    std::vector<Job> finished_;
    bool stop_ = false;
    std::thread thread_;
};

}  // namespace atomic4
