#include "redo/log_record.h"

#include <array>

#include "base/crc32c.h"

namespace atomic4 {

uint32_t record_seed(uint64_t epoch, uint64_t sequence, ByteOffset position) {
    const std::array<le64, 3> words{epoch, sequence, position.value()};
    return crc32c(~0u, std::as_bytes(std::span(words)));
}

uint32_t record_header_crc(std::span<const std::byte> header, uint32_t seed) {
    constexpr size_t field = offsetof(RecordHeader, header_crc);
    constexpr std::array<std::byte, sizeof(le32)> zero{};
    uint32_t crc = crc32c(seed, header.first(field));
    crc = crc32c(crc, zero);
    return crc32c(crc, header.subspan(field + zero.size()));
}

}  // namespace atomic4
