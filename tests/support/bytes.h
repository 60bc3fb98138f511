// Test data.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace atomic4::test {

inline std::vector<std::byte> filled(size_t size, unsigned value) {
    return std::vector<std::byte>(size, static_cast<std::byte>(value));
}

inline std::vector<std::byte> random_bytes(size_t size, std::mt19937_64& random) {
    std::vector<std::byte> bytes(size);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
    return bytes;
}

}  // namespace atomic4::test
