#include "support/loop.h"

#include <fcntl.h>
#include <linux/loop.h>
#include <poll.h>
#include <sys/ioctl.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>

#include "support/command.h"

namespace atomic4::test {

std::optional<std::string> LoopDevice::why_not() {
    const UniqueFd control(::open("/dev/loop-control", O_RDWR | O_CLOEXEC));
    if (!control) return std::string("/dev/loop-control: ") + std::strerror(errno);
    if (run_command({"losetup", "--version"}).status != 0) return "losetup is not installed";
    return std::nullopt;
}

LoopDevice::LoopDevice(const std::string& image, const std::vector<std::string>& options) {
    std::vector<std::string> command{"losetup", "--find", "--show"};
    command.insert(command.end(), options.begin(), options.end());
    command.push_back(image);
    const CommandOutput result = run_command(command);
    if (result.status != 0 || result.output.rfind("/dev/loop") == std::string::npos)
        throw std::runtime_error("losetup " + image + ": " + result.output);
    // Its last line: there may be a warning about an odd size before it.
    path_ = result.output.substr(result.output.rfind("/dev/loop"));
    path_.resize(path_.find('\n'));
    keep_.reset(::open(path_.c_str(), O_RDONLY | O_CLOEXEC));
    loop_info64 info{};
    if (::ioctl(keep_.get(), LOOP_GET_STATUS64, &info) == 0) {
        info.lo_flags |= LO_FLAGS_AUTOCLEAR;
        ::ioctl(keep_.get(), LOOP_SET_STATUS64, &info);
    }
}

LoopDevice::~LoopDevice() {
    // Through our own descriptor: by name, it could be another test's device by now.
    ::ioctl(keep_.get(), LOOP_CLR_FD, 0);
}

Mount::Mount(const std::string& source, const std::string& directory,
             const std::vector<std::string>& options)
    : directory_(directory) {
    std::vector<std::string> command{"mount"};
    command.insert(command.end(), options.begin(), options.end());
    command.insert(command.end(), {source, directory});
    const CommandOutput result = run_command(command);
    if (result.status != 0) throw std::runtime_error("mount " + source + ": " + result.output);
}

void Mount::unmount() {
    CommandOutput result = run_command({"umount", directory_});
    // The kernel takes a moment to close what a process had that has just ended.
    for (int i = 0; i < 250 && result.output.find("busy") != std::string::npos; ++i) {
        ::poll(nullptr, 0, 20);
        result = run_command({"umount", directory_});
    }
    if (result.status != 0) throw std::runtime_error("umount: " + result.output);
    mounted_ = false;
}

Mount::~Mount() {
    if (!mounted_) return;
    if (run_command({"umount", directory_}).status != 0) run_command({"umount", "-l", directory_});
}

void make_image(const std::string& path, uint64_t size) {
    const UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    if (!fd || ::ftruncate(fd.get(), static_cast<off_t>(size)) != 0)
        throw std::runtime_error(path + ": " + std::strerror(errno));
}

}  // namespace atomic4::test
