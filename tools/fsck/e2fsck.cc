#include "fsck/e2fsck.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>

#include "base/unique_fd.h"

namespace atomic4::tools {

namespace {

constexpr int kOldest = 14500;  // 1.45.0

std::optional<std::string> find_program(const std::string& name) {
    const char* set = std::getenv("PATH");
    std::string path = set != nullptr ? set : "";
    path += ":/usr/sbin:/sbin:/usr/bin:/bin";
    for (size_t at = 0; at <= path.size();) {
        const size_t end = std::min(path.find(':', at), path.size());
        std::string candidate = path.substr(at, end - at) + "/" + name;
        if (end > at && ::access(candidate.c_str(), X_OK) == 0) return candidate;
        at = end + 1;
    }
    return std::nullopt;
}

// The first line of e2fsck -V: "e2fsck 1.47.0 (5-Feb-2023)".
std::string version_line(const std::string& program) {
    std::array<int, 2> ends{};
    if (::pipe2(ends.data(), O_CLOEXEC) != 0) return {};
    UniqueFd reading(ends[0]);
    UniqueFd writing(ends[1]);
    const pid_t pid = ::fork();
    if (pid == 0) {
        ::dup2(writing.get(), 1);
        ::dup2(writing.get(), 2);
        ::execl(program.c_str(), "e2fsck", "-V", nullptr);
        ::_exit(127);
    }
    writing.reset();
    std::string said;
    std::array<char, 256> buffer{};
    ssize_t n = 0;
    while ((n = ::read(reading.get(), buffer.data(), buffer.size())) > 0)
        said.append(buffer.data(), static_cast<size_t>(n));
    while (pid > 0 && ::waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
    }
    return said.substr(0, said.find('\n'));
}

// 1.47.0 is 14700.
std::optional<int> version_in(const std::string& line) {
    int major = 0;
    int minor = 0;
    int patch = 0;
    if (std::sscanf(line.c_str(), "e2fsck %d.%d.%d", &major, &minor, &patch) < 2)
        return std::nullopt;
    return major * 10000 + minor * 100 + patch;
}

void add_users(std::vector<std::string>& arguments, const FsckCommand& command) {
    for (const auto& [option, value] :
         {std::pair{"-b", command.superblock}, std::pair{"-B", command.block_size},
          std::pair{"-j", command.journal}}) {
        if (value) arguments.insert(arguments.end(), {option, *value});
    }
}

void add_mode(std::vector<std::string>& arguments, FsckMode mode) {
    if (mode == FsckMode::Preen) arguments.emplace_back("-p");
    if (mode == FsckMode::No) arguments.emplace_back("-n");
    if (mode == FsckMode::Yes) arguments.emplace_back("-y");
}

}  // namespace

Result<std::string> find_e2fsck() {
    const auto program = find_program("e2fsck");
    if (!program)
        return fail(ENOENT,
                    "e2fsck is not installed: it does the general checking (apt-get "
                    "install e2fsprogs)");
    const std::string line = version_line(*program);
    const auto version = version_in(line);
    if (!version) return fail(EOPNOTSUPP, "{} doesn't say its version", *program);
    if (*version < kOldest) {
        return fail(EOPNOTSUPP,
                    "{} is too old for a guarded view (\"{}\"): it has to be 1.45 or "
                    "newer",
                    *program, line);
    }
    return *program;
}

std::vector<std::string> journal_arguments(const std::string& e2fsck, const FsckCommand& command) {
    std::vector<std::string> arguments{e2fsck, "-E", "journal_only,no_optimize_extents"};
    add_mode(arguments, command.mode);
    add_users(arguments, command);
    arguments.push_back(command.device);
    return arguments;
}

std::vector<std::string> journal_probe_arguments(const std::string& e2fsck,
                                                 const FsckCommand& command) {
    std::vector<std::string> arguments{e2fsck, "-n", "-E", "journal_only"};
    add_users(arguments, command);
    arguments.push_back(command.device);
    return arguments;
}

std::vector<std::string> check_arguments(const std::string& e2fsck, const FsckCommand& command) {
    std::vector<std::string> arguments{e2fsck, "-f"};
    add_mode(arguments, command.mode);
    if (command.verbose) arguments.emplace_back("-v");
    if (command.progress)
        arguments.insert(arguments.end(), {"-C", std::to_string(*command.progress)});
    // It would move extents to make trees smaller.
    arguments.insert(arguments.end(),
                     {"-E", command.extended.empty() ? "no_optimize_extents"
                                                     : command.extended + ",no_optimize_extents"});
    add_users(arguments, command);
    arguments.push_back(command.device);
    return arguments;
}

Error become_e2fsck(const std::string& e2fsck, const FsckCommand& command) {
    std::vector<std::string> arguments{e2fsck};
    add_mode(arguments, command.mode);
    if (command.force) arguments.emplace_back("-f");
    if (command.verbose) arguments.emplace_back("-v");
    if (command.progress)
        arguments.insert(arguments.end(), {"-C", std::to_string(*command.progress)});
    if (!command.extended.empty()) arguments.insert(arguments.end(), {"-E", command.extended});
    add_users(arguments, command);
    arguments.push_back(command.device);
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    ::execv(e2fsck.c_str(), argv.data());
    return Error::from_errno(errno, e2fsck);
}

}  // namespace atomic4::tools
