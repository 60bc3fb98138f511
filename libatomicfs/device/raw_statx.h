// The statx(2) fields that older C headers lack: alignment for direct I/O and atomic write limits.
// They are read by byte offset from the kernel's 256-byte structure, whose layout is ABI (F7).
#pragma once

#include <cstdint>
#include <optional>

namespace atomic4 {

struct RawStatx {
    bool has_dio_align = false;     // the two fields below are meant
    uint32_t dio_mem_align = 0;     // of the buffer; 0: no direct I/O on this file
    uint32_t dio_offset_align = 0;  // of offset and length; 0: no direct I/O on this file
    bool has_atomic = false;        // the file system answered the question about atomic writes
    bool can_atomic = false;        // STATX_ATTR_WRITE_ATOMIC
    uint32_t atomic_unit_min = 0;
    uint32_t atomic_unit_max = 0;
    uint32_t atomic_segments_max = 0;
};

// Nothing if the kernel has no statx or refuses.
std::optional<RawStatx> raw_statx(int fd);

}  // namespace atomic4
