// Inodes that the kernel was deleting, or cutting shorter, when it was interrupted: what it
// finishes with the next mount, and e2fsck with its next run.
//
// Both of ext4's ways to remember them: the list through the inodes (s_last_orphan, i_dtime), and
// the orphan file (s_orphan_file_inum).
#pragma once

#include <set>

#include "ext4/volume.h"

namespace atomic4 {

// Damage is no obstacle: what the list leads to before it breaks off.
Result<std::set<ext2_ino_t>> read_orphans(Volume& volume);

}  // namespace atomic4
