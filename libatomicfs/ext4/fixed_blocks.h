// The blocks that are metadata wherever files lie: superblocks, group descriptors with what is
// reserved for their growth, bitmaps and inode tables. No file's extent may claim one; the kernel
// refuses such an extent by its "system zone" (fs/ext4/block_validity.c).
//
// Built from the descriptors, in time and memory proportional to the number of groups. Threads: any
// number, it doesn't change.
#pragma once

#include <ext2fs/ext2fs.h>

#include <cstdint>
#include <utility>
#include <vector>

namespace atomic4 {

// Of one group: add(first block, count) for each of them; they lie in whatever group (flex_bg).
template <class Add>
void for_each_fixed_run(ext2_filsys fs, dgrp_t group, Add add) {
    blk64_t super = 0;
    blk64_t old_descriptors = 0;
    blk64_t new_descriptors = 0;
    blk_t used = 0;
    ext2fs_super_and_bgd_loc2(fs, group, &super, &old_descriptors, &new_descriptors, &used);
    if (super != 0 || group == 0) add(super, uint64_t{1});
    if (old_descriptors != 0) {
        add(old_descriptors, ext2fs_has_feature_meta_bg(fs->super)
                                 ? uint64_t{fs->super->s_first_meta_bg}
                                 : uint64_t{fs->desc_blocks} + fs->super->s_reserved_gdt_blocks);
    }
    if (new_descriptors != 0) add(new_descriptors, uint64_t{1});
    add(ext2fs_block_bitmap_loc(fs, group), uint64_t{1});
    add(ext2fs_inode_bitmap_loc(fs, group), uint64_t{1});
    add(ext2fs_inode_table_loc(fs, group), uint64_t{fs->inode_blocks_per_group});
}

class FixedBlocks {
  public:
    explicit FixedBlocks(ext2_filsys fs);

    // Whether one of the blocks [first, first + count) is.
    bool overlap(uint64_t first, uint64_t count) const;

  private:
    std::vector<std::pair<uint64_t, uint64_t>> ranges_;  // first and end; ascending, apart
};

}  // namespace atomic4
