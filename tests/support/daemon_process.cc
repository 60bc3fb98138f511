#include "support/daemon_process.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <fstream>
#include <sstream>
#include <stdexcept>

namespace atomic4::test {
namespace {

constexpr int kStartLimit = 60'000;  // ms

UniqueFd bind_notify(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof address.sun_path) throw std::runtime_error(path + " is too long");
    std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
    UniqueFd fd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    if (!fd || ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
        throw std::runtime_error(path + ": " + std::strerror(errno));
    return fd;
}

double peak_of(pid_t pid) {
    std::ifstream status("/proc/" + std::to_string(pid) + "/status");
    for (std::string line; std::getline(status, line);)
        if (line.starts_with("VmHWM:")) return std::stod(line.substr(6)) / 1024;
    return 0;
}

}  // namespace

DaemonProcess::DaemonProcess(const std::string& target, std::vector<std::string> more,
                             ServiceManager manager)
    : target_(target),
      more_(std::move(more)),
      manager_(std::move(manager)),
      socket_(temp_.file("sock")),
      log_(temp_.file("log")),
      notify_(bind_notify(temp_.file("notify"))) {
    start();
}

DaemonProcess::~DaemonProcess() {
    if (keeper_ > 0) kill_all();
}

void DaemonProcess::start() {
    // What a predecessor had told.
    char stale[4096];
    while (::recv(notify_.get(), stale, sizeof stale, MSG_DONTWAIT) >= 0) {
    }
    ::unlink(socket_.c_str());
    spawn();
    try {
        wait_ready();
    } catch (...) {
        kill_all();
        throw;
    }
}

void DaemonProcess::spawn() {
    std::vector<std::string> words;
    // LISTEN_PID is the process's own.
    if (manager_.listener >= 0)
        words = {"sh", "-c", "LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\"", "sh"};
    words.insert(words.end(), {"setpriv", "--pdeathsig", "TERM"});
    words.insert(words.end(), manager_.setpriv.begin(), manager_.setpriv.end());
    words.insert(words.end(), {our_program("atomic4d"), target_, "--foreground"});
    if (manager_.listener < 0) words.insert(words.end(), {"--socket", socket_});
    words.insert(words.end(), more_.begin(), more_.end());
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    std::string variable = "NOTIFY_SOCKET=" + temp_.file("notify");
    std::vector<char*> environment{variable.data()};
    for (char** entry = environ; *entry != nullptr; ++entry)
        if (std::strncmp(*entry, "NOTIFY_SOCKET=", 14) != 0) environment.push_back(*entry);
    environment.push_back(nullptr);

    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 1, log_.c_str(), O_WRONLY | O_CREAT | O_APPEND,
                                     0600);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    if (manager_.listener >= 0) posix_spawn_file_actions_adddup2(&actions, manager_.listener, 3);
    const int error =
        ::posix_spawnp(&keeper_, argv[0], &actions, nullptr, argv.data(), environment.data());
    posix_spawn_file_actions_destroy(&actions);
    if (error != 0) {
        keeper_ = -1;
        throw std::runtime_error(words[0] + ": " + std::strerror(error));
    }
    process_.reset(static_cast<int>(::syscall(SYS_pidfd_open, keeper_, 0)));
    if (!process_) throw std::runtime_error(std::string("pidfd_open: ") + std::strerror(errno));
}

// False: the keeper ended before.
bool DaemonProcess::readable_before_end(int fd) const {
    pollfd both[2] = {{fd, POLLIN, 0}, {process_.get(), POLLIN, 0}};
    int n = 0;
    do {
        n = ::poll(both, 2, kStartLimit);
    } while (n < 0 && errno == EINTR);
    if (n == 0) throw std::runtime_error("atomic4d: not ready after a minute: " + said());
    return (both[0].revents & POLLIN) != 0;
}

void DaemonProcess::wait_ready() {
    for (;;) {
        if (!readable_before_end(notify_.get()))
            throw std::runtime_error("atomic4d ended before it was ready: " + said());
        char message[4096];
        const ssize_t n = ::recv(notify_.get(), message, sizeof message - 1, 0);
        message[n > 0 ? n : 0] = '\0';
        if (std::strstr(message, "READY=1") != nullptr) return;
    }
}

std::vector<pid_t> DaemonProcess::workers() const {
    const std::string keeper = std::to_string(keeper_);
    std::ifstream children("/proc/" + keeper + "/task/" + keeper + "/children");
    std::vector<pid_t> pids;
    for (pid_t pid = 0; children >> pid;) pids.push_back(pid);
    return pids;
}

pid_t DaemonProcess::worker() const {
    const auto pids = workers();
    if (pids.empty()) throw std::runtime_error("atomic4d has no worker now: " + said());
    return pids.front();
}

double DaemonProcess::peak_mib() const {
    double sum = peak_of(keeper_);
    for (const pid_t pid : workers()) sum += peak_of(pid);
    return sum;
}

void DaemonProcess::signal_keeper(int signal) const {
    // To kill(2), -1 is every process there is.
    if (keeper_ <= 0) throw std::runtime_error("atomic4d is not running: " + said());
    ::kill(keeper_, signal);
}

void DaemonProcess::kill_worker() {
    ::kill(worker(), SIGKILL);
}

void DaemonProcess::kill_all() {
    // Stopped first, it can't see its worker's death.
    signal_keeper(SIGSTOP);
    siginfo_t info{};
    ::waitid(P_PID, static_cast<id_t>(keeper_), &info, WSTOPPED | WEXITED | WNOWAIT);
    for (const pid_t worker : workers()) {
        const UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, worker, 0)));
        ::kill(worker, SIGKILL);
        // Dead, that is: it holds the volume's lock no longer.
        pollfd dead{process.get(), POLLIN, 0};
        ::poll(&dead, 1, kStartLimit);
    }
    signal_keeper(SIGKILL);
    wait_exit();
}

int DaemonProcess::wait_exit(int limit_ms) {
    pollfd ended{process_.get(), POLLIN, 0};
    int n = 0;
    do {
        n = ::poll(&ended, 1, limit_ms);
    } while (n < 0 && errno == EINTR);
    if (n <= 0) return -1;
    int status = 0;
    while (::waitpid(keeper_, &status, 0) < 0 && errno == EINTR) {
    }
    keeper_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int DaemonProcess::stop() {
    signal_keeper(SIGTERM);
    return wait_exit();
}

std::string DaemonProcess::said() const {
    std::ostringstream text;
    text << std::ifstream(log_).rdbuf();
    return text.str();
}

bool DaemonProcess::wait_said(const std::string& words, int limit_ms) const {
    const UniqueFd watch(::inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
    if (!watch || ::inotify_add_watch(watch.get(), log_.c_str(), IN_MODIFY) < 0)
        throw std::runtime_error(log_ + ": " + std::strerror(errno));
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(limit_ms);
    while (said().find(words) == std::string::npos) {
        const auto left =
            std::chrono::ceil<std::chrono::milliseconds>(end - std::chrono::steady_clock::now());
        if (left.count() <= 0) return false;
        pollfd written{watch.get(), POLLIN, 0};
        ::poll(&written, 1, static_cast<int>(left.count()));
        char events[4096];
        (void)!::read(watch.get(), events, sizeof events);
    }
    return true;
}

}  // namespace atomic4::test
