// Adopting: giving a file that exists the layout of an atomic one; and releasing it again.
//
// adopt_file() takes any regular file that may have atomic writes (write_rules.h): with extents or
// indirect blocks or its data in the inode (inline_data), with holes, unwritten blocks, blocks
// beyond EOF, from whatever program. Then
//   - the invariant of layout.h holds for the unit. Units that are in one aligned run already stay
//     where they are and are not copied; the others move as a whole (ext4/layout_plan.h). A unit
//     that is one hole stays one; where a unit has any block, all of it has, zeros filled in;
//   - flag and unit are set, and the generation is not 0;
//   - contents, size, atime, mtime, links, owner, mode and xattrs are as they were; ctime is now.
//
// The whole file changes in one Transaction: new blocks are filled, then a new extent tree beside
// the old one, then the inode switches from the one to the other; what it had before is given back
// by an operation of its own. A power cut leaves the file before or after it, with the same
// contents, and at worst blocks in use that nobody owns and wrong counts (transaction.h). Before
// the switch, adopting is begun anew by running it again; afterwards there is nothing left to do.
// Therefore the units that move need room all at once. ENOSPC, and any other refusal, is found out
// before the first write: nothing has changed. After an I/O error the file is as before, or the
// message says what is in doubt.
//
// Before anything moves it is proved that the file's own blocks lie in the volume, are nobody's
// metadata, are claimed once by the file and in use by bitmaps that hold. That no other inode
// claims them too is not: that takes all inodes, and is e2fsck's work.
//
// Time and I/O go with the bytes that move, memory with the number of extents, before and after (a
// few MiB for data).
#pragma once

#include <optional>

#include "ext4/atomic_file.h"

namespace atomic4 {

struct AdoptReport {
    bool changed = false;  // false: it was all so already
    ext2_ino_t inode = 0;
    Bytes size;
    Bytes unit;
    uint64_t units_mapped = 0;  // beyond EOF too
    uint64_t units_hole = 0;    // before EOF, or before the last unit that is mapped
    uint64_t units_moved = 0;
    Bytes copied;  // read from the old blocks and written to the new ones
};

// unit: by default the one that the file has, else the volume's. EINVAL (unit, not a regular file),
// EISDIR, EPERM (the log, the lock, the volume's own inodes, append-only, immutable), EOPNOTSUPP
// (encrypted, verity, compressed), EIO (data=journal), EFBIG, ENOSPC, EUCLEAN
// (damage), EBUSY: the log holds records.
Result<AdoptReport> adopt_file(Volume& volume, ext2_ino_t number, std::optional<Bytes> unit);

// release_file() for users: drops flag and unit, the data stays where it is. False: it had neither.
// EINVAL, EISDIR, EPERM (the log, the lock).
Result<bool> release_if_atomic(Volume& volume, ext2_ino_t number);

}  // namespace atomic4
