#include "mount/private_place.h"

#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>

#include "mount/run_program.h"

namespace atomic4::tools {

namespace {

constexpr const char* kRunDirectory = "/run/atomic4";

}  // namespace

Result<> PrivatePlace::make() {
    if (::mkdir(kRunDirectory, 0755) != 0 && errno != EEXIST)
        return fail(Error::from_errno(errno, kRunDirectory));
    std::string name = std::string(kRunDirectory) + "/mount.XXXXXX";
    if (::mkdtemp(name.data()) == nullptr) return fail(Error::from_errno(errno, name));
    directory_ = name;
    const char* path = directory_.c_str();
    if (::mount("atomic4", path, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0700,size=64k") !=
        0)
        return fail(Error::from_errno(errno, "mounting a tmpfs on " + directory_));
    tmpfs_ = true;
    if (::mount(nullptr, path, nullptr, MS_PRIVATE, nullptr) != 0)
        return fail(Error::from_errno(errno, "making " + directory_ + " private"));
    if (::mkdir(volume().c_str(), 0700) != 0) return fail(Error::from_errno(errno, volume()));
    return {};
}

PrivatePlace::~PrivatePlace() {
    if (mounted_) {
        // By umount(8), which has an entry of it in utab. A lazy one only if someone keeps it busy.
        const auto status = run_program({"umount", "-i", volume()});
        if (!status || *status != 0) ::umount2(volume().c_str(), MNT_DETACH);
    }
    if (tmpfs_) ::umount2(directory_.c_str(), MNT_DETACH);
    if (!directory_.empty()) ::rmdir(directory_.c_str());
}

}  // namespace atomic4::tools
