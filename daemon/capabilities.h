// Powers of root that the daemon gives up, because they would go to its clients.
//
// The kernel does for a write what it does for whoever calls it, and that is the daemon:
//   CAP_FSETID        with it a write leaves setuid and setgid bits alone: a client could change a
//                     program that runs as another user
//   CAP_SYS_RESOURCE  with it disk quotas don't hold, and the blocks reserved for root are used
//                     (user 0 may use these even so, unless tune2fs -u names another)
#pragma once

#include "base/result.h"

namespace atomic4 {

// Of the calling thread and those it starts later: so before any thread, io_uring's too, exists.
// For good. Without root there is nothing to give up.
Result<> drop_client_capabilities();
// CAP_CHOWN, which is needed once: to give the socket to its group.
Result<> drop_start_capabilities();

}  // namespace atomic4
