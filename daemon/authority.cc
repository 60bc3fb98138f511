#include "daemon/authority.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

#include "ext4/errcode.h"
#include "ext4/path.h"
#include "ext4/xattr.h"

namespace atomic4 {

namespace {

constexpr const char* kAclName = "system.posix_acl_access";

const char* to_text(unsigned want) {
    const bool read = (want & kMayRead) != 0;
    const bool write = (want & kMayWrite) != 0;
    if ((want & kMaySearch) != 0) return "searched";
    return read && write ? "read and written" : write ? "written" : "read";
}

// What is the same for mounted and owned volumes.
struct Subject {
    uint64_t inode = 0;
    Permissions permissions;
    bool append_only = false;
    bool immutable = false;
};

Result<> require_regular(mode_t mode, uint64_t inode) {
    if (S_ISREG(mode)) return {};
    if (S_ISDIR(mode)) return fail(EISDIR, "inode {} is a directory, not a regular file", inode);
    return fail(EINVAL, "inode {} is not a regular file: only those can be opened", inode);
}

// Of a regular file.
Result<> require_changeable(const Peer& peer, const Subject& subject) {
    const auto refuse = [&](const char* why) {
        return fail(EPERM, "{} may not write inode {}: {}", atomic4::to_text(peer), subject.inode,
                    why);
    };
    if (subject.immutable) return refuse("it is immutable (chattr -i makes it writable)");
    if (subject.append_only) return refuse("it is append-only (chattr -a makes it writable)");
    const mode_t mode = subject.permissions.mode;
    const bool runs_as_another =
        (mode & S_ISUID) != 0 || (mode & (S_ISGID | S_IXGRP)) == (S_ISGID | S_IXGRP);
    if (runs_as_another && peer.uid != 0)
        return refuse("it is a setuid or setgid program (chmod ug-s makes it an ordinary file)");
    return {};
}

Result<> require_access(const Peer& peer, const Subject& subject, unsigned want) {
    if (want == 0) return {};
    const std::string what = fmt::format("inode {}", subject.inode);
    if (A4_TRY(may_access(subject.permissions, peer, want).context(what))) return {};
    const Permissions& p = subject.permissions;
    return fail(EACCES, "inode {} may not be {} by {}: it is owned by {}:{}, mode {:04o}{}",
                subject.inode, to_text(want), atomic4::to_text(peer), p.uid, p.gid, p.mode & 07777u,
                p.acl ? ", with an access control list" : "");
}

Result<std::optional<std::string>> acl_of(int fd) {
    // It may grow between the two calls; nobody changes it often enough to need a loop.
    for (size_t size = 0;;) {
        std::string value(size, '\0');
        const ssize_t got = ::fgetxattr(fd, kAclName, value.data(), size);
        if (got < 0 && (errno == ENODATA || errno == EOPNOTSUPP))
            return std::optional<std::string>();
        if (got < 0 && errno != ERANGE) return fail(Error::from_errno(errno, kAclName));
        if (got >= 0 && size > 0) {
            value.resize(static_cast<size_t>(got));
            return std::optional(std::move(value));
        }
        size = got < 0 ? XATTR_SIZE_MAX : static_cast<size_t>(got);
    }
}

Result<Subject> subject_of(Volume& volume, ext2_ino_t number) {
    ext2_inode inode{};
    A4_CHECK(check_errcode(ext2fs_read_inode(volume.fs(), number, &inode),
                           fmt::format("inode {}", number)));
    Subject subject;
    subject.inode = number;
    subject.permissions = {inode.i_mode, inode_uid(inode), inode_gid(inode), std::nullopt};
    subject.append_only = (inode.i_flags & EXT2_APPEND_FL) != 0;
    subject.immutable = (inode.i_flags & EXT2_IMMUTABLE_FL) != 0;
    subject.permissions.acl = A4_TRY(read_xattr(volume.fs(), number, kAclName));
    return subject;
}

}  // namespace

std::string to_text(const Peer& peer) {
    return fmt::format("user {} (process {})", peer.uid, peer.pid);
}

Result<Peer> peer_of(int socket) {
    ucred credentials{};
    socklen_t length = sizeof credentials;
    if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0)
        return fail(Error::from_errno(errno, "SO_PEERCRED"));
    Peer peer{credentials.pid, credentials.uid, credentials.gid, {}};
    peer.groups.resize(32);
    for (;;) {
        length = static_cast<socklen_t>(peer.groups.size() * sizeof(gid_t));
        if (::getsockopt(socket, SOL_SOCKET, SO_PEERGROUPS, peer.groups.data(), &length) == 0) {
            peer.groups.resize(length / sizeof(gid_t));
            return peer;
        }
        // length is what it takes.
        if (errno != ERANGE || length <= peer.groups.size() * sizeof(gid_t))
            return fail(Error::from_errno(errno, "SO_PEERGROUPS"));
        peer.groups.resize(length / sizeof(gid_t));
    }
}

Result<Grant> authorize_descriptor(const Peer& peer, int fd, dev_t filesystem, bool want_read,
                                   bool want_write) {
    const int flags = ::fcntl(fd, F_GETFL);
    if (flags < 0) return fail(Error::from_errno(errno, "the passed descriptor"));
    if ((flags & O_PATH) != 0) {
        return fail(EBADF,
                    "the passed descriptor was opened with O_PATH, which proves nothing: open the "
                    "file for reading or writing");
    }
    // DONT_SYNC: what the kernel has, without asking a FUSE or network server.
    struct statx status{};
    if (::statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_BASIC_STATS, &status) != 0)
        return fail(Error::from_errno(errno, "the passed descriptor"));
    A4_CHECK(require_regular(status.stx_mode, status.stx_ino));
    const auto foreign = [&] {
        return fail(EXDEV,
                    "the passed descriptor's file, inode {} of device {}:{}, is not on this "
                    "volume, which is device {}:{}",
                    status.stx_ino, status.stx_dev_major, status.stx_dev_minor, major(filesystem),
                    minor(filesystem));
    };
    if (makedev(status.stx_dev_major, status.stx_dev_minor) != filesystem) return foreign();
    // A stacked filesystem may show the device of the one below it.
    struct statfs mount{};
    if (::fstatfs(fd, &mount) != 0) return fail(Error::from_errno(errno, "fstatfs"));
    if (mount.f_type != EXT4_SUPER_MAGIC) return foreign();

    Subject subject;
    subject.inode = status.stx_ino;
    subject.permissions = {status.stx_mode, status.stx_uid, status.stx_gid, std::nullopt};
    subject.append_only = (status.stx_attributes & STATX_ATTR_APPEND) != 0;
    subject.immutable = (status.stx_attributes & STATX_ATTR_IMMUTABLE) != 0;
    if (want_write) {
        if ((mount.f_flags & ST_RDONLY) != 0) {
            return fail(EROFS, "inode {} can't be written by {}: it is on a read-only mount",
                        subject.inode, to_text(peer));
        }
        A4_CHECK(require_changeable(peer, subject));
    }
    // Access mode 3, which is neither reading nor writing, proves nothing.
    const int mode = flags & O_ACCMODE;
    const bool proves_read = mode == O_RDONLY || mode == O_RDWR;
    const bool proves_write = mode == O_WRONLY || mode == O_RDWR;
    const unsigned to_judge =
        (want_read && !proves_read ? kMayRead : 0) | (want_write && !proves_write ? kMayWrite : 0);
    if (to_judge != 0) subject.permissions.acl = A4_TRY(acl_of(fd));
    A4_CHECK(require_access(peer, subject, to_judge));
    return Grant{want_read, want_write};
}

Result<AuthorizedFile> authorize_path(Volume& volume, const Peer& peer, const std::string& path,
                                      bool want_read, bool want_write) {
    const ext2_ino_t number = A4_TRY(lookup(volume, path, [&](ext2_ino_t directory) -> Result<> {
        return require_access(peer, A4_TRY(subject_of(volume, directory)), kMaySearch);
    }));
    const Subject subject = A4_TRY(subject_of(volume, number).context(path));
    A4_CHECK(require_regular(subject.permissions.mode, number).context(path));
    if (want_write) {
        if (volume.device().read_only()) {
            return fail(EROFS, "{}: can't be written by {}: {} is open for reading only", path,
                        to_text(peer), volume.name());
        }
        A4_CHECK(require_changeable(peer, subject).context(path));
    }
    const unsigned want = (want_read ? kMayRead : 0) | (want_write ? kMayWrite : 0);
    A4_CHECK(require_access(peer, subject, want).context(path));
    return AuthorizedFile{number, {want_read, want_write}};
}

}  // namespace atomic4
