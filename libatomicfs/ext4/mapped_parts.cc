#include "ext4/mapped_parts.h"

#include <linux/fiemap.h>
#include <linux/fs.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cstring>

namespace atomic4 {

Result<std::vector<MappedPart>> mapped_parts(int fd, ByteOffset offset, Bytes length) {
    constexpr uint32_t kBatch = 64;
    std::vector<uint64_t> memory(
        (sizeof(fiemap) + kBatch * sizeof(fiemap_extent)) / sizeof(uint64_t) + 1);
    auto* const map = reinterpret_cast<fiemap*>(memory.data());
    std::vector<MappedPart> parts;
    const uint64_t end = (offset + length).value();
    for (uint64_t at = offset.value(); at < end;) {
        std::memset(map, 0, sizeof *map);
        map->fm_start = at;
        map->fm_length = end - at;
        map->fm_extent_count = kBatch;
        if (::ioctl(fd, FS_IOC_FIEMAP, map) != 0)
            return fail(Error::from_errno(errno, "reading the file's mapping"));
        if (map->fm_mapped_extents == 0) break;
        for (uint32_t i = 0; i < map->fm_mapped_extents; ++i) {
            const fiemap_extent& extent = map->fm_extents[i];
            const uint64_t from = std::max<uint64_t>(extent.fe_logical, at);
            const uint64_t to = std::min<uint64_t>(extent.fe_logical + extent.fe_length, end);
            if (from >= to) continue;
            parts.push_back({ByteOffset(from), Bytes(to - from)});
            at = to;
        }
        if (map->fm_mapped_extents < kBatch) break;
    }
    return parts;
}

}  // namespace atomic4
