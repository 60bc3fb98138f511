// Whether a process that is held in opening a file (open_watch.h) only wants to read it.
//
// While it is held, its system call's arguments stay as they are, and /proc/PID/task/TID/syscall
// shows them (proc(5)): every thread that is in an open(2) or the like must ask for reading only.
// Whatever can't be told so counts as no: another architecture's calls, openat2(2), whose flags are
// in memory, io_uring, a process that can't be looked at.
//
// Needs CAP_SYS_PTRACE for other users' processes. Threads: any.
#pragma once

#include <sys/types.h>

namespace atomic4 {

bool surely_only_reads(pid_t held);

}  // namespace atomic4
