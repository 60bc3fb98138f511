// Gives blocks of a file a new place, since somebody else has a better claim to where they are.
//
// The counterpart of e2fsck's pass 1D for the inode of the caller's choice: stock e2fsck always
// clones for the inode with the lowest number (F9). What is there is copied; the inode switches
// from its old extent tree to a new one at once (an indirect-mapped file has extents then), and
// what it gave up is not freed (its times don't change): it is the other's, and e2fsck finds out
// what is nobody's.
//
// Indirect blocks that make no sense can't become extents: the inode gets copies of all of them,
// which e2fsck may change. Copies are written before the commit, which flushes them before the
// inode leads there (ext4/transaction.h).
#pragma once

#include <vector>

#include "ext4/block_claims.h"
#include "ext4/volume.h"

namespace atomic4 {

// parts: what of the inode lies where it must not. granule: what moves is rounded to multiples of
// so many blocks, which are allocated aligned to it: 1 for ordinary files, an atomic file's unit.
// The bitmaps are proved (bitmap_rebuild.h). EUCLEAN: its mapping can't be read; ENOSPC: nothing
// has changed.
Result<> move_blocks(Volume& volume, ext2_ino_t number, const std::vector<BlockClaim>& parts,
                     Blocks granule);

}  // namespace atomic4
