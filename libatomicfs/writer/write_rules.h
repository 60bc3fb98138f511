// The rules of an atomic write: what is refused with which errno, and which engine serves it
// (RFC patches 1, 5, 6 and 7; mainline's order of checks). The one place for them; the table is in
// atomic4(7).
#pragma once

#include <span>
#include <string>

#include "ext4/layout.h"

namespace atomic4 {

enum class Engine { Auto, Native, Logged };
const char* to_text(Engine engine);
Result<Engine> parse_engine(std::string_view text);

// The shape of one request. EINVAL: shorter than unit_min or longer than unit_max, length no power
// of two, offset no multiple of the length; EFBIG: past the largest offset.
Result<> check_request(ByteOffset offset, Bytes length, Bytes unit_min, Bytes unit_max);

// The ranges of a batch. EINVAL: none, no block multiples, two that overlap; EMSGSIZE: more than
// max bytes; EFBIG: past the largest offset.
struct RequestedRange {
    uint64_t inode = 0;
    ByteOffset offset;
    Bytes length;
};
Result<> check_batch(std::span<const RequestedRange> parts, Bytes block_size, Bytes max);

// Whether a file takes our writes at all (ext4/file_rules.h has the rule and its errors).
Result<> check_file(Volume& volume, const FileState& file);

// Whether the native engine can write this range. EOPNOTSUPP: the device can't; EINVAL: outside its
// limits, or crossing its boundary; EIO: the range is not one aligned written run.
Result<> check_native(const Volume& volume, const RangeShape& shape, Bytes length);

// Why a write of one unit would not go native, for the file as a whole: the first reason; empty if
// it would. layout_problems: what check_layout counted.
std::string why_not_native(const Volume& volume, const FileState& file, uint64_t layout_problems);

// statx-like limits of a file (RFC patch 7).
struct WriteLimits {
    Bytes unit_min;
    Bytes unit_max_logged;
    Bytes unit_max_native;  // 0: none
    uint32_t segments_max = 1;
    std::string why_not_native;  // the device's reason
    Bytes unit_max() const { return std::max(unit_max_logged, unit_max_native); }
};
WriteLimits write_limits(const Volume& volume, Bytes log_unit_max);

}  // namespace atomic4
