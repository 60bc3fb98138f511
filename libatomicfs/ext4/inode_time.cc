#include "ext4/inode_time.h"

#include <cstring>
#include <ctime>

#include "ext4/errcode.h"
#include "ext4/inode_cache.h"

namespace atomic4 {

namespace {

constexpr int64_t kSecondsMin = INT32_MIN;
constexpr int64_t kSecondsMax = INT32_MAX;
constexpr int64_t kSecondsMaxExtra = kSecondsMax + (int64_t{3} << 32);

// Whether i_extra_isize covers the field that ends at this byte of the inode.
bool covers(FullInode& inode, size_t end) {
    return inode.size() > EXT2_GOOD_OLD_INODE_SIZE && static_cast<size_t>(inode.size()) >= end &&
           size_t{EXT2_GOOD_OLD_INODE_SIZE} + inode.large()->i_extra_isize >= end;
}

void set_time(FullInode& inode, uint32_t* seconds, uint32_t* extra, size_t extra_end,
              InodeTime time) {
    if (!covers(inode, extra_end)) {
        *seconds =
            static_cast<uint32_t>(std::clamp<int64_t>(time.seconds, kSecondsMin, kSecondsMax));
        return;
    }
    const StoredTime stored = encode_time(time);
    *seconds = stored.seconds;
    *extra = stored.extra;
}

}  // namespace

InodeTime time_now(ext2_filsys fs) {
    if (fs->now != 0) return {fs->now, 0};
    timespec now{};
    clock_gettime(CLOCK_REALTIME, &now);
    return {now.tv_sec, static_cast<uint32_t>(now.tv_nsec)};
}

StoredTime encode_time(InodeTime time) {
    const int64_t seconds = std::clamp(time.seconds, kSecondsMin, kSecondsMaxExtra);
    const auto low = static_cast<int32_t>(seconds);
    // The low part is signed: the epoch is what is missing to the whole, not just the upper bits.
    const auto epoch = static_cast<uint32_t>((seconds - low) >> 32) & 3;
    return {static_cast<uint32_t>(low), epoch | time.nanoseconds << 2};
}

InodeTime decode_time(StoredTime stored) {
    return {static_cast<int32_t>(stored.seconds) + (int64_t{stored.extra & 3} << 32),
            stored.extra >> 2};
}

void set_times(FullInode& inode, unsigned which, InodeTime time) {
    ext2_inode_large& large = *inode.large();
    const auto end_of = [](size_t offset) { return offset + sizeof(uint32_t); };
    if ((which & kTimeAccessed) != 0)
        set_time(inode, &large.i_atime, &large.i_atime_extra,
                 end_of(offsetof(ext2_inode_large, i_atime_extra)), time);
    if ((which & kTimeChanged) != 0)
        set_time(inode, &large.i_ctime, &large.i_ctime_extra,
                 end_of(offsetof(ext2_inode_large, i_ctime_extra)), time);
    if ((which & kTimeModified) != 0)
        set_time(inode, &large.i_mtime, &large.i_mtime_extra,
                 end_of(offsetof(ext2_inode_large, i_mtime_extra)), time);
    // The time of creation has no place at all in a small inode.
    if ((which & kTimeCreated) != 0 && covers(inode, end_of(offsetof(ext2_inode_large, i_crtime))))
        set_time(inode, &large.i_crtime, &large.i_crtime_extra,
                 end_of(offsetof(ext2_inode_large, i_crtime_extra)), time);
}

Result<> write_inode_now(ext2_filsys fs, ext2_ino_t number, const ext2_inode& inode, unsigned which,
                         std::string_view what) {
    FullInode full(fs);
    const errcode_t code = ext2fs_read_inode_full(fs, number, full.core(), full.size());
    A4_CHECK(check_errcode(mended(fs, code), what));
    std::memcpy(full.core(), &inode, sizeof inode);
    set_times(full, which, time_now(fs));
    return check_errcode(ext2fs_write_inode_full(fs, number, full.core(), full.size()), what);
}

}  // namespace atomic4
