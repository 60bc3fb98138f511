#include "client/default_socket.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/types.h>
#include <sys/ioctl.h>

#include "base/unique_fd.h"

namespace atomic4 {
namespace {

// EXT4_IOC_GETFSUUID (fs/ext4/ext4.h); no header of user space has it. Other file systems answer
// ENOTTY.
struct FsUuid {
    uint32_t length;
    uint32_t flags;
    std::array<uint8_t, 16> uuid;
};
constexpr unsigned long kGetFsUuid = _IOC(_IOC_READ, 'f', 44, 2 * sizeof(uint32_t));

}  // namespace

std::string default_socket_path(const std::array<uint8_t, 16>& uuid) {
    std::string name;
    for (size_t i = 0; i < uuid.size(); ++i)
        name += fmt::format("{}{:02x}", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", uuid[i]);
    return fmt::format("{}/{}.sock", kRunDirectory, name);
}

Result<std::string> default_socket_of(const std::string& path) {
    // A FIFO must not hold us up.
    const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (!fd) return fail(Error::from_errno(errno, path));
    FsUuid answer{};
    answer.length = static_cast<uint32_t>(answer.uuid.size());
    if (::ioctl(fd.get(), kGetFsUuid, &answer) != 0) {
        return fail(EOPNOTSUPP,
                    "{}: lies on no mounted ext4 whose UUID the kernel tells: name the daemon's "
                    "socket",
                    path);
    }
    return default_socket_path(answer.uuid);
}

}  // namespace atomic4
