// The two event loops, for event_loop.cc and the tests.
#pragma once

#include "device/event_loop.h"

namespace atomic4 {

// ENOSYS, EPERM: io_uring is disabled here.
Result<std::unique_ptr<EventLoop>> make_uring_loop();
std::unique_ptr<EventLoop> make_syscall_loop();

}  // namespace atomic4
