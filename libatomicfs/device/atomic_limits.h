// What can be written untorn behind a file descriptor, and if nothing, why not.
//
// A regular file: its file system answers through statx(2). A block device: statx too, and the
// queue's files in sysfs, which alone know the boundary that a write must not cross. A partition
// shares its disk's queue, and can do atomic writes only if it starts at a multiple of
// max(unit_min, boundary) (kernel: bdev_can_atomic_write(); F14).
#pragma once

#include <optional>
#include <string>

#include "base/units.h"
#include "device/device.h"

namespace atomic4 {

// Of an open regular file or block device. Whether the descriptor is O_DIRECT, which an atomic
// write needs besides, is the caller's business.
AtomicLimits probe_atomic_limits(int fd);

// Of a block device by its sysfs directory: /sys/dev/block/MAJ:MIN, or a fake of it.
AtomicLimits read_sysfs_atomic_limits(const std::string& sysfs_dir_of_device);

// Where a partition begins on its disk. Nothing for a whole disk and for a regular file.
std::optional<Bytes> partition_start(int fd);

}  // namespace atomic4
