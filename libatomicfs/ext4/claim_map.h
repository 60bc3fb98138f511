// A map of blocks, by whole clusters: libext2fs's rbtree bitmap, whose memory goes with the runs in
// it and not with the volume (e2fsck keeps its own maps so). Threads: one.
#pragma once

#include <ext2fs/ext2fs.h>

#include <memory>
#include <type_traits>

#include "ext4/aligned_allocator.h"

namespace atomic4 {

class ClaimMap {
  public:
    // ENOMEM. fs outlives it.
    static Result<ClaimMap> make(ext2_filsys fs);

    // False: some of it lies outside the volume; the rest is added.
    bool add(PblkRun run);
    // False also for a run that doesn't lie within the volume: add() tells that.
    bool has_any_of(PblkRun run) const;

    ext2fs_block_bitmap raw() const { return map_.get(); }

  private:
    using RawMap = std::remove_pointer_t<ext2fs_block_bitmap>;
    struct FreeMap {
        void operator()(RawMap* map) const { ext2fs_free_block_bitmap(map); }
    };

    ClaimMap(ext2_filsys fs, ext2fs_block_bitmap raw) : fs_(fs), map_(raw) {}

    ext2_filsys fs_;
    std::unique_ptr<RawMap, FreeMap> map_;
};

}  // namespace atomic4
