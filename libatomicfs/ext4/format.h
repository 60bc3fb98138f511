// What atomic4 adds to an ext4 volume. The text that decides is FORMAT.md; nothing on disk is
// declared elsewhere (the redo log has its own redo/log_format.h). Numbers are never reused.
#pragma once

#include <cstdint>

namespace atomic4 {

// s_feature_compat: "this volume holds atomic files". A stock kernel mounts it; stock e2fsck and
// resize2fs refuse it, so they can't move the files' blocks (RFC discussion points 1 and 3). Stock
// tools print FEATURE_C28. It stands in every superblock copy.
inline constexpr uint32_t kFeatureCompatAtomic4 = 0x10000000;

// s_feature_incompat: "the redo log holds records that must be replayed before anyone writes". Set
// on owned volumes only, durably, before the first record; cleared after the last is retired. Stock
// kernels and tools refuse the volume meanwhile. Only in the primary superblock.
inline constexpr uint32_t kFeatureIncompatNeedsReplay = 0x10000000;

// i_flags: "the layout of this file is promised". ext4 neither sets nor interprets the bit (in the
// VFS the number is NOCOW: never relocate on write).
inline constexpr uint32_t kInodeFlagAtomic = 0x00800000;

// A file's unit in bytes, ASCII decimal.
inline constexpr char kUnitXattr[] = "trusted.atomic4.unit";
// On the root inode: see volume_attr.h.
inline constexpr char kVolumeXattr[] = "trusted.atomic4.volume";
inline constexpr uint32_t kVolumeVersion = 1;

inline constexpr char kDirectoryName[] = ".atomic4";
inline constexpr char kLogName[] = "log";
inline constexpr char kLockName[] = "lock";

// A unit is a power of two between the block size and this.
inline constexpr uint64_t kUnitMax = uint64_t{4} << 20;
inline constexpr uint64_t kUnitDefault = uint64_t{16} << 10;

}  // namespace atomic4
