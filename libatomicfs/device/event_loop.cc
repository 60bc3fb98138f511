#include "device/event_loop.h"

#include "device/event_loop_backends.h"

namespace atomic4 {

Result<std::unique_ptr<EventLoop>> EventLoop::create(Backend backend) {
    if (backend == Backend::Syscalls) return make_syscall_loop();
    auto loop = make_uring_loop();
    if (loop || backend == Backend::Uring) return loop;
    return make_syscall_loop();
}

Result<size_t> EventLoop::run_once(bool wait) {
    deferred_now_.swap(deferred_);
    for (const auto& work : deferred_now_) work();
    size_t called = deferred_now_.size();
    deferred_now_.clear();
    const bool after = !after_submit_.empty();
    if (after) {
        A4_CHECK(submit());
        after_submit_now_.swap(after_submit_);
        for (const auto& work : after_submit_now_) work();
        after_submit_now_.clear();
    }
    called += A4_TRY(turn(wait && called == 0 && !after));
    return called;
}

}  // namespace atomic4
