// libext2fs's small cache of inodes, mended: an inode with a wrong checksum is read into the place
// of another one, which keeps that one's number (lib/ext2fs/inode.c: ext2fs_read_inode2()). Whoever
// asked for that one next would get the damaged one's fields, with no error.
#pragma once

#include <ext2fs/ext2fs.h>

namespace atomic4 {

// From now on ext2fs_read_inode() empties the cache after an error.
void mend_inode_cache(ext2_filsys fs);

// For whatever reads whole inodes, which that doesn't see. Passes the code on.
errcode_t mended(ext2_filsys fs, errcode_t code);

}  // namespace atomic4
