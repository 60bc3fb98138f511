#include "ext4/claim_map.h"

#include <algorithm>

#include "ext4/errcode.h"

namespace atomic4 {

namespace {

// f(block, count) for pieces that libext2fs can count in its unsigned int.
template <class F>
void for_each_piece(uint64_t from, uint64_t to, F f) {
    constexpr uint64_t kMost = uint64_t{1} << 31;
    for (; from < to; from += kMost) f(from, static_cast<unsigned>(std::min(kMost, to - from)));
}

}  // namespace

Result<ClaimMap> ClaimMap::make(ext2_filsys fs) {
    fs->default_bitmap_type = EXT2FS_BMAP64_RBTREE;
    ext2fs_block_bitmap raw = nullptr;
    A4_CHECK(check_errcode(ext2fs_allocate_block_bitmap(fs, "claims", &raw), "map of claims"));
    return ClaimMap(fs, raw);
}

bool ClaimMap::add(PblkRun run) {
    const uint64_t from = std::max<uint64_t>(run.start.value(), fs_->super->s_first_data_block);
    const uint64_t to =
        std::min<uint64_t>((run.start + run.length).value(), ext2fs_blocks_count(fs_->super));
    for_each_piece(from, to, [&](uint64_t block, unsigned count) {
        ext2fs_mark_block_bitmap_range2(map_.get(), block, count);
    });
    return from < to && run.length == Blocks(to - from);
}

bool ClaimMap::has_any_of(PblkRun run) const {
    bool any = false;
    for_each_piece(run.start.value(), (run.start + run.length).value(),
                   [&](uint64_t block, unsigned count) {
                       any = any || ext2fs_test_block_bitmap_range2(map_.get(), block, count) == 0;
                   });
    return any;
}

}  // namespace atomic4
