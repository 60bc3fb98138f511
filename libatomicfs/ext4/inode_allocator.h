// Allocates and frees inode numbers.
//
// libext2fs's own allocator needs whole-volume bitmaps; this one reads one group at a time
// (group_bitmaps.h). First fit from the parent's group on, as ext2fs_new_inode does. Groups whose
// bitmaps are damaged are left out, also one that calls an inode free which has links; an inode
// freed in one stays marked as in use.
#pragma once

#include <ext2fs/ext2fs.h>

#include "ext4/group_bitmaps.h"

namespace atomic4 {

class InodeAllocator {
  public:
    InodeAllocator(ext2_filsys fs, GroupBitmaps& inode_bitmaps, GroupBitmaps& block_bitmaps,
                   GroupDescriptors& descriptors)
        : fs_(fs),
          bitmaps_(inode_bitmaps),
          block_bitmaps_(block_bitmaps),
          descriptors_(descriptors) {}

    // ENOSPC: no free inode. EUCLEAN: none outside damaged groups.
    Result<ext2_ino_t> allocate(ext2_ino_t parent, bool directory);
    Result<> free(ext2_ino_t inode, bool directory);
    // Whether the bitmap says the inode is in use.
    Result<bool> in_use(ext2_ino_t inode);

  private:
    Result<bool> has_links(uint32_t group, uint32_t bit) const;

    ext2_filsys fs_;
    GroupBitmaps& bitmaps_;
    GroupBitmaps& block_bitmaps_;
    GroupDescriptors& descriptors_;
};

}  // namespace atomic4
