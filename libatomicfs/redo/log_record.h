// A record's arithmetic and checksums, shared by the writer and the reader.
//
// Both checksums of a record are seeded with its epoch, sequence and position. A client chooses the
// payload, and old payload stays in the ring: whatever it contains, even a complete valid header of
// the same session, it stands elsewhere or is numbered otherwise and can't pass for a record.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/units.h"
#include "redo/log_format.h"

namespace atomic4 {

// Where bytes of a record's payload go: logical, resolved afresh by replay.
struct RangeRef {
    uint32_t inode = 0;
    uint32_t generation = 0;
    ByteOffset offset;
    Bytes length;
    Bytes new_size;  // the file's size after the write; 0: unchanged
    // A record is a group of operations (one write or one batch each); those of its ranges that
    // have the same number here belong to one, and are found all or not at all.
    uint32_t operation = 0;
    bool operator==(const RangeRef&) const = default;
};

uint32_t record_seed(uint64_t epoch, uint64_t sequence, ByteOffset position);

// The header's length with this many ranges, a multiple of kLogBlock.
constexpr Bytes record_header_length(uint64_t range_count) {
    return Bytes(round_up(sizeof(RecordHeader) + range_count * sizeof(RecordRange), kLogBlock));
}
constexpr Bytes record_padded(Bytes payload) {
    return Bytes(round_up(payload.value(), kLogBlock));
}

// The checksum of a whole header (header_length bytes), its header_crc field taken as zero.
uint32_t record_header_crc(std::span<const std::byte> header, uint32_t seed);

}  // namespace atomic4
