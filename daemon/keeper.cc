#include "daemon/keeper.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstring>
#include <deque>

namespace atomic4 {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr std::array kPassedOn{SIGTERM, SIGINT, SIGHUP};

// The keeper's signals are blocked, and can be read, while this exists.
class Signals {
  public:
    Signals() {
        // A parent that ignored SIGCHLD would have made our children vanish unseen.
        struct sigaction plain{};
        plain.sa_handler = SIG_DFL;
        ::sigaction(SIGCHLD, &plain, &old_child_);
        sigset_t taken;
        ::sigemptyset(&taken);
        for (const int signal : kPassedOn) ::sigaddset(&taken, signal);
        ::sigaddset(&taken, SIGCHLD);
        ::pthread_sigmask(SIG_BLOCK, &taken, &old_mask_);
        fd_.reset(::signalfd(-1, &taken, SFD_CLOEXEC | SFD_NONBLOCK));
    }
    Signals(const Signals&) = delete;
    Signals& operator=(const Signals&) = delete;
    ~Signals() {
        ::pthread_sigmask(SIG_SETMASK, &old_mask_, nullptr);
        ::sigaction(SIGCHLD, &old_child_, nullptr);
    }

    int fd() const { return fd_.get(); }
    // What came, or 0.
    int take() const {
        signalfd_siginfo info{};
        return ::read(fd_.get(), &info, sizeof(info)) == sizeof(info)
                   ? static_cast<int>(info.ssi_signo)
                   : 0;
    }
    // In a child: as before, but that those to be passed on stay blocked.
    void leave_to_worker() {
        fd_.reset();
        sigset_t mask = old_mask_;
        for (const int signal : kPassedOn) ::sigaddset(&mask, signal);
        ::pthread_sigmask(SIG_SETMASK, &mask, nullptr);
        ::sigaction(SIGCHLD, &old_child_, nullptr);
    }

  private:
    sigset_t old_mask_{};
    struct sigaction old_child_{};
    UniqueFd fd_;
};

class Keeper {
  public:
    Keeper(KeeperOptions options, const Worker& worker)
        : options_(std::move(options)), worker_(worker), gate_(std::move(options_.group)) {}

    Result<int> run();

  private:
    Result<> start();
    [[noreturn]] void become_worker(UniqueFd channel, pid_t keeper);
    WorkerEnd serve();
    void handle_signals(WorkerEnd& end);
    void handle_gate(const std::array<pollfd, 3>& polled);
    int poll_timeout() const;
    bool restart_after(const WorkerEnd& end);
    void report(const std::string& words) const {
        if (options_.report) options_.report(words);
    }

    KeeperOptions options_;
    const Worker& worker_;
    Signals signals_;
    std::optional<OpenGate> gate_;
    pid_t pid_ = -1;  // the worker's; -1: none
    unsigned restarts_ = 0;
    bool stopping_ = false;
    bool was_ready_ = false;
    std::optional<steady_clock::time_point> deadline_;  // for a successor to be ready
    std::deque<steady_clock::time_point> deaths_;
};

Result<int> Keeper::run() {
    for (;; ++restarts_) {
        const auto started = start();
        WorkerEnd end = started.has_value() ? serve() : WorkerEnd{};
        if (!started.has_value()) {
            end.exit_status = EXIT_FAILURE;
            end.was_ready = was_ready_;
            end.restarts = restarts_;
            end.words = started.error().message;
        } else if (end.signal == 0 && end.exit_status == 0) {
            return 0;
        } else if (restart_after(end)) {
            report(end.words + "; starting it again");
            continue;
        }
        report(fmt::format("{}; giving up{}", end.words,
                           gate_->held() > 0 ? ": who waits to open a file goes on" : ""));
        if (options_.on_let_through) options_.on_let_through(end);
        gate_.reset();
        if (!started.has_value()) return fail(started.error());
        return end.signal != 0 ? 128 + end.signal : end.exit_status;
    }
}

Result<> Keeper::start() {
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
        return fail(Error::from_errno(errno, "keeper: socketpair"));
    UniqueFd ours(ends[0]), theirs(ends[1]);
    const pid_t keeper = ::getpid();
    const pid_t child = ::fork();
    if (child < 0) return fail(Error::from_errno(errno, "keeper: starting a worker: fork"));
    if (child == 0) {
        ours.reset();
        become_worker(std::move(theirs), keeper);
    }
    pid_ = child;
    deadline_.reset();
    if (restarts_ > 0) deadline_ = steady_clock::now() + options_.patience;
    gate_->connect(std::move(ours), child);
    return {};
}

void Keeper::become_worker(UniqueFd channel, pid_t keeper) {
    // Of the gate only the group stays, to set marks in. Nobody is let through by this.
    UniqueFd group;
    if (gate_->group() >= 0) group.reset(::fcntl(gate_->group(), F_DUPFD_CLOEXEC, 0));
    gate_.reset();
    signals_.leave_to_worker();
    ::prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (::getppid() != keeper) ::raise(SIGTERM);  // it died before it could be followed
    ::_exit(worker_(
        {.opens = GateClient(std::move(channel), std::move(group)), .restarts = restarts_}));
}

// Until the worker's end.
WorkerEnd Keeper::serve() {
    WorkerEnd end;
    end.restarts = restarts_;
    while (pid_ > 0) {
        std::array<pollfd, 3> polled{{
            {.fd = signals_.fd(), .events = POLLIN, .revents = 0},
            {.fd = gate_->channel(), .events = POLLIN, .revents = 0},
            {.fd = gate_->events(), .events = POLLIN, .revents = 0},
        }};
        if (gate_->wants_to_send()) polled[1].events |= POLLOUT;
        const int ready = ::poll(polled.data(), polled.size(), poll_timeout());
        if (ready > 0) handle_gate(polled);
        if (gate_->worker_is_ready()) {
            was_ready_ = true;
            deadline_.reset();
        }
        if (ready > 0 && polled[0].revents != 0) handle_signals(end);
        if (pid_ > 0 && deadline_ && steady_clock::now() >= *deadline_) {
            deadline_.reset();
            end.out_of_time = true;
            ::kill(pid_, SIGKILL);
        }
    }
    // A last look: it may have become ready and died between two looks.
    gate_->disconnect();
    was_ready_ |= gate_->worker_is_ready();
    end.was_ready = was_ready_;
    return end;
}

void Keeper::handle_gate(const std::array<pollfd, 3>& polled) {
    if (polled[1].revents != 0) {
        const auto served = gate_->serve_channel();
        if (!served.has_value()) report(served.error().message);
    }
    if (polled[2].revents != 0) {
        const auto taken = gate_->take_events();
        if (!taken.has_value()) report(taken.error().message);
    }
}

void Keeper::handle_signals(WorkerEnd& end) {
    for (int signal = 0; (signal = signals_.take()) != 0;) {
        if (signal == SIGCHLD || pid_ <= 0) continue;
        stopping_ |= signal != SIGHUP;
        ::kill(pid_, signal);
    }
    int status = 0;
    if (pid_ <= 0 || ::waitpid(pid_, &status, WNOHANG) != pid_) return;
    if (WIFSIGNALED(status)) {
        end.signal = WTERMSIG(status);
        end.words = fmt::format(
            "worker {} {} signal {} ({})", pid_,
            end.out_of_time ? "was not ready in time and was killed by" : "was killed by",
            end.signal, ::strsignal(end.signal));
    } else {
        end.exit_status = WEXITSTATUS(status);
        end.words = fmt::format("worker {} ended with status {}", pid_, end.exit_status);
    }
    pid_ = -1;
}

int Keeper::poll_timeout() const {
    if (!deadline_) return -1;
    const auto left = std::chrono::ceil<milliseconds>(*deadline_ - steady_clock::now());
    return static_cast<int>(std::clamp<int64_t>(left.count(), 0, 1 << 30));
}

bool Keeper::restart_after(const WorkerEnd& end) {
    if (stopping_ || end.out_of_time) return false;
    if (end.signal == 0 && end.exit_status != kRestartStatus) return false;
    const auto now = steady_clock::now();
    deaths_.push_back(now);
    while (!deaths_.empty() && now - deaths_.front() > options_.restart_window) deaths_.pop_front();
    return deaths_.size() <= options_.most_restarts;
}

}  // namespace

Result<int> run_keeper(KeeperOptions options, const Worker& worker) {
    Keeper keeper(std::move(options), worker);
    return keeper.run();
}

}  // namespace atomic4
