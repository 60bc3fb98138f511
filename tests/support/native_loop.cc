#include "support/native_loop.h"

#include <linux/fiemap.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/uio.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>

#ifndef RWF_ATOMIC
#define RWF_ATOMIC 0x00000040
#endif

namespace atomic4::test {

bool is_aligned_run(int fd, ByteOffset offset, Bytes length) {
    constexpr uint32_t kExtents = 64;
    std::vector<std::byte> memory(sizeof(fiemap) + kExtents * sizeof(fiemap_extent));
    auto* map = reinterpret_cast<fiemap*>(memory.data());
    map->fm_start = offset.value();
    map->fm_length = length.value();
    map->fm_flags = FIEMAP_FLAG_SYNC;
    map->fm_extent_count = kExtents;
    if (::ioctl(fd, FS_IOC_FIEMAP, map) != 0)
        throw std::runtime_error(std::string("FIEMAP: ") + std::strerror(errno));
    uint64_t at = offset.value();
    uint64_t device = 0;
    for (uint32_t i = 0; i < map->fm_mapped_extents; ++i) {
        const fiemap_extent& extent = map->fm_extents[i];
        if ((extent.fe_flags &
             (FIEMAP_EXTENT_UNWRITTEN | FIEMAP_EXTENT_DELALLOC | FIEMAP_EXTENT_UNKNOWN)) != 0)
            return false;
        if (extent.fe_logical > at || extent.fe_logical + extent.fe_length <= at) return false;
        const uint64_t physical = extent.fe_physical + (at - extent.fe_logical);
        if (i == 0 && physical % length.value() != 0) return false;
        if (i > 0 && physical != device) return false;
        device = extent.fe_physical + extent.fe_length;
        at = extent.fe_logical + extent.fe_length;
        if (at >= (offset + length).value()) return true;
    }
    return false;
}

void NativeLoop::write(int fd, ByteOffset offset, std::span<const std::byte> from, int flags,
                       Completion done) {
    if ((flags & RWF_ATOMIC) == 0) {
        if (on_write) on_write(fd, offset, Bytes(from.size()));
        return inner_->write(fd, offset, from, flags, std::move(done));
    }
    const bool aligned = reinterpret_cast<uintptr_t>(from.data()) % 4096 == 0;
    seen.push_back({offset, Bytes(from.size()), flags, aligned});
    if (on_atomic) on_atomic();
    int result = static_cast<int>(from.size());
    switch (answer) {
        case Answer::Device:
            if (!is_aligned_run(fd, offset, Bytes(from.size()))) result = -EINVAL;
            break;
        case Answer::Done:
            break;
        case Answer::Refused:
            result = -EINVAL;
            break;
        case Answer::Busy:
            result = -EAGAIN;
            break;
        case Answer::Lost:
            from = {};
            result = -EIO;
            break;
        case Answer::Failed:
            result = -EIO;
            break;
        case Answer::Short:
            from = from.first(from.size() / 2);
            result = static_cast<int>(from.size());
            break;
    }
    if (result == -EINVAL || result == -EAGAIN || from.empty()) {
        defer([done = std::move(done), result] { done(result); });
        return;
    }
    inner_->write(fd, offset, from, flags & ~RWF_ATOMIC,
                  [this, done = std::move(done), result, size = from.size()](int written) {
                      if (on_written) on_written();
                      done(written == static_cast<int>(size) ? result : written);
                  });
}

}  // namespace atomic4::test
