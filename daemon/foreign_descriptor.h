// Getting rid of a descriptor that a client passed and that wasn't accepted.
//
// close(2) of a FUSE file asks its server (FUSE_FLUSH) and waits for the answer; a network file may
// wait for its server too. That server may be the client: it would hold up the event loop for
// ever. So a thread of its own closes such a descriptor. Descriptors that close(2) is stuck with
// are counted by user, so that one user can't use up the daemon's threads and descriptors: while
// foreign_pending(user) is kForeignMax or more, receive from that user's connections without a
// control buffer. The kernel then drops what they pass, and that doesn't wait.
//
// Threads: any.
#pragma once

#include <sys/types.h>

#include <cstddef>

#include "base/unique_fd.h"

namespace atomic4 {

inline constexpr size_t kForeignMax = 16;

// Returns at once; nothing if fd is empty. user: whose client passed it.
void close_foreign(UniqueFd fd, uid_t user);

// How many of this user's are being closed.
size_t foreign_pending(uid_t user);

}  // namespace atomic4
