// Units that say in each of their sectors who wrote them, for tests where many write.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/text.h"

namespace atomic4::test {

struct Stamp {
    uint64_t writer = 0;
    uint64_t serial = 0;
    uint64_t offset = 0;  // of the sector in the file
    bool operator==(const Stamp&) const = default;
};
inline constexpr size_t kStampSector = 512;

inline void stamp(std::span<std::byte> data, uint64_t writer, uint64_t serial, uint64_t offset) {
    for (size_t at = 0; at < data.size(); at += kStampSector) {
        const Stamp here{writer, serial, offset + at};
        for (size_t word = 0; word + sizeof here <= kStampSector; word += sizeof here)
            std::memcpy(data.data() + at + word, &here, sizeof here);
        const size_t rest = kStampSector % sizeof here;
        std::memset(data.data() + at + kStampSector - rest, static_cast<int>(serial), rest);
    }
}
inline std::vector<std::byte> stamped(size_t size, uint64_t writer, uint64_t serial,
                                      uint64_t offset) {
    std::vector<std::byte> data(size);
    stamp(data, writer, serial, offset);
    return data;
}

// Who wrote these bytes, all of them: none if they are a mixture, or nobody's. Zeros: {0, 0}.
inline std::optional<Stamp> whole(std::span<const std::byte> data, uint64_t offset) {
    Stamp first;
    std::memcpy(&first, data.data(), sizeof first);
    if (first == Stamp{}) {
        for (const std::byte byte : data)
            if (byte != std::byte{0}) return std::nullopt;
        return first;
    }
    if (first.offset != offset) return std::nullopt;
    const auto expected = stamped(data.size(), first.writer, first.serial, offset);
    if (std::memcmp(expected.data(), data.data(), data.size()) != 0) return std::nullopt;
    return first;
}

// For a message: which sectors are whose.
inline std::string describe(std::span<const std::byte> data) {
    std::string text;
    for (size_t at = 0; at < data.size(); at += kStampSector) {
        Stamp here;
        std::memcpy(&here, data.data() + at, sizeof here);
        text +=
            fmt::format("{}{}.{}@{}", at == 0 ? "" : " ", here.writer, here.serial, here.offset);
    }
    return text;
}

}  // namespace atomic4::test
