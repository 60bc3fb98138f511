#include "writer/helper_thread.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <csignal>
#include <optional>
#include <system_error>

namespace atomic4 {

Result<std::unique_ptr<HelperThread>> HelperThread::start(EventLoop& loop) {
    UniqueFd event(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
    if (!event) return fail(Error::from_errno(errno, "eventfd"));
    std::unique_ptr<HelperThread> helper(new HelperThread(loop, std::move(event)));
    // Signals are the loop's.
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    std::optional<Error> error;
    try {
        helper->thread_ = std::thread([it = helper.get()] { it->work(); });
    } catch (const std::system_error& thrown) {
        error = Error::from_errno(thrown.code().value(), "helper thread");
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (error) return fail(std::move(*error));
    helper->poll_ =
        loop.poll(helper->event_.get(), POLLIN, [it = helper.get()](int) { it->deliver(); });
    return helper;
}

HelperThread::~HelperThread() {
    if (!thread_.joinable()) return;
    {
        const std::scoped_lock lock(mutex_);
        stop_ = true;
        jobs_.clear();
    }
    wake_.notify_one();
    thread_.join();
    loop_.unpoll(poll_);
}

void HelperThread::run(std::function<int()> work, EventLoop::Completion done) {
    ++pending_;
    {
        const std::scoped_lock lock(mutex_);
        jobs_.push_back({std::move(work), std::move(done)});
    }
    wake_.notify_one();
}

void HelperThread::work() {
    std::unique_lock lock(mutex_);
    for (;;) {
        wake_.wait(lock, [this] { return stop_ || !jobs_.empty(); });
        if (stop_) return;
        Job job = std::move(jobs_.front());
        jobs_.pop_front();
        lock.unlock();
        job.result = job.work();
        lock.lock();
        finished_.push_back(std::move(job));
        const uint64_t one = 1;
        // It can't fail: the counter is far from full.
        [[maybe_unused]] const ssize_t written = ::write(event_.get(), &one, sizeof one);
    }
}

void HelperThread::deliver() {
    uint64_t count = 0;
    if (::read(event_.get(), &count, sizeof count) < 0) return;
    std::vector<Job> finished;
    {
        const std::scoped_lock lock(mutex_);
        finished.swap(finished_);
    }
    for (Job& job : finished) {
        --pending_;
        job.done(job.result);
    }
}

}  // namespace atomic4
