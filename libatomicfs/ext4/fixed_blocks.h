// The blocks that are metadata wherever files lie: superblocks, group descriptors with what is
// reserved for their growth, bitmaps and inode tables. No file's extent may claim one; the kernel
// refuses such an extent by its "system zone" (fs/ext4/block_validity.c).
//
// Built from the descriptors when first asked, in time and memory proportional to the number of
// groups. Threads: one.
#pragma once

#include <ext2fs/ext2fs.h>

#include <algorithm>
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
    explicit FixedBlocks(ext2_filsys fs) : fs_(fs) {}

    // Whether one of the blocks [first, first + count) is.
    bool overlap(uint64_t first, uint64_t count);

    // f(first, count) for each run of them among [first, last], ascending.
    template <class F>
    void for_each_in(uint64_t first, uint64_t last, F f) {
        for (auto run = reaching(first); run != ranges_.end() && run->first <= last; ++run) {
            const uint64_t start = std::max(first, run->first);
            f(start, std::min(last + 1, run->second) - start);
        }
    }

  private:
    using Ranges = std::vector<std::pair<uint64_t, uint64_t>>;
    // The first range that ends beyond block.
    Ranges::const_iterator reaching(uint64_t block);
    void build();

    ext2_filsys fs_;
    Ranges ranges_;  // first and end; ascending, apart. Empty: not built
};

}  // namespace atomic4
