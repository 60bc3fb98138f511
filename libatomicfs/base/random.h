// Random numbers from the kernel, for generations, log ids and epochs. Aborts if the kernel has
// none: a predictable epoch would be a lie.
#pragma once

#include <array>
#include <cstdint>

namespace atomic4 {

uint64_t random_u64();
uint32_t random_nonzero_u32();
std::array<uint8_t, 16> random_id();

}  // namespace atomic4
