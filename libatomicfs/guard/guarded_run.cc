#include "guard/guarded_run.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdlib>

#include "base/held_signals.h"
#include "guard/fuse_view.h"

namespace atomic4 {

namespace {

// A parent that ignored SIGCHLD would have our child vanish, and its exit status with it.
class ChildrenAreWaitedFor {
  public:
    ChildrenAreWaitedFor() {
        struct sigaction plain{};
        plain.sa_handler = SIG_DFL;
        ::sigaction(SIGCHLD, &plain, &before_);
    }
    ~ChildrenAreWaitedFor() { ::sigaction(SIGCHLD, &before_, nullptr); }
    ChildrenAreWaitedFor(const ChildrenAreWaitedFor&) = delete;
    ChildrenAreWaitedFor& operator=(const ChildrenAreWaitedFor&) = delete;

  private:
    struct sigaction before_{};
};

// What went wrong in the child before it was the tool.
struct Failure {
    int code = 0;
    enum Step : int { Namespace, Cover, Program } step = Namespace;
};

struct Child {
    int mount;       // to be moved
    int server_end;  // of the view
    const char* path;
    const char* name;  // of the same, as it was given
    bool quiet;
    char* const* arguments;
    pid_t parent;
    int failures;  // a pipe that exec closes
    sigset_t signals;
};

// After fork() in a process with threads: nothing but system calls.
[[noreturn]] void become_the_tool(const Child& it) {
    Failure failure;
    const auto give_up = [&](Failure::Step step) {
        failure = {errno, step};
        (void)!::write(it.failures, &failure, sizeof failure);
        ::_exit(127);
    };
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != it.parent) ::_exit(127);
    ::close(it.server_end);
    // What others unmount goes here, too, as far as their mounts are shared: nothing is kept busy.
    if (::unshare(CLONE_NEWNS) != 0 ||
        ::mount(nullptr, "/", nullptr, MS_REC | MS_SLAVE, nullptr) != 0)
        give_up(Failure::Namespace);
    if (::move_mount(it.mount, "", AT_FDCWD, it.path, MOVE_MOUNT_F_EMPTY_PATH) != 0)
        give_up(Failure::Cover);
    // A name that leads to the device by another way would lead past the view.
    struct stat view{};
    struct stat named{};
    if (::stat(it.path, &view) != 0 || ::stat(it.name, &named) != 0) give_up(Failure::Cover);
    if (view.st_dev != named.st_dev || view.st_ino != named.st_ino) {
        errno = ELOOP;
        give_up(Failure::Cover);
    }
    const int nowhere = it.quiet ? ::open("/dev/null", O_WRONLY | O_CLOEXEC) : -1;
    if (nowhere >= 0) {
        ::dup2(nowhere, STDOUT_FILENO);
        ::dup2(nowhere, STDERR_FILENO);
    }
    ::pthread_sigmask(SIG_SETMASK, &it.signals, nullptr);
    ::execvp(it.arguments[0], it.arguments);
    give_up(Failure::Program);
    ::_exit(127);
}

Error explain(const Failure& failure, const std::string& name, const std::string& path,
              const std::string& program) {
    switch (failure.step) {
        case Failure::Namespace:
            return Error::from_errno(failure.code, "guarded view: a mount namespace of its own");
        case Failure::Cover:
            if (failure.code == ELOOP) {
                return {ELOOP, fmt::format("{} leads past a guarded view: give the real path, {}",
                                           name, path)};
            }
            return Error::from_errno(failure.code,
                                     fmt::format("guarded view: can't be laid over {}", path));
        case Failure::Program:
            break;
    }
    return Error::from_errno(failure.code, program);
}

// The tool, to be killed by the view's thread: known only once it has been forked.
class Tool {
  public:
    bool is(pid_t pid) {
        process_ = UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
        known_.store(true);
        if (refused_.load()) kill(SIGKILL);
        return static_cast<bool>(process_);
    }
    void kill(int signal) const { ::syscall(SYS_pidfd_send_signal, process_.get(), signal, 0, 0); }
    void refused() {
        refused_.store(true);
        if (known_.load()) kill(SIGKILL);
    }
    bool was_refused() const { return refused_.load(); }
    int process() const { return process_.get(); }

  private:
    UniqueFd process_;
    std::atomic<bool> known_{false};
    std::atomic<bool> refused_{false};
};

Result<GuardedExit> watch(pid_t child, const HeldSignals& signals, const Tool& tool) {
    GuardedExit result;
    std::array<pollfd, 2> events{{{tool.process(), POLLIN, 0}, {signals.fd(), POLLIN, 0}}};
    for (;;) {
        if (::poll(events.data(), events.size(), -1) < 0) continue;
        signalfd_siginfo info;
        while (signals.take(info)) {
            result.interrupted = true;
            // From the terminal the tool has it already.
            if (info.ssi_code != SI_KERNEL) tool.kill(static_cast<int>(info.ssi_signo));
        }
        if (events[0].revents != 0) break;
    }
    int status = 0;
    while (::waitpid(child, &status, 0) < 0) {
        if (errno != EINTR) return fail(Error::from_errno(errno, "waitpid"));
    }
    if (WIFSIGNALED(status)) result.signal = WTERMSIG(status);
    if (WIFEXITED(status)) result.status = WEXITSTATUS(status);
    return result;
}

}  // namespace

Result<GuardedExit> run_guarded(GuardedDevice& device, const std::string& path,
                                const std::vector<std::string>& arguments, Output output) {
    char* real = ::realpath(path.c_str(), nullptr);
    if (real == nullptr) return fail(Error::from_errno(errno, path));
    const std::string covered = real;
    std::free(real);

    const HeldSignals signals;
    const ChildrenAreWaitedFor waited_for;
    Tool tool;
    const auto view = A4_TRY(FuseView::start(device, [&tool] { tool.refused(); }));
    std::array<int, 2> ends{};
    if (::pipe2(ends.data(), O_CLOEXEC) != 0) return fail(Error::from_errno(errno, "pipe"));
    UniqueFd reading(ends[0]);
    UniqueFd writing(ends[1]);

    std::vector<char*> argv;
    for (const std::string& argument : arguments)
        argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    const Child child{view->mount(),
                      view->server_end(),
                      covered.c_str(),
                      path.c_str(),
                      output == Output::Nowhere,
                      argv.data(),
                      ::getpid(),
                      writing.get(),
                      signals.for_a_program()};
    const pid_t pid = ::fork();
    if (pid < 0) return fail(Error::from_errno(errno, "fork"));
    if (pid == 0) become_the_tool(child);
    if (!tool.is(pid)) {
        const int code = errno;
        ::kill(pid, SIGKILL);
        while (::waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
        }
        return fail(Error::from_errno(code, "pidfd_open"));
    }
    writing.reset();
    Failure failure;
    const bool failed = ::read(reading.get(), &failure, sizeof failure) == sizeof failure;
    auto result = watch(pid, signals, tool);
    view->wait();
    if (failed) return fail(explain(failure, path, covered, arguments.front()));
    if (result) result->refused = tool.was_refused();
    return result;
}

}  // namespace atomic4
