#include "support/other_process.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>

namespace atomic4::test {
namespace {

struct State {
    int fd = -1;
    void* mapped = nullptr;
};

bool do_step(const char* path, char step, State& state) {
    switch (step) {
        case 'r':
            return (state.fd = ::open(path, O_RDONLY)) >= 0;
        case 'w':
            return (state.fd = ::open(path, O_RDWR)) >= 0;
        case 'p':
            return (state.fd = ::open(path, O_PATH)) >= 0;
        case 't':
            return (state.fd = ::open(path, O_RDONLY | O_TRUNC)) >= 0;
        case 'm':
            state.mapped = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, state.fd, 0);
            return state.mapped != MAP_FAILED;
        case 'u':
            return ::munmap(state.mapped, 4096) == 0;
        case 'c':
            return ::close(state.fd) == 0;
        case 's':
            return ::truncate(path, 32768) == 0;
        case 'x':
            ::execl(path, path, nullptr);
            return false;  // it is no program; but it was opened
        default:
            std::abort();
    }
}

[[noreturn]] void obey(const char* path, int orders, int answers) {
    State state;
    for (char step = 0; ::read(orders, &step, 1) == 1;) {
        const char answer = do_step(path, step, state) ? '+' : '-';
        if (::write(answers, &answer, 1) != 1) break;
    }
    ::_exit(0);
}

}  // namespace

bool readable(int fd, int timeout_ms) {
    pollfd polled{.fd = fd, .events = POLLIN, .revents = 0};
    return ::poll(&polled, 1, timeout_ms) == 1;
}

OtherProcess::OtherProcess(const std::string& path) {
    int orders[2], answers[2];
    if (::pipe2(orders, O_CLOEXEC) != 0 || ::pipe2(answers, O_CLOEXEC) != 0) std::abort();
    pid_ = ::fork();
    if (pid_ == 0) {
        // A copy of a fanotify group, for one, would keep openers waiting.
        if (::dup2(answers[1], STDOUT_FILENO) < 0 || ::dup2(orders[0], STDIN_FILENO) < 0 ||
            ::close_range(3, ~0U, 0) != 0)
            ::_exit(1);
        obey(path.c_str(), STDIN_FILENO, STDOUT_FILENO);
    }
    ::close(orders[0]);
    ::close(answers[1]);
    orders_.reset(orders[1]);
    answers_.reset(answers[0]);
}

void OtherProcess::begin(char step) {
    if (::write(orders_.get(), &step, 1) != 1) std::abort();
}

char OtherProcess::result() {
    char answer = '?';
    if (!readable(answers_.get(), kPatienceMs)) return '?';
    return ::read(answers_.get(), &answer, 1) == 1 ? answer : '?';
}

void OtherProcess::kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = -1;
}

}  // namespace atomic4::test
