// Inode preallocation (RFC patch 4; the kernel's ext4_mb_normalize_request and inode PAs).
//
// A write into a hole reserves a larger aligned window, so that the writes that follow get
// neighbouring blocks. The window is aligned in the file and on the device alike; a later request
// is served from it only where the device block is aligned for that request. If the window can't be
// had, the original size is tried (which the RFC left open), then, with everybody's windows given
// back, once more; then it is ENOSPC.
//
// Windows live in memory only: what is unused goes back by being forgotten.
#pragma once

#include <map>
#include <vector>

#include "ext4/aligned_allocator.h"

namespace atomic4 {

class InodePreallocations {
  public:
    InodePreallocations(AlignedAllocator& allocator, Bytes block_size)
        : allocator_(allocator), block_size_(block_size) {}

    // Blocks for [lblk, lblk + 2^order) of an inode, aligned to 2^order on the device and in the
    // file; marked in use. file_size is the inode's, for the prediction.
    Result<PblkRun> allocate(uint32_t inode, Lblk lblk, int order, Bytes file_size, Pblk goal);
    void release(uint32_t inode);
    void release_all();

    // The kernel's size prediction: the window's order in blocks.
    static int predict_order(Bytes file_size, Lblk lblk, int order, Bytes block_size);

  private:
    struct Window {
        Lblk lblk;
        PblkRun run;
    };
    Result<PblkRun> take(std::vector<Window>& windows, size_t index, Lblk lblk, Blocks length);

    AlignedAllocator& allocator_;
    Bytes block_size_;
    std::map<uint32_t, std::vector<Window>> windows_;
};

}  // namespace atomic4
