// Mode bits and access ACLs, row by row as acl(5) says. tests/kernel/authority_test.cc asks the
// kernel.
#include "daemon/permissions.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "support/acl.h"

namespace atomic4::test {
namespace {

constexpr uid_t kOwner = 100;
constexpr gid_t kGroup = 200;

Peer peer(uid_t uid, gid_t gid = 999, std::vector<gid_t> groups = {}) {
    return {1, uid, gid, std::move(groups)};
}

std::string bits_of(const Permissions& inode, const Peer& who) {
    std::string text;
    for (const unsigned want : {kMayRead, kMayWrite, kMaySearch}) {
        const auto may = may_access(inode, who, want);
        text += !may ? '!' : *may ? "rwx"[want == 4 ? 0 : want == 2 ? 1 : 2] : '-';
    }
    return text;
}

struct Row {
    std::string what;
    mode_t mode;
    std::vector<AclEntry> named;  // empty: no ACL
    Peer peer;
    std::string allowed;
};

TEST(Permissions, Table) {
    const std::vector<AclEntry> named = {AclEntry::user(300, 7), AclEntry::group(400, 6),
                                         AclEntry::group(401, 1)};
    for (const Row& row : {
             Row{"the owner", 0750, {}, peer(kOwner), "rwx"},
             Row{"the owner has only the owner's bits", 0077, {}, peer(kOwner, kGroup), "---"},
             Row{"the group by its gid", 0750, {}, peer(1, kGroup), "r-x"},
             Row{"the group by a supplementary group", 0750, {}, peer(1, 2, {3, kGroup}), "r-x"},
             Row{"the group has only the group's bits", 0707, {}, peer(1, kGroup), "---"},
             Row{"others", 0604, {}, peer(1), "r--"},
             Row{"user 0 reads and writes everything", 0000, {}, peer(0), "rw-"},
             Row{"user 0 executes what anybody may", 0001, {}, peer(0), "rwx"},

             Row{"ACL: the owner", 0470, named, peer(kOwner, 400), "r--"},
             Row{"ACL: a named user", 0070, named, peer(300), "rwx"},
             Row{"ACL: a named user, masked", 0040, named, peer(300), "r--"},
             Row{"ACL: a named user who is in a group too", 0050, named, peer(300, 400), "r-x"},
             Row{"ACL: a named group", 0070, named, peer(1, 400), "rw-"},
             Row{"ACL: a named group, masked", 0020, named, peer(1, 2, {400}), "-w-"},
             Row{"ACL: each wish by the group that allows it", 0070, named, peer(1, 401, {400}),
                 "rwx"},
             Row{"ACL: a group member doesn't get the bits for others", 0017, named, peer(1, 400),
                 "---"},
             Row{"ACL: the owning group's own entry, not the mask", 0060, named, peer(1, kGroup),
                 "---"},
             Row{"ACL: others aren't masked", 0017, named, peer(1), "rwx"},
             Row{"ACL: an empty mask turns it off, named user", 0006, named, peer(300), "rw-"},
             Row{"ACL: an empty mask turns it off, named group", 0006, named, peer(1, 400), "rw-"},
             Row{"ACL: an empty mask turns it off, owning group", 0006, named, peer(1, kGroup),
                 "---"},
             Row{"ACL: user 0", 0000, named, peer(0), "rw-"},
         }) {
        Permissions inode{S_IFREG | row.mode, kOwner, kGroup, std::nullopt};
        if (!row.named.empty()) inode.acl = acl_value(row.mode, 0, row.named);
        EXPECT_EQ(bits_of(inode, row.peer), row.allowed) << row.what;
    }
}

TEST(Permissions, OneEntryHasToAllowAllOfIt) {
    const Permissions inode{S_IFREG | 0070, kOwner, kGroup,
                            acl_value(0070, 0, {AclEntry::group(400, 4), AclEntry::group(401, 2)})};
    const Peer both = peer(1, 400, {401});
    EXPECT_EQ(bits_of(inode, both), "rw-");
    EXPECT_EQ(may_access(inode, both, kMayRead | kMayWrite).value(), false);
}

TEST(Permissions, User0SearchesEveryDirectory) {
    const Permissions inode{S_IFDIR | 0000, kOwner, kGroup, std::nullopt};
    EXPECT_EQ(bits_of(inode, peer(0)), "rwx");
}

TEST(Permissions, MalformedAcls) {
    const std::string good = acl_value(0070, 0, {AclEntry::user(300, 7)});
    Permissions inode{S_IFREG | 0070, kOwner, kGroup, good};
    ASSERT_EQ(bits_of(inode, peer(300)), "rwx");
    const auto entry = [&](size_t n) { return good.substr(4 + 8 * n, 8); };
    std::vector<std::string> bad = {
        "",
        good.substr(0, 3),
        good.substr(0, 4),
        good.substr(0, good.size() - 1),
        good + '\0',
        good.substr(0, good.size() - 8),       // no entry for others
        good.substr(0, 4) + good.substr(12),   // none for the owner
        good.substr(0, 20) + good.substr(28),  // none for the group
        good.substr(0, 28) + good.substr(36),  // a named user, no mask
        good + entry(1),                       // after the end
        good.substr(0, 12) + entry(0) + good.substr(12),
        good.substr(0, 4) + entry(1) + entry(0) + good.substr(20),
    };
    for (const auto& [at, byte] : std::vector<std::pair<size_t, char>>{
             {0, 1}, {3, 1}, {4, 0}, {4, 3}, {4, 0x40}, {5, 1}, {6, 8}, {7, 1}}) {
        bad.push_back(good);
        bad.back()[at] = byte;
    }
    for (const std::string& value : bad) {
        inode.acl = value;
        for (const Peer& who : {peer(300), peer(1), peer(1, kGroup)}) {
            const auto may = may_access(inode, who, kMayRead);
            ASSERT_FALSE(may) << testing::PrintToString(value);
            EXPECT_EQ(may.error().code, EUCLEAN);
            EXPECT_THAT(may.error().message, testing::HasSubstr("e2fsck"));
        }
        // These are judged without it.
        EXPECT_EQ(bits_of(inode, peer(kOwner)), "---");
        EXPECT_EQ(bits_of(inode, peer(0)), "rwx");
    }
}

}  // namespace
}  // namespace atomic4::test
