// Little-endian integers over byte arrays, for on-disk structures: no padding, no alignment, the
// same bytes on every machine.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace atomic4 {

template <class Int>
class LittleEndian {
  public:
    constexpr LittleEndian() = default;
    constexpr LittleEndian(Int value) { set(value); }  // NOLINT(google-explicit-constructor)
    constexpr LittleEndian& operator=(Int value) {
        set(value);
        return *this;
    }
    constexpr operator Int() const {  // NOLINT(google-explicit-constructor)
        Int value = 0;
        for (size_t i = sizeof(Int); i-- > 0;)
            value = static_cast<Int>(static_cast<Int>(value << 8) | bytes_[i]);
        return value;
    }

  private:
    constexpr void set(Int value) {
        for (size_t i = 0; i < sizeof(Int); ++i) bytes_[i] = static_cast<uint8_t>(value >> (8 * i));
    }
    std::array<uint8_t, sizeof(Int)> bytes_{};
};

// 16 bits would shift an int out of range in the generic loop's types; they are promoted and cut.
using le16 = LittleEndian<uint16_t>;
using le32 = LittleEndian<uint32_t>;
using le64 = LittleEndian<uint64_t>;

static_assert(sizeof(le16) == 2 && sizeof(le32) == 4 && sizeof(le64) == 8);
static_assert(alignof(le64) == 1);

}  // namespace atomic4
