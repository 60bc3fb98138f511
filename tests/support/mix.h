#pragma once

#include <cstdint>

namespace atomic4::test {

// splitmix64: good bits for every value, whatever was asked before.
inline uint64_t mix(uint64_t value) {
    value += 0x9e3779b97f4a7c15ull;
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ull;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebull;
    return value ^ (value >> 31);
}

}  // namespace atomic4::test
