// Blocks of atomic files that somebody else claims, too.
//
// Stock e2fsck gives such a block to the inode with the higher number and a copy to the lower one
// (F9), so that an atomic file may lose its layout. Here it is found out beforehand who the others
// are: whoever repairs moves them (writer/move_blocks.h), not the atomic file. Only the volume's
// own inodes (journal, quota …) and its metadata win over it.
//
// One look at all inodes (ext4/block_claims.h); memory goes with the atomic files' extents.
#pragma once

#include <set>
#include <vector>

#include "ext4/block_claims.h"
#include "guard/protected_set.h"

namespace atomic4 {

struct SharedBlocks {
    ext2_ino_t atomic = 0;  // the file that stays where it is, unless the other is the volume's own
    ext2_ino_t other = 0;
    enum class Other {
        File,    // or directory, symbolic link …
        Atomic,  // an atomic file whose layout is intact, too
        Own,     // the volume's
    };
    Other kind = Other::File;
    std::vector<BlockClaim> parts;  // of the other inode: what it shares
    Pblk first;
    Blocks count;
};

struct SharingReport {
    std::vector<SharedBlocks> shared;
    // With the atomic flag and a type that isn't a regular file's.
    std::vector<ext2_ino_t> wrong_type;
    // With the flag, but without a link, although nobody has deleted it.
    std::vector<ext2_ino_t> no_links;
};

// files: the atomic ones that are intact; orphans: of the volume (ext4/orphans.h).
Result<SharingReport> find_shared_blocks(Volume& volume, const std::vector<ProtectedFile>& files,
                                         const std::set<ext2_ino_t>& orphans);

}  // namespace atomic4
