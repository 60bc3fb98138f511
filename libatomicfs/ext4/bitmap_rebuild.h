// Makes damaged block bitmaps usable again: for replay, when no other group can serve, and for
// fsck.
//
// While the needs-replay bit is set e2fsck can't go first, so replay that has to allocate (a growth
// that was interrupted may take a tree block) must find its way with a bitmap whose checksum is
// torn. A block counts as free only if all of these say so:
//
//   - the bitmap as it stands: each of its sectors is from before or after our own operation, and
//     in either nothing is called free that an inode points at (transaction.h);
//   - the blocks of every inode, as a scan of all of them finds them;
//   - superblocks, descriptors, bitmaps and inode tables.
//
// What can't be proved is left alone: EUCLEAN if an inode can't be read, if there are orphans, or
// if the group's descriptor itself is damaged. Blocks that only the bitmap calls used stay so:
// e2fsck finds their owners or frees them.
//
// Cost: reads every inode and every extent tree of the volume, once.
#pragma once

#include <string>
#include <vector>

#include "ext4/volume.h"

namespace atomic4 {

// For fsck, before it allocates: the bitmaps of all groups, damaged ones too, call nothing free
// that any inode claims, as for_each_claiming_inode (block_claims.h) finds them whatever their
// checksums say; in an operation of its own. What a bitmap calls used without an owner stays so:
// e2fsck finds it. Groups whose descriptor is damaged stay damaged.
//
// BecomesFree: what no inode claims is free, where there is no room otherwise. EUCLEAN, and nothing
// changed, if an inode can't be read to its end or a descriptor is damaged, or there are orphans.
// also: what is claimed besides, by an inode that is not written yet.
enum class Unclaimed { StaysUsed, BecomesFree };
Result<> prove_all_bitmaps(Volume& volume, Unclaimed unclaimed = Unclaimed::StaysUsed,
                           const std::vector<PblkRun>& also = {});

// All groups that were found damaged so far, in an operation of its own. Returns what was done, a
// line a group; empty: there was nothing to do. EUCLEAN: not provable, nothing changed.
Result<std::vector<std::string>> rebuild_damaged_bitmaps(Volume& volume);

}  // namespace atomic4
