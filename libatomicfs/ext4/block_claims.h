// What blocks the inodes of a volume claim, by a look at every one of them: for those who have to
// know whose a block is where bitmaps can't be trusted.
//
// Damage is no obstacle: checksums are ignored, and of a mapping that can't be read to its end what
// came before counts. Blocks are as they stand there; they may lie outside the volume.
//
// Cost: reads every used inode and every extent tree of the volume, once. Threads: one.
#pragma once

#include <functional>
#include <vector>

#include "ext4/aligned_allocator.h"

namespace atomic4 {

class Volume;

struct BlockClaim {
    enum class Kind {
        Data,
        Node,    // of its extent tree, or an indirect block
        Xattrs,  // its block of extended attributes
    };
    Kind kind = Kind::Data;
    Lblk lblk;  // Data
    PblkRun run;
};

struct ClaimingInode {
    ext2_ino_t number = 0;
    ext2_inode inode{};
    std::vector<BlockClaim> claims;
    bool readable = true;     // to its end
    bool checksum_ok = true;  // of the inode itself, or of the file that it was:
    // An atomic one, but its mode or its link count isn't what it was when its checksum was made.
    bool was_atomic_file = false;
    bool unit = false;  // the unit's attribute is in the inode, or seems to be
};

// The descriptor calls more inodes never used than it counts as free. Whoever believes it doesn't
// see the rest; this library looks at all inodes then.
bool hides_inodes(ext2_filsys fs, dgrp_t group);

// Of each inode that is in use and claims blocks, or is marked as atomic or has a unit, or has a
// wrong checksum; in order.
using OnInode = std::function<void(const ClaimingInode&)>;
// After each block group: how many of them are done. False ends it, with ECANCELED.
using OnGroup = std::function<bool(uint64_t done, uint64_t groups)>;
// EUCLEAN: an inode table is not where it can be.
Result<> for_each_claiming_inode(Volume& volume, const OnInode& visit, const OnGroup& done = {});

// The same for those who look for blocks that two inodes claim: on a volume without any, one look
// at all inodes is enough to know. Memory goes with the runs of claimed blocks, as e2fsck's does.
class InodeClaims {
  public:
    explicit InodeClaims(Volume& volume) : volume_(volume) {}
    Result<> for_each(const OnInode& visit, const OnGroup& done = {});
    // Afterwards: all of them, once more, if a block is claimed twice, or one outside the volume.
    // Else nobody shares, and it may be only those that are marked as atomic, or were, or have no
    // link; without their claims.
    Result<> for_each_that_may_share(const OnInode& visit);

  private:
    Volume& volume_;
    bool one_look_is_enough_ = false;
    std::vector<ClaimingInode> marked_;
};

// Of one inode, as it stands.
std::vector<BlockClaim> claims_of(Volume& volume, ext2_ino_t number);

}  // namespace atomic4
