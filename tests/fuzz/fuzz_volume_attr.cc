// The volume attribute: what the parser takes, it writes so that it reads the same again.
// sources: ext4/volume_attr.cc base/result.cc
#include <cstdint>

#include "ext4/format.h"
#include "ext4/volume_attr.h"

using namespace atomic4;

namespace {

void require(bool holds) {
    if (!holds) abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    const auto attr = VolumeAttr::parse(text);
    if (!attr) {
        require(attr.error().code == EUCLEAN || attr.error().code == EOPNOTSUPP);
        require(!attr.error().message.empty());
        return 0;
    }
    require(is_power_of_two(attr->unit.value()) && attr->unit.value() <= kUnitMax);
    require(attr->log_inode != 0 && attr->log_generation != 0);
    const std::string written = attr->to_text();
    const auto again = VolumeAttr::parse(written);
    require(again.has_value() && again->to_text() == written);
    require(again->unit == attr->unit && again->log_inode == attr->log_inode &&
            again->log_generation == attr->log_generation && again->log_id == attr->log_id &&
            again->unknown == attr->unknown);
    return 0;
}
