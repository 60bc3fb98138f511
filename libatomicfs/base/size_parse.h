// Sizes as people type them: "16384", "16K", "1M", "2G", "1T", also "KiB" and "k". Factors are
// 1024. Signs, fractions, spaces, overflow and unknown suffixes are refused (an option library's
// own conversion turned "--offset -1" into 2^64-1).
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"
#include "base/units.h"

namespace atomic4 {

Result<Bytes> parse_size(std::string_view text);

// The shortest exact form: 16384 → "16K", 16385 → "16385".
std::string format_size(Bytes size);

}  // namespace atomic4
