#include "base/crc32c.h"

#include <isa-l/crc.h>

#include <algorithm>

namespace atomic4 {

uint32_t crc32c(uint32_t seed, std::span<const std::byte> bytes) {
    constexpr size_t kPiece = size_t{1} << 30;  // ISA-L takes the length as an int
    while (!bytes.empty()) {
        const size_t n = std::min(bytes.size(), kPiece);
        // The prototype lacks const; ISA-L only reads.
        auto* data = reinterpret_cast<unsigned char*>(const_cast<std::byte*>(bytes.data()));
        seed = crc32_iscsi(data, static_cast<int>(n), seed);
        bytes = bytes.subspan(n);
    }
    return seed;
}

}  // namespace atomic4
