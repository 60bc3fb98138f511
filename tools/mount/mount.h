// mount.atomic4: recovers, mounts as ext4, and starts the daemon (facts F12, F23).
//
//   1 the unmounted volume: gate bit, session stamp, clean or not; if an owned session crashed
//     (needs-replay bit), it is recovered first, with our own library
//   2 mounted as ext4 where nobody sees it: the kernel recovers its journal
//   3 the redo log replayed through that mount
//   4 moved into place: so no reader ever sees a torn unit
//   5 atomic4d started, and waited for until it serves
//
// Whatever fails, nothing stays mounted. Read-only: the same (ext4's own journal is replayed too),
// but read-only when it comes into place, and without the daemon; with noload, or on a
// write-protected device, a log with live records is refused.
#pragma once

#include "common/context.h"
#include "mount/options.h"

namespace atomic4::tools {

// EINVAL: mounting isn't what was asked for properly. Other errors: nothing is mounted.
Result<> mount_volume(const Context& context, const MountRequest& request);

}  // namespace atomic4::tools
