#include "writer/helper_threads.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <optional>
#include <system_error>

namespace atomic4 {

Result<std::unique_ptr<HelperThreads>> HelperThreads::start(EventLoop& loop, size_t most) {
    UniqueFd event(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
    if (!event) return fail(Error::from_errno(errno, "eventfd"));
    std::unique_ptr<HelperThreads> helpers(new HelperThreads(loop, std::move(event), most));
    A4_CHECK(helpers->add_thread());
    helpers->poll_ =
        loop.poll(helpers->event_.get(), POLLIN, [it = helpers.get()](int) { it->deliver(); });
    return helpers;
}

Result<> HelperThreads::add_thread() {
    // Signals are the loop's.
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    std::optional<Error> error;
    try {
        threads_.emplace_back([this] { work(); });
    } catch (const std::system_error& thrown) {
        error = Error::from_errno(thrown.code().value(), "helper thread");
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (error) return fail(std::move(*error));
    return {};
}

HelperThreads::~HelperThreads() {
    {
        const std::scoped_lock lock(mutex_);
        stop_ = true;
        jobs_.clear();
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
    if (poll_ != 0) loop_.unpoll(poll_);
}

void HelperThreads::run(Lane lane, std::function<int()> work, EventLoop::Completion done) {
    bool too_few = false;
    {
        const std::scoped_lock lock(mutex_);
        jobs_.push_back({lane, std::move(work), std::move(done)});
        if (threads_.size() < most_ && jobs_.size() > idle_) {
            std::set<Lane> lanes;
            for (const Job& job : jobs_)
                if (!busy_.contains(job.lane)) lanes.insert(job.lane);
            too_few = lanes.size() > idle_;
        }
    }
    // Without it, the work waits for one of the others.
    if (too_few) (void)add_thread().has_value();
    wake_.notify_one();
}

// The first whose lane is free.
std::deque<HelperThreads::Job>::iterator HelperThreads::next() {
    return std::ranges::find_if(jobs_,
                                [this](const Job& job) { return !busy_.contains(job.lane); });
}

void HelperThreads::work() {
    std::unique_lock lock(mutex_);
    for (;;) {
        auto found = jobs_.end();
        ++idle_;
        wake_.wait(lock, [&] { return stop_ || (found = next()) != jobs_.end(); });
        --idle_;
        if (stop_) return;
        Job job = std::move(*found);
        jobs_.erase(found);
        busy_.insert(job.lane);
        lock.unlock();
        job.result = job.work();
        lock.lock();
        // The next of this lane, if there is one, is for this thread: it looks at once.
        busy_.erase(job.lane);
        finished_.push_back(std::move(job));
        const uint64_t one = 1;
        // It can't fail: the counter is far from full.
        [[maybe_unused]] const ssize_t written = ::write(event_.get(), &one, sizeof one);
    }
}

void HelperThreads::deliver() {
    uint64_t count = 0;
    if (::read(event_.get(), &count, sizeof count) < 0) return;
    std::vector<Job> finished;
    {
        const std::scoped_lock lock(mutex_);
        finished.swap(finished_);
    }
    for (Job& job : finished) job.done(job.result);
}

}  // namespace atomic4
