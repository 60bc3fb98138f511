#include "mount/run_program.h"

#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <sstream>

namespace atomic4::tools {

namespace {

constexpr const char* kSystemPath = "/usr/sbin:/usr/bin:/sbin:/bin";

sigset_t mask_at_start;
bool mask_is_known = false;

Result<std::string> find_in_path(const std::string& name) {
    const char* const own = std::getenv("PATH");
    std::istringstream path(fmt::format("{}:{}", own != nullptr ? own : "", kSystemPath));
    for (std::string directory; std::getline(path, directory, ':');) {
        std::string file = fmt::format("{}/{}", directory, name);
        if (!directory.empty() && ::access(file.c_str(), X_OK) == 0) return file;
    }
    return fail(ENOENT, "{} is not installed", name);
}

}  // namespace

HeldSignals::HeldSignals() {
    sigset_t held;
    sigemptyset(&held);
    for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGQUIT}) sigaddset(&held, signal);
    mask_is_known = ::sigprocmask(SIG_BLOCK, &held, &mask_at_start) == 0;
}

HeldSignals::~HeldSignals() {
    if (mask_is_known) ::sigprocmask(SIG_SETMASK, &mask_at_start, nullptr);
    mask_is_known = false;
}

Result<std::string> find_own_program(const std::string& name) {
    std::error_code error;
    const auto self = std::filesystem::read_symlink("/proc/self/exe", error);
    std::string beside = self.parent_path() / name;
    if (!error && ::access(beside.c_str(), X_OK) == 0) return beside;
    return find_in_path(name);
}

Result<int> run_program(const std::vector<std::string>& arguments) {
    const std::string path = arguments[0].find('/') != std::string::npos
                                 ? arguments[0]
                                 : A4_TRY(find_in_path(arguments[0]));
    std::vector<char*> words;
    for (const std::string& word : arguments) words.push_back(const_cast<char*>(word.c_str()));
    words.push_back(nullptr);
    posix_spawnattr_t attributes;
    posix_spawnattr_init(&attributes);
    if (mask_is_known) {
        posix_spawnattr_setsigmask(&attributes, &mask_at_start);
        posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
    }
    pid_t pid = 0;
    const int error =
        ::posix_spawn(&pid, path.c_str(), nullptr, &attributes, words.data(), environ);
    posix_spawnattr_destroy(&attributes);
    if (error != 0) return fail(Error::from_errno(error, path));
    int status = 0;
    while (::waitpid(pid, &status, 0) < 0) {
        if (errno != EINTR) return fail(Error::from_errno(errno, path));
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace atomic4::tools
