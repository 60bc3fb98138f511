// atomic4d as a child process of a benchmark.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "bench/bench.h"

namespace atomic4::bench {

// Why there is no daemon to measure.
std::optional<std::string> why_no_daemon();

class Daemon {
  public:
    // Starts `atomic4d TARGET --socket SOCKET MORE...` and waits until it reports readiness to
    // $NOTIFY_SOCKET. Throws with its words if it ends before. The socket is made beside `scratch`,
    // a path prefix that nobody else uses.
    Daemon(const std::string& target, const std::string& scratch,
           const std::vector<std::string>& more = {});
    ~Daemon();
    Daemon(const Daemon&) = delete;
    Daemon& operator=(const Daemon&) = delete;

    const std::string& socket() const { return socket_; }
    // So far, of it and its children together.
    double peak_mib() const;
    void stop();  // SIGTERM; throws unless it exits 0

  private:
    std::string said() const;

    std::string socket_;
    std::string output_;
    pid_t pid_ = -1;
};

}  // namespace atomic4::bench
