#include "mount/umount.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <thread>

#include "base/unique_fd.h"
#include "device/file_lock.h"
#include "device/mount_table.h"
#include "ext4/format.h"
#include "mount/run_program.h"

namespace atomic4::tools {

namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// It drains within 5 seconds.
constexpr milliseconds kPatience(10'000);
constexpr milliseconds kPoll(10);

struct Target {
    std::string mount_point;
    size_t mounts = 0;  // of the same file system, here
};

Result<Target> find_target(const std::string& name) {
    struct stat st{};
    if (::stat(name.c_str(), &st) != 0) return fail(Error::from_errno(errno, name));
    std::error_code error;
    const std::string path = std::filesystem::canonical(name, error);
    Target target;
    dev_t dev = S_ISBLK(st.st_mode) ? st.st_rdev : st.st_dev;
    for (const MountEntry& entry : read_mount_table()) {
        if (entry.major_number != major(dev) || entry.minor_number != minor(dev)) continue;
        ++target.mounts;
        if (S_ISBLK(st.st_mode) || entry.mount_point == path)
            target.mount_point = entry.mount_point;
    }
    if (target.mount_point.empty()) return fail(EINVAL, "{}: not mounted", name);
    return target;
}

// Whoever holds the volume's lock; none: nobody does.
std::optional<LockHolder> holder_of(const std::string& mount_point) {
    const std::string path = fmt::format("{}/{}/{}", mount_point, kDirectoryName, kLockName);
    // O_PATH: nothing that would keep the volume busy or wake a guard.
    const UniqueFd fd(::open(path.c_str(), O_PATH | O_CLOEXEC | O_NOFOLLOW));
    if (!fd) return std::nullopt;
    return find_lock_holder(fd.get());
}

// SIGTERM, and until it has gone. EBUSY: it hasn't.
Result<> stop(const LockHolder& holder, steady_clock::time_point deadline) {
    const auto pid = static_cast<pid_t>(holder.pid);
    const UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
    if (!process) {
        if (errno == ESRCH) return {};
        return fail(Error::from_errno(errno, fmt::format("{} (pid {})", holder.command, pid)));
    }
    if (::syscall(SYS_pidfd_send_signal, process.get(), SIGTERM, nullptr, 0) != 0 && errno != ESRCH)
        return fail(
            Error::from_errno(errno, fmt::format("stopping {} (pid {})", holder.command, pid)));
    for (;;) {
        const auto left =
            std::chrono::duration_cast<milliseconds>(deadline - steady_clock::now()).count();
        if (left <= 0) break;
        pollfd gone{process.get(), POLLIN, 0};
        const int ready = ::poll(&gone, 1, static_cast<int>(left));
        if (ready > 0) return {};
        if (ready < 0 && errno != EINTR) return fail(Error::from_errno(errno, "poll"));
    }
    return fail(EBUSY, "{} (pid {}) did not stop within {} seconds", holder.command, pid,
                kPatience.count() / 1000);
}

// The daemon, and whoever takes its place meanwhile.
Result<bool> stop_daemon(const Context& context, const std::string& mount_point, bool verbose) {
    const auto deadline = steady_clock::now() + kPatience;
    bool stopped = false;
    while (const auto holder = holder_of(mount_point)) {
        if (verbose && !stopped)
            context.print(fmt::format("stopping {} (pid {})\n", holder->command, holder->pid));
        A4_CHECK(stop(*holder, deadline).context(mount_point));
        // The lock may have passed to a child of it, which has to notice.
        if (stopped) std::this_thread::sleep_for(kPoll);
        if (steady_clock::now() >= deadline) {
            return fail(EBUSY, "{}: pid {} has gone, but a child of it still holds {}/{}",
                        mount_point, holder->pid, kDirectoryName, kLockName);
        }
        stopped = true;
    }
    return stopped;
}

Result<int> call_umount(const UmountRequest& request, const std::string& mount_point) {
    std::vector<std::string> command{"umount", "-i"};
    if (request.force) command.emplace_back("-f");
    if (request.lazy) command.emplace_back("-l");
    if (request.no_mtab) command.emplace_back("-n");
    if (request.read_only) command.emplace_back("-r");
    if (request.verbose) command.emplace_back("-v");
    command.push_back(mount_point);
    return run_program(command);
}

// The kernel takes a moment to close what a daemon had that has just ended. Asks whether the mount
// is busy, which the first of two MNT_EXPIRE calls does without unmounting anything (umount(2)).
void wait_while_busy(const std::string& mount_point) {
    for (int i = 0; i < 100; ++i) {
        if (::umount2(mount_point.c_str(), MNT_EXPIRE) == 0 || errno != EBUSY) return;
        ::poll(nullptr, 0, 20);
    }
}

}  // namespace

Result<> unmount_volume(const Context& context, const UmountRequest& request) {
    const Target target = A4_TRY(find_target(request.target));
    const bool in_any_case = request.force || request.lazy;
    // One of several mounts: if the daemon isn't on this one, it goes on serving.
    if (target.mounts > 1 && !in_any_case) {
        const auto status = A4_TRY(call_umount(request, target.mount_point));
        if (status == 0) return {};
    }
    const auto stopped = stop_daemon(context, target.mount_point, request.verbose);
    if (!stopped && !in_any_case)
        return fail(EBUSY, "{}; {} stays mounted", stopped.error().message, target.mount_point);
    if (!stopped) context.warn(stopped.error().message);
    if (stopped && *stopped && !in_any_case) wait_while_busy(target.mount_point);
    const int status = A4_TRY(call_umount(request, target.mount_point));
    if (status == 0) return {};
    return fail(EBUSY, "{}: umount(8) ended with status {}{}", target.mount_point, status,
                stopped && *stopped
                    ? fmt::format("; atomic4d was stopped before: atomic4d {} starts it again",
                                  target.mount_point)
                    : "");
}

}  // namespace atomic4::tools
