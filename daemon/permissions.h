// What mode bits and a POSIX access ACL allow somebody, computed as the kernel computes it
// (generic_permission() and posix_acl_permission() of Linux; acl(5)).
//
// Needed where no open(2) by that somebody can be observed: a client's descriptor proves less than
// the client asks for, or the volume isn't mounted at all. Two rules of the kernel are easily
// missed: the owner is judged by the owner bits alone, and an ACL counts only while the group bits
// of the mode (its mask) aren't all zero; else somebody outside the owning group gets the bits for
// others, also if the ACL names them.
//
// Not considered: security modules, and user 0 without CAP_DAC_OVERRIDE.
// Pure functions; any thread.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "base/result.h"

namespace atomic4 {

// Who asks: the credentials with which a client connected.
struct Peer {
    pid_t pid = 0;  // for messages only: it may be somebody else by now
    uid_t uid = 0;
    gid_t gid = 0;
    std::vector<gid_t> groups;  // supplementary

    bool in_group(gid_t group) const;
};

// What an inode says about access to it.
struct Permissions {
    mode_t mode = 0;
    uid_t uid = 0;
    gid_t gid = 0;
    // The value of system.posix_acl_access as getxattr(2) gives it (version 2, little-endian), if
    // there is one. libext2fs converts the form on disk to the same.
    std::optional<std::string> acl;
};

// As in mode bits.
inline constexpr unsigned kMayRead = 4;
inline constexpr unsigned kMayWrite = 2;
inline constexpr unsigned kMaySearch = 1;  // a directory; of a file: execute

// All of what is wanted, at once: an ACL may let a group read and another one write, and somebody
// in both still can't open the file for both. User 0 may read and write everything.
// EUCLEAN: the ACL is malformed, and its entries would matter.
Result<bool> may_access(const Permissions& inode, const Peer& peer, unsigned want);

}  // namespace atomic4
