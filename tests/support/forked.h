// A process that runs a function of the test: another program, as the daemon sees it.
//
// Fork before threads are started. It has the parent's descriptors, so have none of the file open
// that matters. It is killed by the destructor, and with the test.
#pragma once

#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <functional>
#include <stdexcept>
#include <string>

namespace atomic4::test {

class Forked {
  public:
    // body's value is the exit status.
    explicit Forked(const std::function<int()>& body) {
        const pid_t parent = ::getpid();
        pid_ = ::fork();
        if (pid_ < 0) throw std::runtime_error("fork");
        if (pid_ > 0) return;
        ::prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (::getppid() != parent) ::_exit(1);
        int status = 1;
        try {
            status = body();
        } catch (const std::exception& error) {
            const std::string words = std::string(error.what()) + "\n";
            (void)!::write(STDERR_FILENO, words.data(), words.size());
        }
        ::_exit(status);
    }
    ~Forked() {
        if (pid_ <= 0) return;
        ::kill(pid_, SIGKILL);
        wait();
    }
    Forked(const Forked&) = delete;
    Forked& operator=(const Forked&) = delete;

    pid_t pid() const { return pid_; }
    // Its exit status, or 128 + signal.
    int wait() {
        int status = 0;
        while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
        }
        pid_ = -1;
        return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }

  private:
    pid_t pid_ = -1;
};

// A value that the test and the processes that it forks see alike. T: atomics and plain data.
template <class T>
class SharedValue {
  public:
    SharedValue()
        : value_(new(::mmap(nullptr, sizeof(T), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
                            -1, 0)) T()) {}
    ~SharedValue() { ::munmap(value_, sizeof(T)); }
    SharedValue(const SharedValue&) = delete;
    SharedValue& operator=(const SharedValue&) = delete;
    T* operator->() const { return value_; }
    T& operator*() const { return *value_; }

  private:
    T* value_;
};

}  // namespace atomic4::test
