// The volume attribute: xattr trusted.atomic4.volume on the root inode.
//
//   version=1 unit=16384 log=12:305419896:00112233445566778899aabbccddeeff
//
// Words separated by single spaces, each key=value. Unknown keys are kept; an unknown version is
// refused, never guessed. FORMAT.md decides.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/units.h"

namespace atomic4 {

struct VolumeAttr {
    Bytes unit;  // default unit of new files
    uint32_t log_inode = 0;
    uint32_t log_generation = 0;
    std::array<uint8_t, 16> log_id{};
    std::vector<std::string> unknown;  // words we don't know, in order

    std::string to_text() const;
    static Result<VolumeAttr> parse(std::string_view text);
};

std::string id_to_text(const std::array<uint8_t, 16>& id);

}  // namespace atomic4
