#include "ext4/inode_tables.h"

#include <algorithm>

namespace atomic4 {

InodeTables::InodeTables(ext2_filsys fs) : fs_(fs) {
    tables_.reserve(fs->group_desc_count);
    for (dgrp_t group = 0; group < fs->group_desc_count; ++group)
        tables_.emplace_back(ext2fs_inode_table_loc(fs, group), group);
    // As mke2fs lays them out, they are.
    if (!std::ranges::is_sorted(tables_)) std::ranges::sort(tables_);
}

std::optional<ext2_ino_t> InodeTables::first_inode_in(uint64_t block) const {
    const auto next =
        std::ranges::upper_bound(tables_, block, {}, &decltype(tables_)::value_type::first);
    if (next == tables_.begin()) return std::nullopt;
    const auto& [start, group] = *std::prev(next);
    if (block - start >= fs_->inode_blocks_per_group) return std::nullopt;
    return static_cast<ext2_ino_t>(uint64_t{group} * fs_->super->s_inodes_per_group +
                                   (block - start) * EXT2_INODES_PER_BLOCK(fs_->super) + 1);
}

}  // namespace atomic4
