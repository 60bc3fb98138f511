#include "device/event_loop.h"

#include "device/event_loop_backends.h"

namespace atomic4 {

Result<std::unique_ptr<EventLoop>> EventLoop::create(Backend backend) {
    if (backend == Backend::Syscalls) return make_syscall_loop();
    auto loop = make_uring_loop();
    if (loop || backend == Backend::Uring) return loop;
    return make_syscall_loop();
}

}  // namespace atomic4
