// Atomic files: inodes with the flag and a unit, and the layout they promise (FORMAT.md, section
// "An atomic file's invariant"). Also what any regular file needs to take atomic writes.
//
// Sizes and units are bytes. Operations here are whole: each runs its own Transaction, and returns
// with everything durable or with nothing changed.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "ext4/extent_map.h"
#include "ext4/volume.h"

namespace atomic4 {

// An inode as we use it, read afresh.
struct FileState {
    ext2_ino_t number = 0;
    uint32_t generation = 0;
    Bytes size;
    bool atomic = false;        // the inode flag
    std::optional<Bytes> unit;  // the xattr
    ext2_inode inode{};

    bool extent_mapped() const { return (inode.i_flags & EXT4_EXTENTS_FL) != 0; }
};

// ESTALE: no such inode any more (if generation is given: or another one).
Result<FileState> read_file(Volume& volume, ext2_ino_t number,
                            std::optional<uint32_t> generation = std::nullopt);

struct NewFile {
    Bytes size;
    Bytes unit;
    uint16_t mode = 0644;
    uint32_t uid = 0;
    uint32_t gid = 0;
};

// Creates a file with all its units allocated (aligned to the unit), zeroed and written up to size,
// flag and unit set, a random generation. ENOSPC, EEXIST, EINVAL (unit) …: nothing changed.
Result<ext2_ino_t> create_atomic_file(Volume& volume, const std::string& path, const NewFile& file);

// The pieces of creation that enabling a volume needs in one operation of its own.
// Allocates an inode and fills it in; the data blocks are zeroed on the device by zero_runs or by
// the caller. Staged.
struct StagedFile {
    ext2_ino_t number = 0;
    uint32_t generation = 0;
    std::vector<PblkRun> runs;
};
Result<StagedFile> stage_file(Volume& volume, ext2_ino_t parent, const NewFile& file, bool atomic);
Result<StagedFile> stage_directory(Volume& volume, ext2_ino_t parent, const std::string& name,
                                   uint16_t mode);
// Frees an inode with its blocks and xattr block; its names are gone already. Staged.
Result<> stage_delete(Volume& volume, ext2_ino_t number);

// EINVAL unless unit is a power of two from the block size to 4 MiB.
Result<> check_unit(const Volume& volume, Bytes unit);

// Drops the promise: flag and xattr. The data stays.
Result<> release_file(Volume& volume, ext2_ino_t number);

// A block of xattrs is not rewritten where it stands: torn, it would take the others with it.
// Staged: gives the inode a copy of its own one (of one that files share, the library itself makes
// a copy) and returns the old block, to be freed once this operation is committed.
Result<std::optional<Pblk>> move_xattr_block(Volume& volume, ext2_ino_t number);

// Inodes with the atomic flag, in order. Reads the used part of every inode table. What a damaged
// inode is can't be told: those are collected, or, if damaged is null, the first one is EUCLEAN.
Result<std::vector<ext2_ino_t>> find_atomic_inodes(Volume& volume,
                                                   std::vector<ext2_ino_t>* damaged = nullptr);

}  // namespace atomic4
