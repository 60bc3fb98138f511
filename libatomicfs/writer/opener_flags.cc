#include "writer/opener_flags.h"

#include <fcntl.h>
#include <sys/syscall.h>

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>

namespace atomic4 {
namespace {

enum class Wish { Nothing, Read, Unknown };

std::optional<std::string> first_line(const std::filesystem::path& path) {
    std::ifstream in(path);
    std::string line;
    if (!std::getline(in, line)) return std::nullopt;
    return line;
}

Wish of_flags(uint64_t flags) {
    // O_TRUNC with O_RDONLY truncates.
    const bool reads = (flags & O_ACCMODE) == O_RDONLY && (flags & (O_TRUNC | O_CREAT)) == 0;
    return reads ? Wish::Read : Wish::Unknown;
}

// What a thread is doing, as far as opening files goes.
Wish wish_of(const std::filesystem::path& task) {
    const auto name = first_line(task / "comm");
    const auto call = first_line(task / "syscall");
    // Threads of io_uring open files without a system call.
    if (!name || !call || name->starts_with("iou-")) return Wish::Unknown;
    // It may be the one that is held, on its way to sleep.
    if (*call == "running") return Wish::Unknown;
    long number = -1;
    unsigned long long arguments[3] = {};
    if (std::sscanf(call->c_str(), "%ld %llx %llx %llx", &number, &arguments[0], &arguments[1],
                    &arguments[2]) != 4)
        return number < 0 && !call->empty() ? Wish::Nothing : Wish::Unknown;
    switch (number) {
#ifdef SYS_open
        case SYS_open:
            return of_flags(arguments[1]);
        case SYS_creat:
            return Wish::Unknown;
#endif
        case SYS_openat:
        case SYS_open_by_handle_at:
            return of_flags(arguments[2]);
        case SYS_execve:
        case SYS_execveat:
            return Wish::Read;
        case SYS_openat2:
        case SYS_io_uring_enter:
            return Wish::Unknown;
        default:
            return Wish::Nothing;
    }
}

}  // namespace

bool surely_only_reads(pid_t held) {
#ifndef __x86_64__
    // Numbers of calls of other architectures' processes would be taken for others.
    (void)held;
    return false;
#else
    if (held <= 0) return false;
    bool reads = false;
    std::error_code error;
    std::filesystem::directory_iterator tasks("/proc/" + std::to_string(held) + "/task", error);
    if (error) return false;
    for (; tasks != std::filesystem::directory_iterator(); tasks.increment(error)) {
        if (error) return false;
        const Wish wish = wish_of(tasks->path());
        if (wish == Wish::Unknown) return false;
        reads = reads || wish == Wish::Read;
    }
    return reads && !error;
#endif
}

}  // namespace atomic4
