// umount.atomic4: stops the daemon cleanly, so that the log is empty, then unmounts (facts F12).
#pragma once

#include "common/context.h"
#include "mount/options.h"

namespace atomic4::tools {

// EBUSY: the daemon didn't stop in time, or the volume is in use; then it stays mounted, and the
// message says whether it is still served. With force or lazy it is unmounted in any case.
Result<> unmount_volume(const Context& context, const UmountRequest& request);

}  // namespace atomic4::tools
