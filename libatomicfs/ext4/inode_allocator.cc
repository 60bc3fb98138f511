#include "ext4/inode_allocator.h"

#include <algorithm>

namespace atomic4 {

Result<ext2_ino_t> InodeAllocator::allocate(ext2_ino_t parent, bool directory) {
    const uint32_t per_group = fs_->super->s_inodes_per_group;
    const uint32_t start = (parent - 1) / per_group;
    std::map<uint32_t, Error> damaged;
    for (uint32_t i = 0; i < fs_->group_desc_count; ++i) {
        const uint32_t group = (start + i) % fs_->group_desc_count;
        if (ext2fs_bg_free_inodes_count(fs_, group) == 0) continue;
        const auto got = bitmaps_.get(group);
        if (!got && bitmaps_.is_damaged(group)) {
            damaged.emplace(group, got.error());
            continue;
        }
        const auto bits = A4_TRY(got);
        const uint32_t base = group * per_group + 1;
        const uint32_t first = EXT2_FIRST_INODE(fs_->super);
        for (uint32_t bit = base < first ? first - base : 0; bit < per_group; ++bit) {
            if (((*bits)[bit / 8] >> (bit % 8) & 1) != 0) continue;
            // As the kernel does: a group with inodes has a real block bitmap too.
            if (auto done = block_bitmaps_.initialise(group); !done) {
                if (!block_bitmaps_.is_damaged(group)) return fail(std::move(done).error());
                damaged.emplace(group, std::move(done).error());
                break;
            }
            descriptors_.touch(group);
            A4_CHECK(bitmaps_.set(group, bit, 1, true));
            ext2fs_bg_free_inodes_count_set(fs_, group,
                                            ext2fs_bg_free_inodes_count(fs_, group) - 1);
            if (directory)
                ext2fs_bg_used_dirs_count_set(fs_, group,
                                              ext2fs_bg_used_dirs_count(fs_, group) + 1);
            ext2fs_bg_flags_clear(fs_, group, EXT2_BG_INODE_UNINIT);
            if (ext2fs_has_group_desc_csum(fs_)) {
                const uint32_t unused = per_group - bit - 1;
                ext2fs_bg_itable_unused_set(
                    fs_, group, std::min<uint32_t>(ext2fs_bg_itable_unused(fs_, group), unused));
            }
            --fs_->super->s_free_inodes_count;
            return base + bit;
        }
    }
    if (!damaged.empty()) return fail(damaged_groups_error("no free inode", damaged));
    return fail(ENOSPC, "no free inode");
}

Result<> InodeAllocator::free(ext2_ino_t inode, bool directory) {
    const uint32_t per_group = fs_->super->s_inodes_per_group;
    const uint32_t group = (inode - 1) / per_group;
    // set() touches the descriptor.
    if (auto done = bitmaps_.set(group, (inode - 1) % per_group, 1, false); !done) {
        if (bitmaps_.is_damaged(group)) return {};
        return done;
    }
    ext2fs_bg_free_inodes_count_set(fs_, group, ext2fs_bg_free_inodes_count(fs_, group) + 1);
    if (directory)
        ext2fs_bg_used_dirs_count_set(fs_, group, ext2fs_bg_used_dirs_count(fs_, group) - 1);
    ++fs_->super->s_free_inodes_count;
    return {};
}

Result<bool> InodeAllocator::in_use(ext2_ino_t inode) {
    const uint32_t per_group = fs_->super->s_inodes_per_group;
    if (inode == 0 || inode > fs_->super->s_inodes_count) return false;
    const auto bits = A4_TRY(bitmaps_.get((inode - 1) / per_group));
    const uint32_t bit = (inode - 1) % per_group;
    return ((*bits)[bit / 8] >> (bit % 8) & 1) != 0;
}

}  // namespace atomic4
