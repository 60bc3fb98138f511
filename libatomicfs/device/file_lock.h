// flock(2) with an answer to "who has it?".
//
// The lock belongs to the open file description: it goes with the last descriptor of it. On a
// block device it is on the node, where udev and other tools that keep to the convention look
// (systemd: "Locking Block Device Access"). It binds only those who ask: neither mount(8) nor
// losetup(8) does (F15).
#pragma once

#include <optional>
#include <string>

#include "base/result.h"

namespace atomic4 {

enum class LockKind { Shared, Exclusive };

// Takes the lock without waiting, except for udev, which holds a new device for a moment while it
// looks at it: that is waited out, for 2 seconds at most. Taken: EBUSY "NAME is in use by another
// process (pid 17, fsck.atomic4)", the part in brackets where /proc/locks tells. name is for
// messages.
Result<> lock_file(int fd, LockKind kind, const std::string& name);

// Who has a flock on the file, by /proc: none where that doesn't tell. Who took it, or, if that
// process has ended and left the lock to its children, one of those.
struct LockHolder {
    long pid = 0;
    std::string command;
};
std::optional<LockHolder> find_lock_holder(int fd);

}  // namespace atomic4
