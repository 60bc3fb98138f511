// atomic4d as a child process of a benchmark, and as much of a client as a benchmark needs.
#pragma once

#include <sys/types.h>

#include <optional>
#include <span>
#include <string>

#include "base/unique_fd.h"
#include "bench/bench.h"
#include "client/wire_format.h"

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

struct Written {
    wire::WireEngine engine;
    wire::AckMode ack_mode;
};

// One connection with one open file, one request at a time. Throws with the daemon's reason.
class DaemonSession {
  public:
    enum class Waiting { Sleep, Spin };
    // Spin: for 50 us, before sleeping.
    explicit DaemonSession(const std::string& socket, Waiting waiting = Waiting::Sleep);

    // Mounted targets: fd proves what the caller may do. Owned ones: by the path in the volume.
    void open(int fd, uint32_t flags, wire::WireEngine engine = wire::WireEngine::Auto);
    void open(const std::string& path, uint32_t flags,
              wire::WireEngine engine = wire::WireEngine::Auto);
    // Inline, or by way of the arena if it is longer than a packet takes.
    Written write(uint64_t offset, std::span<const std::byte> data);
    void statx();

  private:
    // The reply's body, in packet_, until the next exchange.
    std::span<const std::byte> exchange(wire::Type type, std::span<const std::byte> body,
                                        std::span<const std::byte> tail, int pass_fd);
    void send(std::span<const std::byte> body, std::span<const std::byte> tail,
              std::span<const std::byte> header, int pass_fd);
    void ensure_arena(uint64_t size);

    UniqueFd socket_;
    Waiting waiting_;
    uint64_t handle_ = 0;
    uint64_t tag_ = 0;
    std::span<std::byte> arena_;
    std::vector<std::byte> packet_;
};

// The next packet. Spins for so long before it sleeps. Throws at the end of the connection.
size_t receive_packet(int socket, std::span<std::byte> into, double spin_seconds);

}  // namespace atomic4::bench
