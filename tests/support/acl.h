// POSIX access ACLs as values of system.posix_acl_access.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

namespace atomic4::test {

struct AclEntry {
    unsigned tag;
    unsigned permissions;
    uint32_t id = ~uint32_t{0};

    static AclEntry user(uid_t id, unsigned permissions) { return {0x02, permissions, id}; }
    static AclEntry group(gid_t id, unsigned permissions) { return {0x08, permissions, id}; }
};

// The ACL of a file with this mode (whose group bits are the mask) and these entries, users first,
// besides the owning group's.
inline std::string acl_value(mode_t mode, unsigned owning_group,
                             const std::vector<AclEntry>& named) {
    std::string value{2, 0, 0, 0};
    const auto add = [&](const AclEntry& entry) {
        for (const unsigned byte : {entry.tag, 0u, entry.permissions, 0u})
            value += static_cast<char>(byte);
        for (int shift = 0; shift < 32; shift += 8) value += static_cast<char>(entry.id >> shift);
    };
    add({0x01, (mode >> 6) & 7});
    for (const AclEntry& entry : named) {
        if (entry.tag == 0x02) add(entry);
    }
    add({0x04, owning_group});
    for (const AclEntry& entry : named) {
        if (entry.tag == 0x08) add(entry);
    }
    add({0x10, (mode >> 3) & 7});
    add({0x20, mode & 7});
    return value;
}

}  // namespace atomic4::test
