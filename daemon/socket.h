// The daemon's listening socket: an AF_UNIX SOCK_SEQPACKET in the file system.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"

namespace atomic4 {

// Who may connect: who may write the socket. What a client may then do is another matter
// (authority.h), so that even 0666 opens no file to anybody.
struct SocketAccess {
    mode_t mode = 0660;
    std::optional<gid_t> group;  // none: the process's
};

// Bound, not yet listening. Makes the default directory. A socket that a dead daemon left is
// replaced; EADDRINUSE if one answers there; EEXIST if something else has that name.
Result<UniqueFd> bind_socket(const std::string& path, const SocketAccess& access = {});

}  // namespace atomic4
