#include "daemon/permissions.h"

#include <sys/stat.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/endian.h"

namespace atomic4 {

namespace {

// The extended attribute's form: include/uapi/linux/posix_acl_xattr.h.
struct AclHeader {
    le32 version;
};
struct AclEntry {
    le16 tag;
    le16 permissions;
    le32 id;
};
static_assert(sizeof(AclHeader) == 4 && sizeof(AclEntry) == 8);

constexpr uint32_t kAclVersion = 2;
// Tags, in the order in which entries stand.
constexpr unsigned kUserObject = 0x01;
constexpr unsigned kUser = 0x02;
constexpr unsigned kGroupObject = 0x04;
constexpr unsigned kGroup = 0x08;
constexpr unsigned kMask = 0x10;
constexpr unsigned kOther = 0x20;
constexpr unsigned kAllTags = 0x3f;

struct Entry {
    unsigned tag;
    unsigned permissions;
    uint32_t id;
};

bool unique_tag(unsigned tag) {
    return tag != kUser && tag != kGroup;
}

// As posix_acl_valid() of the kernel, which refuses to work with anything else.
Result<std::vector<Entry>> parse_acl(const std::string& value) {
    const auto malformed = [](const char* why) {
        return fail(EUCLEAN, "the access control list is malformed ({}): the volume needs e2fsck",
                    why);
    };
    AclHeader header;
    if (value.size() < sizeof header || (value.size() - sizeof header) % sizeof(AclEntry) != 0)
        return malformed("its length");
    std::memcpy(&header, value.data(), sizeof header);
    if (header.version != kAclVersion) return malformed("its version");

    std::vector<Entry> entries;
    unsigned seen = 0;
    for (size_t at = sizeof header; at < value.size(); at += sizeof(AclEntry)) {
        AclEntry raw;
        std::memcpy(&raw, value.data() + at, sizeof raw);
        const Entry entry{raw.tag, raw.permissions, raw.id};
        if (!std::has_single_bit(entry.tag) || (entry.tag & kAllTags) == 0)
            return malformed("an unknown tag");
        if ((entry.permissions & ~7u) != 0) return malformed("unknown permissions");
        if (seen >= (entry.tag << 1) || (unique_tag(entry.tag) && (seen & entry.tag) != 0))
            return malformed("the order of its entries");
        seen |= entry.tag;
        entries.push_back(entry);
    }
    constexpr unsigned kRequired = kUserObject | kGroupObject | kOther;
    if ((seen & kRequired) != kRequired) return malformed("an entry is missing");
    if ((seen & (kUser | kGroup)) != 0 && (seen & kMask) == 0) return malformed("no mask");
    return entries;
}

bool acl_allows(const std::vector<Entry>& acl, const Permissions& inode, const Peer& peer,
                unsigned want) {
    unsigned mask = 7;
    for (const Entry& entry : acl) {
        if (entry.tag == kMask) mask = entry.permissions;
    }
    bool in_a_group = false;
    for (const Entry& entry : acl) {
        const bool enough = (entry.permissions & want) == want;
        const bool masked_enough = (entry.permissions & mask & want) == want;
        switch (entry.tag) {
            case kUserObject:
                if (inode.uid == peer.uid) return enough;
                break;
            case kUser:
                if (entry.id == peer.uid) return masked_enough;
                break;
            case kGroupObject:
            case kGroup:
                if (!peer.in_group(entry.tag == kGroupObject ? inode.gid : entry.id)) break;
                in_a_group = true;
                // The first group entry that is enough by itself decides, masked.
                if (enough) return masked_enough;
                break;
            case kOther:
                return !in_a_group && enough;
            default:
                break;
        }
    }
    return false;
}

}  // namespace

bool Peer::in_group(gid_t group) const {
    return gid == group || std::find(groups.begin(), groups.end(), group) != groups.end();
}

Result<bool> may_access(const Permissions& inode, const Peer& peer, unsigned want) {
    if (peer.uid == 0) {
        const bool executable = S_ISDIR(inode.mode) || (inode.mode & 0111) != 0;
        return (want & kMaySearch) == 0 || executable;
    }
    if (inode.uid == peer.uid) return ((inode.mode >> 6) & want) == want;
    if (inode.acl && (inode.mode & S_IRWXG) != 0)
        return acl_allows(A4_TRY(parse_acl(*inode.acl)), inode, peer, want);
    const unsigned bits = peer.in_group(inode.gid) ? inode.mode >> 3 : inode.mode;
    return (bits & want) == want;
}

}  // namespace atomic4
