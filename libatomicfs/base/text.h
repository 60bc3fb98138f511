// Words for people.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <string>

namespace atomic4 {

// "1 record", "2 records".
inline std::string counted(uint64_t n, const char* noun) {
    return fmt::format("{} {}{}", n, noun, n == 1 ? "" : "s");
}

}  // namespace atomic4
