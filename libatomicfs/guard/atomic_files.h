// All atomic files of a volume, copied before somebody else works on it, and compared afterwards.
#pragma once

#include <set>

#include "guard/protected_set.h"

namespace atomic4 {

// The redo log is one of them. EUCLEAN: one of them is damaged, or an inode that may be one; what
// isn't sound can't be protected as it is.
Result<ProtectedSet> protect_atomic_files(Volume& volume);

// Layout: its inode or its mapping are others. Unit: only that is gone, with xattrs that were
// damaged, say.
enum class Lost { Layout, Unit };

struct FileChange {
    size_t file = 0;   // index in the set
    std::string text;  // "/db (inode 15): its block 16 has moved from 4096 to 9000"
    Lost lost = Lost::Layout;
};

// What is no longer as it was. The volume may be in any state that can be opened
// (OpenFor::Inspect).
Result<std::vector<FileChange>> changes_in(Volume& volume, const ProtectedSet& set);

// Gives files their inodes and extent trees back, as they were copied; their data is where it was.
// Links and counts are as they were, too, and the bitmaps have the blocks again: the rest (the
// inode's own bit, the number of its names, a name in lost+found) is e2fsck's, which has to run
// after this: the volume is marked so first. A file that lost its unit only gets that, among what
// xattrs it has now. The number of an inode that e2fsck cleared can only have come to a lost+found
// that it made, and makes again. Opened for writing (VolumeOptions::damaged_too).
Result<> put_back(Volume& volume, const ProtectedSet& set, const std::vector<FileChange>& changes);

// Only the inodes and trees of these files, where the volume can't be opened for writing, since its
// primary superblock leads elsewhere: `seen` is opened by a copy of that, and only looked at. The
// bitmaps are left to e2fsck. EUCLEAN: others have their blocks; nothing is written.
Result<> put_back_inodes(Volume& seen, Device& device, const ProtectedSet& set,
                         const std::set<ext2_ino_t>& numbers);

}  // namespace atomic4
