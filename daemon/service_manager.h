// The service manager's side of a daemon: readiness, and sockets that it opened (sd_notify(3),
// sd_listen_fds(3)). Without one, notifications do nothing and there are no sockets.
//
// Threads: notifications any; listen_socket before others start, since it changes the environment.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string_view>

#include "base/result.h"
#include "base/unique_fd.h"

namespace atomic4 {

// status: one line for people, shown by systemctl status.
//
// Ready: the socket is bound, the log replayed. Errors: the manager can't be told; the daemon may
// go on, but a unit of Type=notify will be stopped.
Result<> notify_ready(std::string_view status);
Result<> notify_status(std::string_view status);
Result<> notify_stopping(std::string_view status);
// The process that the manager has to watch from now on, when it isn't the one that was started.
// The unit needs NotifyAccess=all for a child to say so.
Result<> notify_main_process(pid_t pid);

// The listening socket that the manager passed (a .socket unit's), if any; it is close-on-exec, and
// nothing is left in the environment for child processes. EINVAL, saying what the unit has to say
// instead: several descriptors, or one that isn't a listening AF_UNIX SOCK_SEQPACKET socket; all
// that were passed are closed then.
Result<std::optional<UniqueFd>> listen_socket();

}  // namespace atomic4
