// CRC32C (Castagnoli) as ext4 computes it: raw, no final xor. ISA-L does the work.
//
//   crc32c(~0u, "123456789") == 0x1cf96d7c
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace atomic4 {

// Continues from seed; start a fresh one with ~0u.
uint32_t crc32c(uint32_t seed, std::span<const std::byte> bytes);

}  // namespace atomic4
