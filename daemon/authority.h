// Who may do what. Authority comes from the kernel: from the credentials that a client connected
// with, from the descriptor that it passes, from the inode. Never from what it says.
//
// A denial's message names who (user and process), which inode, what was asked for and why not.
// What is granted at OPEN holds as long as the handle, as it does for a descriptor.
//
// None of these functions waits for anybody: a descriptor of a FUSE file whose server doesn't
// answer is recognised as foreign without asking the server. (close(2) of such a descriptor does
// ask; see foreign_descriptor.h.)
// Threads: any.
#pragma once

#include <sys/types.h>

#include <string>

#include "base/result.h"
#include "daemon/permissions.h"
#include "ext4/volume.h"

namespace atomic4 {

struct Grant {
    bool read = false;
    bool write = false;
};

// Who connected to this socket: SO_PEERCRED, SO_PEERGROUPS. It is who called connect(2), whoever
// holds the client's end now. A user that our namespace doesn't know arrives as the kernel's
// overflow user 65534.
Result<Peer> peer_of(int socket);

// "user 1000 (process 4242)"
std::string to_text(const Peer& peer);

// Mounted volumes. filesystem: its st_dev. The descriptor proves what it was opened for, since
// whoever opened it might; what it doesn't prove is allowed if the peer could open the same inode
// for it (as by /proc/self/fd: directories on some path to it don't matter). Granted is exactly
// what is wanted.
//
//   EBADF   an O_PATH descriptor, or none      EXDEV  another filesystem
//   EISDIR, EINVAL  no regular file            EACCES neither proved nor allowed
//   EPERM   to write: append-only, immutable, or (unless the peer is root) setuid or setgid and
//           executable, since a write by somebody else must take these bits away
//   EROFS   to write: mounted read-only, or the mount that the descriptor is of
Result<Grant> authorize_descriptor(const Peer& peer, int fd, dev_t filesystem, bool want_read,
                                   bool want_write);

// Owned volumes: a path inside, whose every directory that a lookup searches, also behind symbolic
// links, and whose inode the peer must have permission for. Access ACLs count, as for a volume
// that is mounted with its default options. Errors as above, and those of lookup().
struct AuthorizedFile {
    ext2_ino_t inode = 0;
    Grant grant;
};
Result<AuthorizedFile> authorize_path(Volume& volume, const Peer& peer, const std::string& path,
                                      bool want_read, bool want_write);

}  // namespace atomic4
