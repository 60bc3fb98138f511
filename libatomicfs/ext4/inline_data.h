// Files whose data lies in the inode itself (the feature inline_data).
#pragma once

#include "ext4/volume.h"

namespace atomic4 {

// Gives such a file a block of its own with the same contents, and the extents flag; size,
// timestamps but ctime, xattrs and generation stay. An operation of its own: durable, or nothing
// changed. Nothing to do for a file that has blocks already. EINVAL: not a regular file; ENOSPC.
Result<> convert_inline_data(Volume& volume, ext2_ino_t number);

}  // namespace atomic4
