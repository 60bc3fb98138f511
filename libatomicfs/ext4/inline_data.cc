#include "ext4/inline_data.h"

#include <cstring>

#include "ext4/errcode.h"
#include "ext4/extent_map.h"
#include "ext4/inode_time.h"
#include "ext4/transaction.h"
#include "ext4/xattr.h"

namespace atomic4 {

namespace {

constexpr const char* kInlineXattr = "system.data";

Result<std::vector<std::byte>> read_inline(Volume& volume, ext2_ino_t number, ext2_inode inode,
                                           const std::string& what) {
    // An inode is never larger than a block.
    std::vector<std::byte> bytes(volume.block_size().value());
    size_t length = 0;
    A4_CHECK(check_errcode(ext2fs_inline_data_size(volume.fs(), number, &length), what));
    const uint64_t size = EXT2_I_SIZE(&inode);
    if (length > bytes.size() || size > length) {
        return fail(EUCLEAN, "{}: {} bytes in an inode that holds {}: the volume needs e2fsck",
                    what, size, length);
    }
    A4_CHECK(check_errcode(
        ext2fs_inline_data_get(volume.fs(), number, &inode, bytes.data(), &length), what));
    std::memset(bytes.data() + size, 0, bytes.size() - size);
    return bytes;
}

}  // namespace

Result<> convert_inline_data(Volume& volume, ext2_ino_t number) {
    A4_CHECK(volume.usable());
    ext2_filsys fs = volume.fs();
    const std::string what = fmt::format("inode {}", number);
    ext2_inode inode{};
    A4_CHECK(check_errcode(ext2fs_read_inode(fs, number, &inode), what));
    if ((inode.i_flags & EXT4_INLINE_DATA_FL) == 0) return {};
    if (!LINUX_S_ISREG(inode.i_mode)) return fail(EINVAL, "{}: not a regular file", what);
    const auto data = A4_TRY(read_inline(volume, number, inode, what));

    Transaction transaction(volume);
    A4_CHECK(write_xattr(fs, number, kInlineXattr, std::nullopt));
    A4_CHECK(check_errcode(ext2fs_read_inode(fs, number, &inode), what));
    inode.i_flags = (inode.i_flags & ~EXT4_INLINE_DATA_FL) | EXT4_EXTENTS_FL;
    std::memset(inode.i_block, 0, sizeof inode.i_block);
    std::vector<PblkRun> runs;
    if (EXT2_I_SIZE(&inode) > 0) {
        const Pblk goal(ext2fs_group_first_block2(fs, ext2fs_group_of_ino(fs, number)));
        PblkRun run = A4_TRY(volume.allocator().allocate(0, goal).context(what));
        run.length = Blocks(1);  // of a cluster the rest is for growth
        runs.push_back(run);
    }
    A4_CHECK(map_empty_file(volume, number, &inode, runs, Blocks(1)));
    A4_CHECK(check_errcode(ext2fs_iblk_add_blocks(fs, &inode, runs.size()), what));
    A4_CHECK(write_inode_now(fs, number, inode, kTimeChanged, what));
    // Free by the bitmaps until the commit, whose first flush covers it.
    for (const PblkRun& run : runs) {
        const ByteOffset at(run.start.value() * volume.block_size().value());
        A4_CHECK(volume.device().write(at, data).context(what));
    }
    return transaction.commit();
}

}  // namespace atomic4
