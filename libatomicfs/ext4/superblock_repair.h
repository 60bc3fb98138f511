// A primary superblock whose only fault is its checksum, proved against a backup.
//
// Stock tools update the primary in pieces of two bytes (F5), and a disk may tear it: what a power
// cut leaves then is a mixture of old and new fields that no kernel and no tool opens. The fields
// that such an update changes are those of every day (counts, times, states, label); each of them
// may have its old or its new value. The others never change in the life of a volume, or in all
// copies at once (tune2fs, resize2fs), so a backup has them too: where they all agree, the
// mixture is this volume's superblock and lacks nothing but the checksum.
//
// A backup counts if it has the magic, a right checksum, the primary's UUID and its own group's
// number. Any one that agrees is enough; backups don't follow every day's changes.
//
// The gate bit, the needs-replay bit and the features that the kernel sets and clears by itself
// (needs_recovery, orphan_present, large_file, ext_attr) are taken from the primary. Each is
// written at a moment when the old and the new value are both true: needs_recovery while the
// journal is empty, needs-replay while the log is. The gate counts from any copy anyway.
#pragma once

#include <ext2fs/ext2fs.h>

#include <optional>
#include <string>

#include "device/device.h"

namespace atomic4 {

struct SuperblockProof {
    // The primary with a right checksum; unset: it can't be proved, and why.
    std::optional<ext2_super_block> repaired;
    std::string why;  // "its copy in group 1 differs in the block count", "agrees with …"
};

// Unset: the primary isn't an ext4's, or has a right checksum (or none to have).
Result<std::optional<SuperblockProof>> prove_superblock(Device& device);

}  // namespace atomic4
