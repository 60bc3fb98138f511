// Threads for the few system calls that may block and that io_uring can't do for us, or that the
// loop's own thread must not make: opening a watched file (open_watch.h), fallocate, writes through
// the page cache, and whatever takes an inode's lock, which another process's write(2) may hold for
// seconds.
//
// There is one thread at first, and one more each time that work comes which none is free for, up
// to a limit.
//
// Work comes in lanes, for each file its own: that of one lane is done in order, one at a time, so
// a file that somebody keeps locked occupies one thread; other lanes go on as long as a thread is
// left. What is asked for first is begun first. The result comes back as a completion of the event
// loop. How much waits is for the caller to bound.
//
// Threads: run() is called by the loop's; the work runs in another and touches nothing else's.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "base/unique_fd.h"
#include "device/event_loop.h"

namespace atomic4 {

class HelperThreads {
  public:
    using Lane = uint64_t;

    static Result<std::unique_ptr<HelperThreads>> start(EventLoop& loop, size_t most = 1);
    // What isn't begun is dropped; what is, waited for.
    ~HelperThreads();

    // work returns what `done` gets: a result, or a negative errno.
    void run(Lane lane, std::function<int()> work, EventLoop::Completion done);
    // In a lane that is nobody's.
    void run(std::function<int()> work, EventLoop::Completion done) {
        run(0, std::move(work), std::move(done));
    }

  private:
    struct Job {
        Lane lane;
        std::function<int()> work;
        EventLoop::Completion done;
        int result = 0;
    };

    HelperThreads(EventLoop& loop, UniqueFd event, size_t most)
        : loop_(loop), event_(std::move(event)), most_(most) {}
    Result<> add_thread();
    void work();
    std::deque<Job>::iterator next();
    void deliver();

    EventLoop& loop_;
    UniqueFd event_;
    const size_t most_;
    EventLoop::PollId poll_ = 0;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::deque<Job> jobs_;
    std::set<Lane> busy_;  // lanes with a job that runs
    std::vector<Job> finished_;
    bool stop_ = false;
    size_t idle_ = 0;  // threads
    std::vector<std::thread> threads_;
};

}  // namespace atomic4
