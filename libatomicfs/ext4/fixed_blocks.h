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

class FixedBlocks {
  public:
    explicit FixedBlocks(ext2_filsys fs);

    // Whether one of the blocks [first, first + count) is.
    bool overlap(uint64_t first, uint64_t count) const;

  private:
    std::vector<std::pair<uint64_t, uint64_t>> ranges_;  // first and end; ascending, apart
};

}  // namespace atomic4
