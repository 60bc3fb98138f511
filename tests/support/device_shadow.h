// Random calls on a Device, compared with the same on memory.
#pragma once

#include "device/device.h"

namespace atomic4::test {

// Reads, writes, durable writes, zeroing and flushes of any alignment and length up to
// max_length, from memory of any alignment; ends with a comparison of everything. Reports through
// gtest, with the seed.
void compare_with_shadow(Device& device, uint64_t seed, int steps, uint64_t max_length);

}  // namespace atomic4::test
