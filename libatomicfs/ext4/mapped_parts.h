// Which parts of a range of a mounted file have blocks.
#pragma once

#include <vector>

#include "base/result.h"
#include "base/units.h"

namespace atomic4 {

struct MappedPart {
    ByteOffset offset;
    Bytes length;
};

// In order, and neighbours apart: written, unwritten and not yet allocated (delayed) extents alike
// (FS_IOC_FIEMAP). Takes the inode's lock, which others may hold for long. Threads: any.
Result<std::vector<MappedPart>> mapped_parts(int fd, ByteOffset offset, Bytes length);

}  // namespace atomic4
