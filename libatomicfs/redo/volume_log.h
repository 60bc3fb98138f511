// The redo log inside a volume: the file that the volume attribute names, as a Device.
#pragma once

#include <memory>
#include <vector>

#include "device/slice_device.h"
#include "ext4/volume.h"
#include "redo/log_superblock.h"

namespace atomic4 {

// EUCLEAN if the log file is not where and what the attribute says: missing, another generation,
// not a flagged regular file, with holes or unwritten blocks. Such a log is never written.
Result<std::unique_ptr<SliceDevice>> open_log_device(Volume& volume);
// The same for an attribute that the volume doesn't have (yet).
Result<std::unique_ptr<SliceDevice>> open_log_device(Volume& volume, const VolumeAttr& attr);

// What the attribute should say, by /.atomic4/log and the id in its superblocks; the unit is the
// default. For when the attribute is missing or damaged. EUCLEAN: there is no such log.
Result<VolumeAttr> find_log_by_name(Volume& volume);

// Every file of the volume that is a log by its superblocks, as find_log_by_name reads one: for
// when neither the attribute nor the name leads to it. Reads all inodes.
Result<std::vector<VolumeAttr>> find_logs_anywhere(Volume& volume);

SessionStamp session_stamp(const Volume& volume);

}  // namespace atomic4
