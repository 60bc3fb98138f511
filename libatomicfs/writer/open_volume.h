// Opening an atomic4 volume the way tools do: a non-empty log is replayed before anything is
// written, and nothing is read from files that live records would change.
#pragma once

#include <memory>
#include <optional>

#include "ext4/volume.h"
#include "redo/replay.h"

namespace atomic4 {

struct OpenVolume {
    std::unique_ptr<Volume> volume;
    std::unique_ptr<Device> log;
    LogContents log_contents;              // nothing live after a read-write opening
    std::optional<ReplayReport> replayed;  // if the opening replayed something
};

// EUCLEAN: the log has conflicts or is corrupt: `atomic4ctl recover` decides.
Result<OpenVolume> open_for_writing(std::unique_ptr<Device> device,
                                    std::optional<bool> may_use_reserved = std::nullopt);

// EBUSY: the log holds live records; a reader would see bytes from before them.
Result<OpenVolume> open_for_reading(std::unique_ptr<Device> device);

// For recover itself: replays under the given policy, and reports. clear_mmp: VolumeOptions'.
Result<ReplayReport> recover(std::unique_ptr<Device> device, OnConflict policy,
                             bool clear_mmp = false);
// The same for fsck, on a volume in any state but one with a journal to replay (damaged_too,
// VolumeOptions): where bitmaps can't be trusted they are proved first (ext4/bitmap_rebuild.h).
Result<ReplayReport> recover_damaged(std::unique_ptr<Device> device, OnConflict policy);

}  // namespace atomic4
