// Strong types for positions and lengths: a block number, a byte offset and a length can't be
// swapped by accident.
//
//   ByteOffset  a position in bytes on a device or in a file     Bytes   a length in bytes
//   Pblk        a physical block number, absolute from the start
//               of the filesystem's device                       Blocks  a number of fs blocks
//   Lblk        a logical block number inside a file
//
// Position + length = position; position - position = length; positions don't add.
#pragma once

#include <fmt/format.h>

#include <compare>
#include <cstdint>

namespace atomic4 {

template <class Tag>
class Length {
  public:
    constexpr Length() = default;
    constexpr explicit Length(uint64_t value) : value_(value) {}
    constexpr uint64_t value() const { return value_; }
    constexpr auto operator<=>(const Length&) const = default;
    constexpr Length operator+(Length other) const { return Length(value_ + other.value_); }
    constexpr Length operator-(Length other) const { return Length(value_ - other.value_); }
    constexpr Length operator*(uint64_t n) const { return Length(value_ * n); }
    constexpr Length& operator+=(Length other) {
        value_ += other.value_;
        return *this;
    }
    constexpr Length& operator-=(Length other) {
        value_ -= other.value_;
        return *this;
    }

  private:
    uint64_t value_ = 0;
};

template <class Tag, class Len>
class Position {
  public:
    constexpr Position() = default;
    constexpr explicit Position(uint64_t value) : value_(value) {}
    constexpr uint64_t value() const { return value_; }
    constexpr auto operator<=>(const Position&) const = default;
    constexpr Position operator+(Len length) const { return Position(value_ + length.value()); }
    constexpr Position operator-(Len length) const { return Position(value_ - length.value()); }
    constexpr Len operator-(Position other) const { return Len(value_ - other.value_); }
    constexpr Position& operator+=(Len length) {
        value_ += length.value();
        return *this;
    }

  private:
    uint64_t value_ = 0;
};

using Bytes = Length<struct BytesTag>;
using Blocks = Length<struct BlocksTag>;
using ByteOffset = Position<struct ByteOffsetTag, Bytes>;
using Pblk = Position<struct PblkTag, Blocks>;
using Lblk = Position<struct LblkTag, Blocks>;

constexpr bool is_power_of_two(uint64_t value) {
    return value != 0 && (value & (value - 1)) == 0;
}
// align is a power of two.
constexpr uint64_t round_down(uint64_t value, uint64_t align) {
    return value & ~(align - 1);
}
constexpr uint64_t round_up(uint64_t value, uint64_t align) {
    return round_down(value + align - 1, align);
}
constexpr bool is_aligned(uint64_t value, uint64_t align) {
    return (value & (align - 1)) == 0;
}

}  // namespace atomic4

template <class Tag>
struct fmt::formatter<atomic4::Length<Tag>> : fmt::formatter<uint64_t> {
    template <class Context>
    auto format(const atomic4::Length<Tag>& length, Context& context) const {
        return fmt::formatter<uint64_t>::format(length.value(), context);
    }
};
template <class Tag, class Len>
struct fmt::formatter<atomic4::Position<Tag, Len>> : fmt::formatter<uint64_t> {
    template <class Context>
    auto format(const atomic4::Position<Tag, Len>& position, Context& context) const {
        return fmt::formatter<uint64_t>::format(position.value(), context);
    }
};
