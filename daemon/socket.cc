#include "daemon/socket.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>

#include "client/default_socket.h"

namespace atomic4 {
namespace {

UniqueFd new_socket(int flags) {
    return UniqueFd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | flags, 0));
}

// Nobody answers there: it may go.
Result<> remove_stale(const std::string& path, const sockaddr_un& address) {
    struct stat st{};
    if (::lstat(path.c_str(), &st) != 0) {
        if (errno == ENOENT) return {};
        return fail(Error::from_errno(errno, path));
    }
    if (!S_ISSOCK(st.st_mode))
        return fail(EEXIST, "{}: exists and is no socket: choose another --socket", path);
    const UniqueFd probe = new_socket(SOCK_NONBLOCK);
    if (!probe) return fail(Error::from_errno(errno, "socket"));
    const int connected =
        ::connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address);
    // A full queue answers EAGAIN: somebody is there.
    if (connected == 0 || (errno != ECONNREFUSED && errno != ENOENT)) {
        return fail(EADDRINUSE, "{}: another daemon listens there", path);
    }
    if (::unlink(path.c_str()) != 0 && errno != ENOENT) return fail(Error::from_errno(errno, path));
    return {};
}

// Through a descriptor, so that it is the socket and nothing that somebody put in its place.
Result<> set_group(const std::string& path, gid_t group) {
    const UniqueFd place(::open(path.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
    struct stat st{};
    if (!place || ::fstat(place.get(), &st) != 0) return fail(Error::from_errno(errno, path));
    if (!S_ISSOCK(st.st_mode))
        return fail(EEXIST, "{}: somebody replaced the socket: choose a directory of your own",
                    path);
    if (::fchownat(place.get(), "", static_cast<uid_t>(-1), group, AT_EMPTY_PATH) != 0)
        return fail(Error::from_errno(errno, path + ": giving the socket to its group"));
    return {};
}

}  // namespace

Result<UniqueFd> bind_socket(const std::string& path, const SocketAccess& access) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.empty() || path.size() >= sizeof address.sun_path)
        return fail(ENAMETOOLONG, "{}: a socket's path has at most {} bytes", path,
                    sizeof address.sun_path - 1);
    std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
    if (path.rfind(std::string(kRunDirectory) + "/", 0) == 0) ::mkdir(kRunDirectory, 0755);
    A4_CHECK(remove_stale(path, address));
    UniqueFd socket = new_socket(0);
    if (!socket) return fail(Error::from_errno(errno, "socket"));
    // Never, even for a moment, open to more than it is to be.
    const mode_t before = ::umask(~access.mode & 0777);
    const int bound =
        ::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address);
    const int code = errno;
    ::umask(before);
    if (bound != 0) return fail(Error::from_errno(code, path));
    if (access.group) A4_CHECK(set_group(path, *access.group));
    return socket;
}

}  // namespace atomic4
