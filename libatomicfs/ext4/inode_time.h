// The times of an inode, as ext4 stores them: 32 bits of seconds, signed, and in the part of larger
// inodes that i_extra_isize covers 32 bits more, two of which extend the seconds to the year 2446;
// the others are nanoseconds (the kernel's EXT4_INODE_SET_XTIME). Where there is no such part,
// times stop in 2038.
#pragma once

#include <ext2fs/ext2fs.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace atomic4 {

struct InodeTime {
    int64_t seconds = 0;
    uint32_t nanoseconds = 0;
};
// The clock, or what fs->now says instead (tests).
InodeTime time_now(ext2_filsys fs);

struct StoredTime {
    uint32_t seconds;
    uint32_t extra;
};
StoredTime encode_time(InodeTime time);
InodeTime decode_time(StoredTime stored);

// A whole on-disk inode, as big as this volume's are.
class FullInode {
  public:
    explicit FullInode(ext2_filsys fs)
        : size_(EXT2_INODE_SIZE(fs->super)), bytes_(std::max(size_, sizeof(ext2_inode_large))) {}
    ext2_inode* core() { return reinterpret_cast<ext2_inode*>(bytes_.data()); }
    ext2_inode_large* large() { return reinterpret_cast<ext2_inode_large*>(bytes_.data()); }
    int size() const { return static_cast<int>(size_); }

  private:
    size_t size_;  // large() is in memory that is large enough, whatever this is
    std::vector<std::byte> bytes_;
};

// Which times to set.
enum : unsigned {
    kTimeAccessed = 1,
    kTimeChanged = 2,
    kTimeModified = 4,
    kTimeCreated = 8,
};
// i_extra_isize is set already.
void set_times(FullInode& inode, unsigned which, InodeTime time);

// ext2fs_write_inode, with these times set to now.
Result<> write_inode_now(ext2_filsys fs, ext2_ino_t number, const ext2_inode& inode, unsigned which,
                         std::string_view what);

}  // namespace atomic4
