#include "ext4/inode_allocator.h"

#include <algorithm>

#include "ext4/errcode.h"

namespace atomic4 {

// Whether the inode itself says that it is in use. What lies beyond the used part of the table was
// perhaps never written.
Result<bool> InodeAllocator::has_links(uint32_t group, uint32_t bit) const {
    const uint32_t per_group = fs_->super->s_inodes_per_group;
    if (ext2fs_has_group_desc_csum(fs_) &&
        (ext2fs_bg_flags_test(fs_, group, EXT2_BG_INODE_UNINIT) ||
         bit >= per_group - std::min<uint32_t>(ext2fs_bg_itable_unused(fs_, group), per_group)))
        return false;
    const ext2_ino_t number = group * per_group + bit + 1;
    ext2_inode inode{};
    const errcode_t code = ext2fs_read_inode(fs_, number, &inode);
    // A free inode's checksum protects nothing.
    if (code != EXT2_ET_INODE_CSUM_INVALID)
        A4_CHECK(check_errcode(code, fmt::format("inode {}", number)));
    return inode.i_links_count != 0;
}

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
            if (A4_TRY(has_links(group, bit))) {
                const Error why{EUCLEAN, fmt::format("group {}: the inode bitmap calls inode {} "
                                                     "free, which is in use: the volume needs "
                                                     "e2fsck",
                                                     group, base + bit)};
                bitmaps_.mark_damaged(group, why);
                damaged.emplace(group, why);
                break;
            }
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
