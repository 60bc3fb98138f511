#include "device/file_lock.h"

#include <sys/file.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

namespace atomic4 {
namespace {

namespace fs = std::filesystem;

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kUdevPatience(2000);
constexpr milliseconds kUdevPoll(10);

std::string command_of(long pid) {
    std::ifstream file(fmt::format("/proc/{}/comm", pid));
    std::string command;
    std::getline(file, command);
    return command;
}

// A process with a descriptor of this file that carries a flock.
std::optional<LockHolder> find_heir(const struct stat& wanted) {
    std::error_code error;
    for (fs::directory_iterator it("/proc", error), end; !error && it != end; it.increment(error)) {
        const long pid = std::atol(it->path().filename().c_str());
        if (pid <= 0) continue;
        std::error_code gone;
        for (fs::directory_iterator fd(it->path() / "fd", gone), last; !gone && fd != last;
             fd.increment(gone)) {
            struct stat st{};
            if (::stat(fd->path().c_str(), &st) != 0 || st.st_dev != wanted.st_dev ||
                st.st_ino != wanted.st_ino)
                continue;
            std::ifstream info(it->path() / "fdinfo" / fd->path().filename());
            for (std::string line; std::getline(info, line);) {
                if (line.starts_with("lock:") && line.find("FLOCK") != std::string::npos)
                    return LockHolder{pid, command_of(pid)};
            }
        }
    }
    return std::nullopt;
}

bool is_udev(const LockHolder& holder) {
    return holder.command.find("udev") != std::string::npos;
}

}  // namespace

// Lines of /proc/locks: "1: FLOCK  ADVISORY  WRITE 1234 fe:00:131099 0 EOF"; "->" marks a waiter.
std::optional<LockHolder> find_lock_holder(int fd) {
    struct stat st{};
    if (::fstat(fd, &st) != 0) return std::nullopt;
    const std::string wanted =
        fmt::format("{:02x}:{:02x}:{}", major(st.st_dev), minor(st.st_dev), st.st_ino);
    std::ifstream locks("/proc/locks");
    for (std::string line; std::getline(locks, line);) {
        std::istringstream words(line);
        std::string number, kind, advisory, access, file;
        LockHolder holder;
        if (!(words >> number >> kind >> advisory >> access >> holder.pid >> file)) continue;
        // A pid that isn't positive belongs to a pid namespace that can't be seen from here.
        if (kind != "FLOCK" || file != wanted || holder.pid <= 0) continue;
        holder.command = command_of(holder.pid);
        // It took the lock and left it to a child.
        if (holder.command.empty()) return find_heir(st).value_or(holder);
        return holder;
    }
    return std::nullopt;
}

Result<> lock_file(int fd, LockKind kind, const std::string& name) {
    const int operation = (kind == LockKind::Exclusive ? LOCK_EX : LOCK_SH) | LOCK_NB;
    const auto deadline = steady_clock::now() + kUdevPatience;
    while (::flock(fd, operation) != 0) {
        const int error = errno;
        if (error == EINTR) continue;
        if (error != EWOULDBLOCK) return fail(Error::from_errno(error, "locking " + name));
        const auto holder = find_lock_holder(fd);
        if (holder && is_udev(*holder) && steady_clock::now() < deadline) {
            std::this_thread::sleep_for(kUdevPoll);
            continue;
        }
        if (!holder) return fail(EBUSY, "{} is in use by another process", name);
        return fail(EBUSY, "{} is in use by another process (pid {}{}{})", name, holder->pid,
                    holder->command.empty() ? "" : ", ", holder->command);
    }
    return {};
}

}  // namespace atomic4
