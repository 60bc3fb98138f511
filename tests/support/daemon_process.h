// The real atomic4d as a child of the test: started, awaited by its readiness, killed.
//
// It is a keeper and its worker (daemon/keeper.h). Whatever becomes of the test, they end: the
// destructor kills both, and the keeper gets SIGTERM when the thread that started it ends. So start
// and restart it in the test's main thread.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "support/command.h"

namespace atomic4::test {

// As a service manager starts it.
struct ServiceManager {
    int listener = -1;                 // passed as LISTEN_FDS, instead of --socket
    std::vector<std::string> setpriv;  // more options of setpriv(1)
};

class DaemonProcess {
  public:
    // Runs atomic4d, which is built beside the test: TARGET --foreground --socket SOCKET MORE...
    // and waits for READY=1 on NOTIFY_SOCKET. Throws with its words if it ends before, or after a
    // minute.
    DaemonProcess(const std::string& target, std::vector<std::string> more = {},
                  ServiceManager manager = {});
    ~DaemonProcess();
    DaemonProcess(const DaemonProcess&) = delete;
    DaemonProcess& operator=(const DaemonProcess&) = delete;

    const std::string& socket() const { return socket_; }
    pid_t keeper() const { return keeper_; }
    // Throws if there is none at the moment.
    pid_t worker() const;
    // So far, of both together.
    double peak_mib() const;

    // SIGKILL to the worker. Its end has begun when this returns; wait_ready() for the successor.
    void kill_worker();
    // Both at once: the keeper can neither pass on a signal nor start another worker.
    void kill_all();
    // After kill_all() or an end of its own: another one, awaited.
    void start();
    // The next READY=1 that has not been waited for. Throws if the keeper ends instead.
    void wait_ready();

    // Throws if it doesn't run: so do kill_all() and stop().
    void signal_keeper(int signal) const;
    // SIGTERM, and its exit status.
    int stop();
    // Waits for its end: exit status, or 128 + signal. -1: it still runs after limit_ms.
    int wait_exit(int limit_ms = 60'000);
    bool running() const { return keeper_ > 0; }

    // All that it has written so far, over restarts.
    std::string said() const;
    // Until it has written these words. False: it hasn't within limit_ms.
    bool wait_said(const std::string& words, int limit_ms) const;

  private:
    void spawn();
    std::vector<pid_t> workers() const;  // none for a moment between two
    bool readable_before_end(int fd) const;

    TempDir temp_;
    std::string target_;
    std::vector<std::string> more_;
    ServiceManager manager_;
    std::string socket_;
    std::string log_;
    UniqueFd notify_;
    UniqueFd process_;
    pid_t keeper_ = -1;
};

}  // namespace atomic4::test
