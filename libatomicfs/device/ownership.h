// Who else uses a block device or an image file: to be asked before it is opened for writing.
//
// Refused: a device that is mounted, swap, or a part of a device-mapper or RAID set; an image that
// a loop device is attached to (neither flock nor O_EXCL on the image stops `mount -o loop`: F15);
// a swap file; a loop device while another one that shares some of its bytes is mounted. A loop
// device that isn't mounted is a fine target itself.
//
// What can't be seen: mounts in other mount namespaces, and other programs with the file open. For
// a block device, O_EXCL (FileDevice) catches the mounts; for an image in a loop device mounted
// elsewhere, the loop device is seen. Between the answer and the opening things can change: check
// again after opening where that matters.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/result.h"

namespace atomic4 {

// EBUSY with a message that says who and what to do about it: "image /x.img is attached to
// /dev/loop3, which is mounted on /mnt: umount /mnt and losetup -d /dev/loop3". A path that can't
// be looked at gives stat's error. Our own opening of the path doesn't count as use.
Result<> refuse_if_in_use(const std::string& path);

// Where a block device, or an image by way of a loop device, is mounted; the first place of
// several.
std::optional<std::string> mounted_on(const std::string& path);

// Whether a block device has the root file system, mounted read-only everywhere, as it is at boot:
// fsck may repair it then, and the system has to be booted again.
bool is_read_only_root(const std::string& path);

struct LoopUse {
    std::string device;                      // "/dev/loop3"
    std::optional<std::string> mount_point;  // of it or of one of its partitions
};

// Which loop devices have this file (or block device) behind them.
std::vector<LoopUse> loop_devices_on(const std::string& path);

}  // namespace atomic4
