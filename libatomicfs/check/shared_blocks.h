// Blocks that an atomic file and somebody else claim both.
//
// Stock e2fsck gives such a block to the inode with the higher number and a copy to the lower one
// (F9), so that an atomic file may lose its layout. Here it is found out beforehand who has to give
// way: whoever repairs moves that one (writer/move_blocks.h).
//   - An atomic file whose layout is intact stays, but for the volume's own inodes (journal, quota
//   …).
//   - Of two such the redo log stays, else the one with the larger unit.
//   - One whose layout is broken gives way to everybody: it needs other blocks anyway, and what it
//     gives up must not be taken for its own.
//
// One look at all inodes (ext4/block_claims.h); memory goes with the atomic files' extents.
#pragma once

#include <set>
#include <vector>

#include "ext4/block_claims.h"
#include "guard/protected_set.h"

namespace atomic4 {

struct SharedBlocks {
    ext2_ino_t stays = 0;
    ext2_ino_t gives_way = 0;
    bool atomic = false;            // the one that gives way: moved by whole units
    bool own = false;               // the one that stays is the volume's
    std::vector<BlockClaim> parts;  // of the one that gives way
    Pblk first;
    Blocks count;
};

struct SharingReport {
    std::vector<SharedBlocks> shared;
    // With the atomic flag, but not what can be an atomic file.
    std::vector<ext2_ino_t> wrong_type;
    // Those of them that have been one, by their checksums.
    std::set<ext2_ino_t> were_atomic;
    // With the flag, but without a link, although nobody has deleted it.
    std::vector<ext2_ino_t> no_links;
};

// intact, broken: the atomic files; orphans: of the volume (ext4/orphans.h).
Result<SharingReport> find_shared_blocks(Volume& volume, InodeClaims& claims,
                                         const std::vector<ProtectedFile>& intact,
                                         const std::set<ext2_ino_t>& broken,
                                         const std::set<ext2_ino_t>& orphans);

// Which of these inodes' blocks others claim, too: "block 1557 of inode 15 is inode 2's, too".
Result<std::vector<std::string>> shared_blocks_of(Volume& volume,
                                                  const std::set<ext2_ino_t>& inodes);

// An inode that is the volume's: journal, resize, quota, orphan file.
bool is_volumes_own(ext2_filsys fs, ext2_ino_t number);

}  // namespace atomic4
