// Which inodes a block holds.
//
// With flex_bg the inode table of a group may lie in any group (mke2fs -E packed_meta_blocks puts
// all of them first), so that its place says nothing by itself.
#pragma once

#include <ext2fs/ext2fs.h>

#include <optional>
#include <utility>
#include <vector>

namespace atomic4 {

class InodeTables {
  public:
    explicit InodeTables(ext2_filsys fs);

    // The first inode in this block, if it belongs to an inode table.
    std::optional<ext2_ino_t> first_inode_in(uint64_t block) const;

  private:
    ext2_filsys fs_;
    std::vector<std::pair<uint64_t, dgrp_t>> tables_;  // first block and group, ascending
};

}  // namespace atomic4
