// Words for people.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <string>
#include <string_view>

namespace atomic4 {

// "1 record", "2 records".
inline std::string counted(uint64_t n, const char* noun) {
    return fmt::format("{} {}{}", n, noun, n == 1 ? "" : "s");
}

// A name as it may go to a terminal: whoever may create a file chooses its name. Control characters
// (also those of ISO 8859 as UTF-8) become \xNN.
inline std::string printable(std::string_view text) {
    std::string result;
    const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
    for (size_t i = 0; i < text.size(); ++i) {
        const bool c1 =
            byte(i) == 0xc2 && i + 1 < text.size() && byte(i + 1) >= 0x80 && byte(i + 1) < 0xa0;
        if (c1) {
            result += fmt::format("\\x{:02x}\\x{:02x}", byte(i), byte(i + 1));
            ++i;
        } else if (byte(i) < 0x20 || byte(i) == 0x7f) {
            result += fmt::format("\\x{:02x}", byte(i));
        } else {
            result += text[i];
        }
    }
    return result;
}

}  // namespace atomic4
