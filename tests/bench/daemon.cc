#include "bench/daemon.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>

#include "base/unique_fd.h"

namespace atomic4::bench {
namespace {

constexpr int kStartLimit = 60'000;  // ms

sockaddr_un address_of(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof address.sun_path) throw std::runtime_error(path + " is too long");
    std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
    return address;
}

UniqueFd make_socket(int type) {
    UniqueFd fd(::socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
    must(static_cast<bool>(fd), "socket");
    return fd;
}

// Until it can be read: true. False if the process ended before.
bool wait_for_either(int fd, int process) {
    pollfd both[2] = {{fd, POLLIN, 0}, {process, POLLIN, 0}};
    int n = 0;
    do {
        n = poll(both, 2, kStartLimit);
    } while (n < 0 && errno == EINTR);
    must(n >= 0, "poll");
    if (n == 0) throw std::runtime_error("atomic4d: not ready after a minute");
    return (both[0].revents & POLLIN) != 0;
}

double peak_of(const std::string& pid) {
    std::ifstream status("/proc/" + pid + "/status");
    for (std::string line; std::getline(status, line);)
        if (line.starts_with("VmHWM:")) return std::stod(line.substr(6)) / 1024;
    return 0;
}

}  // namespace

std::optional<std::string> why_no_daemon() {
    const std::string program = our_program("atomic4d");
    if (std::filesystem::exists(program)) return std::nullopt;
    return "there is no " + program;
}

Daemon::Daemon(const std::string& target, const std::string& scratch,
               const std::vector<std::string>& more)
    : socket_(scratch + ".sock"), output_(scratch + ".out") {
    const std::string notify = scratch + ".notify";
    unlink(socket_.c_str());
    unlink(notify.c_str());
    const UniqueFd ready = make_socket(SOCK_DGRAM);
    const sockaddr_un address = address_of(notify);
    must(ready &&
             bind(ready.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0,
         notify);

    // Killed, a benchmark can't stop what it started; a daemon would keep its mount busy.
    std::vector<std::string> words{"setpriv", "--pdeathsig",  "TERM",     our_program("atomic4d"),
                                   target,    "--foreground", "--socket", socket_};
    words.insert(words.end(), more.begin(), more.end());
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    std::string variable = "NOTIFY_SOCKET=" + notify;
    std::vector<char*> environment{variable.data()};
    for (char** entry = environ; *entry != nullptr; ++entry)
        if (!std::string_view(*entry).starts_with("NOTIFY_SOCKET=")) environment.push_back(*entry);
    environment.push_back(nullptr);

    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 1, output_.c_str(), O_WRONLY | O_CREAT | O_TRUNC,
                                     0600);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    const int error =
        posix_spawnp(&pid_, argv[0], &actions, nullptr, argv.data(), environment.data());
    posix_spawn_file_actions_destroy(&actions);
    if (error != 0) throw std::runtime_error(words[0] + ": " + std::strerror(error));

    const UniqueFd process(static_cast<int>(syscall(SYS_pidfd_open, pid_, 0)));
    must(static_cast<bool>(process), "pidfd_open");
    try {
        for (std::string message; message.find("READY=1") == std::string::npos;) {
            if (!wait_for_either(ready.get(), process.get()))
                throw std::runtime_error("atomic4d ended at once: " + said());
            message.resize(4096);
            const ssize_t n = recv(ready.get(), message.data(), message.size(), 0);
            must(n >= 0, "recv");
            message.resize(static_cast<size_t>(n));
        }
    } catch (...) {
        kill(pid_, SIGKILL);
        waitpid(pid_, nullptr, 0);
        throw;
    }
    unlink(notify.c_str());
}

Daemon::~Daemon() {
    if (pid_ < 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
}

double Daemon::peak_mib() const {
    const std::string pid = std::to_string(pid_);
    double sum = peak_of(pid);
    std::ifstream children("/proc/" + pid + "/task/" + pid + "/children");
    for (std::string child; children >> child;) sum += peak_of(child);
    return sum;
}

void Daemon::stop() {
    kill(pid_, SIGTERM);
    int status = 0;
    while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    pid_ = -1;
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        throw std::runtime_error(fmt::format("atomic4d: status {:#x}: {}", status, said()));
}

std::string Daemon::said() const {
    std::ostringstream text;
    text << std::ifstream(output_).rdbuf();
    return text.str();
}

}  // namespace atomic4::bench
