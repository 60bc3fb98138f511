#include "ext4/volume_attr.h"

#include <charconv>
#include <optional>

#include "ext4/format.h"

namespace atomic4 {

namespace {

template <class Int>
std::optional<Int> parse_int(std::string_view text, int base = 10) {
    Int value = 0;
    const char* end = text.data() + text.size();
    const auto [rest, error] = std::from_chars(text.data(), end, value, base);
    if (error != std::errc{} || rest != end || text.empty()) return std::nullopt;
    return value;
}

bool parse_id(std::string_view text, std::array<uint8_t, 16>* id) {
    if (text.size() != 32) return false;
    for (size_t i = 0; i < 16; ++i) {
        const auto byte = parse_int<uint8_t>(text.substr(2 * i, 2), 16);
        if (!byte) return false;
        (*id)[i] = *byte;
    }
    return true;
}

bool parse_log(std::string_view value, VolumeAttr* attr) {
    const size_t first = value.find(':');
    const size_t second = first == value.npos ? first : value.find(':', first + 1);
    if (second == value.npos) return false;
    const auto inode = parse_int<uint32_t>(value.substr(0, first));
    const auto generation = parse_int<uint32_t>(value.substr(first + 1, second - first - 1));
    if (!inode || *inode == 0 || !generation || *generation == 0) return false;
    attr->log_inode = *inode;
    attr->log_generation = *generation;
    return parse_id(value.substr(second + 1), &attr->log_id);
}

tl::unexpected<Error> damaged(std::string_view how, std::string_view whole) {
    return fail(EUCLEAN,
                "the volume attribute {}: '{}': run atomic4ctl enable to make it anew, unless "
                "atomic4ctl info says that a replay is needed: it would be lost",
                how, whole);
}

}  // namespace

std::string id_to_text(const std::array<uint8_t, 16>& id) {
    std::string text;
    for (const uint8_t byte : id) text += fmt::format("{:02x}", byte);
    return text;
}

std::string VolumeAttr::to_text() const {
    std::string text = fmt::format("version={} unit={} log={}:{}:{}", kVolumeVersion, unit,
                                   log_inode, log_generation, id_to_text(log_id));
    for (const std::string& word : unknown) text.append(" ").append(word);
    return text;
}

Result<VolumeAttr> VolumeAttr::parse(std::string_view text) {
    VolumeAttr attr;
    bool version = false;
    bool unit = false;
    bool log = false;
    const std::string whole(text);
    while (!text.empty()) {
        const size_t space = text.find(' ');
        const std::string_view word = text.substr(0, space);
        text = space == text.npos ? std::string_view{} : text.substr(space + 1);
        const size_t equals = word.find('=');
        const std::string_view key = word.substr(0, equals);
        const std::string_view value =
            equals == word.npos ? std::string_view{} : word.substr(equals + 1);
        bool* const seen = key == "version" ? &version
                           : key == "unit"  ? &unit
                           : key == "log"   ? &log
                                            : nullptr;
        if (seen == nullptr) {
            // Between two spaces: written again, it might not be read again.
            if (word.empty()) continue;
            attr.unknown.emplace_back(word);
            continue;
        }
        if (*seen) return damaged(fmt::format("names '{}' twice", key), whole);
        *seen = true;
        if (key == "version") {
            const auto number = parse_int<uint32_t>(value);
            if (!number) return damaged("is damaged", whole);
            if (*number != kVolumeVersion) {
                return fail(EOPNOTSUPP,
                            "this volume has atomic4 format version {}; this program knows version "
                            "{}: use a newer atomic4",
                            *number, kVolumeVersion);
            }
        } else if (key == "unit") {
            const auto number = parse_int<uint64_t>(value);
            if (!number || !is_power_of_two(*number) || *number > kUnitMax)
                return damaged("has a bad unit", whole);
            attr.unit = Bytes(*number);
        } else if (!parse_log(value, &attr)) {
            return damaged("names its log badly", whole);
        }
    }
    if (!version || !unit || !log) return damaged("is damaged", whole);
    return attr;
}

}  // namespace atomic4
