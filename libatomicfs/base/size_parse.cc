#include "base/size_parse.h"

#include <charconv>

namespace atomic4 {

namespace {

int suffix_shift(std::string_view suffix) {
    if (suffix.empty() || suffix == "B") return 0;
    if (suffix.size() == 3 && suffix.substr(1) == "iB") suffix = suffix.substr(0, 1);
    if (suffix.size() != 1) return -1;
    switch (suffix[0]) {
        case 'k':
        case 'K':
            return 10;
        case 'm':
        case 'M':
            return 20;
        case 'g':
        case 'G':
            return 30;
        case 't':
        case 'T':
            return 40;
        default:
            return -1;
    }
}

}  // namespace

Result<Bytes> parse_size(std::string_view text) {
    uint64_t value = 0;
    const char* end = text.data() + text.size();
    const auto [rest, error] = std::from_chars(text.data(), end, value);
    if (error == std::errc::result_out_of_range) return fail(EINVAL, "size '{}': too large", text);
    if (error != std::errc{}) {
        return fail(EINVAL, "size '{}': want a number with an optional K, M, G or T, such as 16K",
                    text);
    }
    const std::string_view suffix(rest, static_cast<size_t>(end - rest));
    const int shift = suffix_shift(suffix);
    if (shift < 0)
        return fail(EINVAL, "size '{}': unknown suffix '{}' (K, M, G or T)", text, suffix);
    if ((value << shift) >> shift != value) return fail(EINVAL, "size '{}': too large", text);
    return Bytes(value << shift);
}

std::string format_size(Bytes size) {
    const uint64_t value = size.value();
    if (value != 0) {
        for (const auto& [shift, letter] :
             {std::pair{40, 'T'}, std::pair{30, 'G'}, std::pair{20, 'M'}, std::pair{10, 'K'}}) {
            if ((value & ((uint64_t{1} << shift) - 1)) == 0)
                return fmt::format("{}{}", value >> shift, letter);
        }
    }
    return fmt::format("{}", value);
}

}  // namespace atomic4
