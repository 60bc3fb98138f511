// The primary superblock and its backups, as a set.
//
// libext2fs writes only the primary by default (F15); the gate bit must stand in every copy, since
// a stock e2fsck -b on a copy without it would run and drop it. This writes the copies itself,
// whole, and in the order that the caller needs. Units: blocks of the filesystem.
#pragma once

#include <ext2fs/ext2fs.h>

#include <optional>
#include <vector>

#include "base/units.h"
#include "device/device.h"

namespace atomic4 {

// Where the primary lies, in bytes, whatever the blocks.
inline constexpr uint64_t kPrimaryOffset = 1024;

// Writes fs->super (free counts, state and all) over the primary, checksummed, as one aligned
// 4 KiB write. Does not flush.
Result<> write_primary_superblock(ext2_filsys fs, Device& device);

// Writes fs->super over every backup, as libext2fs does: marked not valid, without
// needs_recovery. Does not flush.
Result<> write_backup_superblocks(ext2_filsys fs, Device& device);

// A backup that reads as a valid superblock of this very volume (magic, checksum, UUID).
struct BackupSuperblock {
    uint32_t group = 0;
    bool valid = false;
    bool torn = false;  // this volume's by its UUID, but with a wrong checksum
    bool gate = false;
};

// Whether a group has a copy: ext2fs_bg_has_super(), which wants an open filesystem.
bool has_superblock_copy(const ext2_super_block& super, uint32_t group);
// With a right checksum, or without metadata_csum.
bool superblock_checksum_is_right(const ext2_super_block& super);

// Which copies to look at. Without sparse_super every group has one, and reading all of them takes
// longer than an opening may.
enum class Copies {
    Every,
    // Of more than 64: those that a sparse_super volume would have (groups 1 and the powers of 3, 5
    // and 7, where stock tools look for a copy) and the last one.
    Some,
};
Result<std::vector<BackupSuperblock>> read_backup_superblocks(ext2_filsys fs, Device& device,
                                                              Copies copies);

// A copy by its place alone, as e2fsck's -b and -B name it.
struct SuperblockPlace {
    uint64_t block = 0;
    Bytes block_size{4096};
};
struct FoundSuperblock {
    SuperblockPlace place;
    ext2_super_block super{};
};
// Where the primary is no help: what stands at `told` (of any block size, if that is 0), and where
// mke2fs puts the first copies by default. Only what says of itself that it lies there, and has a
// right checksum, if any; what can't be read is none.
Result<std::vector<FoundSuperblock>> find_backup_superblocks(
    Device& device, const std::optional<SuperblockPlace>& told);

}  // namespace atomic4
