// The daemon's listening socket: an AF_UNIX SOCK_SEQPACKET in the file system.
#pragma once

#include <string>

#include "base/result.h"
#include "base/unique_fd.h"

namespace atomic4 {

// Bound, not yet listening; mode 0660. Makes the default directory. A socket that a dead daemon
// left is replaced; EADDRINUSE if one answers there; EEXIST if something else has that name.
Result<UniqueFd> bind_socket(const std::string& path);

}  // namespace atomic4
