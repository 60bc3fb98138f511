// Turning an ext4 volume into an atomic4 one, and back (FORMAT.md, "Enabling and disabling").
//
// Enabling: directory, log, lock file and volume attribute in one operation, then the gate bit,
// backups first. Until the gate is set the volume is a plain ext4 with a directory /.atomic4 in it.
// Disabling: the other way round, the gate last; interrupted, it is run again.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "ext4/atomic_file.h"

namespace atomic4 {

struct EnableOptions {
    Bytes unit{0};                  // 0: 16 KiB, or the block size if that is larger
    std::optional<Bytes> log_size;  // default: default_log_size
    // A log that can't be read any more, or whose file is damaged and that is empty, is replaced:
    // for fsck, when whatever it held is replayed or given up.
    bool replace_log = false;
};

// 1/64 of the volume within 8 … 256 MiB; on volumes under 512 MiB 1/64, at least 256 KiB.
Bytes default_log_size(Bytes volume_size);

// The unit and log size that enable will use; EINVAL for impossible ones.
struct EnablePlan {
    Bytes unit;
    Bytes log_size;
    // Only the gate was missing, in some superblock copy or in all: unit and log are as they were.
    bool completed = false;
    // An earlier enable or disable had been interrupted: e2fsck may find more that it left.
    bool after_interruption = false;
};
Result<EnablePlan> plan_enable(Bytes block_size, Bytes volume_size, const EnableOptions& options);

// The volume was opened for writing without require_atomic4. EEXIST: it is enabled already, or its
// log and unit are there and not the ones that are asked for.
Result<EnablePlan> enable(Volume& volume, const EnableOptions& options);

// Whether /.atomic4/log and /.atomic4/lock are where they belong. The attribute leads to the log.
Result<bool> parts_are_named(Volume& volume);
// Names them again, where a directory was lost or damaged: the log keeps another name that it may
// have got, a lock file is made anew. What is in the way gets another name (/.atomic4.INODE).
Result<> name_parts(Volume& volume);

struct DisableReport {
    bool after_interruption = false;   // as in EnablePlan
    std::vector<ext2_ino_t> released;  // files that lost the flag (force)
};
// EBUSY: atomic files exist, and force is not given. EEXIST: something in /.atomic4 is not what
// enable made; nothing is changed.
Result<DisableReport> disable(Volume& volume, bool force);

}  // namespace atomic4
