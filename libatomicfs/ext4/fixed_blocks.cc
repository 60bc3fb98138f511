#include "ext4/fixed_blocks.h"

#include <algorithm>

namespace atomic4 {

FixedBlocks::FixedBlocks(ext2_filsys fs) {
    std::vector<std::pair<uint64_t, uint64_t>> all;
    const auto add = [&](uint64_t first, uint64_t count) {
        if (count > 0) all.emplace_back(first, first + count);
    };
    const uint64_t descriptors = ext2fs_has_feature_meta_bg(fs->super)
                                     ? fs->super->s_first_meta_bg
                                     : uint64_t{fs->desc_blocks} + fs->super->s_reserved_gdt_blocks;
    for (dgrp_t group = 0; group < fs->group_desc_count; ++group) {
        blk64_t super = 0;
        blk64_t old_descriptors = 0;
        blk64_t new_descriptors = 0;
        blk_t used = 0;
        ext2fs_super_and_bgd_loc2(fs, group, &super, &old_descriptors, &new_descriptors, &used);
        if (super != 0 || group == 0) add(super, 1);
        if (old_descriptors != 0) add(old_descriptors, descriptors);
        if (new_descriptors != 0) add(new_descriptors, 1);
        add(ext2fs_block_bitmap_loc(fs, group), 1);
        add(ext2fs_inode_bitmap_loc(fs, group), 1);
        add(ext2fs_inode_table_loc(fs, group), fs->inode_blocks_per_group);
    }
    std::ranges::sort(all);
    for (const auto& range : all) {
        if (!ranges_.empty() && range.first <= ranges_.back().second)
            ranges_.back().second = std::max(ranges_.back().second, range.second);
        else
            ranges_.push_back(range);
    }
}

bool FixedBlocks::overlap(uint64_t first, uint64_t count) const {
    const auto next =
        std::ranges::upper_bound(ranges_, first, {}, &std::pair<uint64_t, uint64_t>::second);
    return next != ranges_.end() && next->first < first + count;
}

}  // namespace atomic4
