#include "device/raw_statx.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstring>

namespace atomic4 {
namespace {

constexpr uint32_t kStatxDioAlign = 0x2000;
constexpr uint32_t kStatxWriteAtomic = 0x10000;
constexpr uint64_t kAttrWriteAtomic = 0x00400000;

constexpr size_t kStatxSize = 256;
constexpr size_t kMaskAt = 0x00;
constexpr size_t kAttributesAt = 0x08;
constexpr size_t kDioMemAlignAt = 0x98;
constexpr size_t kDioOffsetAlignAt = 0x9c;
constexpr size_t kAtomicUnitMinAt = 0xa8;
constexpr size_t kAtomicUnitMaxAt = 0xac;
constexpr size_t kAtomicSegmentsMaxAt = 0xb0;

struct alignas(uint64_t) Buffer {
    std::array<std::byte, kStatxSize> bytes{};

    template <class Int>
    Int at(size_t offset) const {
        Int value;
        std::memcpy(&value, bytes.data() + offset, sizeof value);
        return value;
    }
};

}  // namespace

std::optional<RawStatx> raw_statx(int fd) {
    Buffer buffer;
    // The system call itself: glibc's statx() falls back to fstat, which knows none of this.
    if (::syscall(SYS_statx, fd, "", AT_EMPTY_PATH, kStatxDioAlign | kStatxWriteAtomic,
                  buffer.bytes.data()) != 0)
        return std::nullopt;
    const auto mask = buffer.at<uint32_t>(kMaskAt);
    RawStatx result;
    if (mask & kStatxDioAlign) {
        result.has_dio_align = true;
        result.dio_mem_align = buffer.at<uint32_t>(kDioMemAlignAt);
        result.dio_offset_align = buffer.at<uint32_t>(kDioOffsetAlignAt);
    }
    if (mask & kStatxWriteAtomic) {
        result.has_atomic = true;
        result.can_atomic = (buffer.at<uint64_t>(kAttributesAt) & kAttrWriteAtomic) != 0;
        result.atomic_unit_min = buffer.at<uint32_t>(kAtomicUnitMinAt);
        result.atomic_unit_max = buffer.at<uint32_t>(kAtomicUnitMaxAt);
        result.atomic_segments_max = buffer.at<uint32_t>(kAtomicSegmentsMaxAt);
    }
    return result;
}

}  // namespace atomic4
