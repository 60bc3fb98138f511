// A daemon in memory, at the other end of a socket: one file of bytes, decoded and answered with
// the same code as the real one's. What it does with a request can be replaced, to reorder answers,
// keep them back, lie or die.
#pragma once

#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "base/unique_fd.h"
#include "support/wire_packets.h"

namespace atomic4::test {

using Packets = std::vector<Packet>;

class FakeDaemon {
  public:
    // The packets that answer a request, maybe none; nothing: the connection is closed. Called in
    // the daemon's thread.
    using Answer = std::optional<Packets>;
    using Hook = std::function<Answer(const wire::Request&)>;

    struct Options {
        wire::TargetKind target = wire::TargetKind::Mounted;
        uint32_t outstanding_max = wire::kOutstandingMax;
    };

    // At the other end of client_end().
    FakeDaemon() : FakeDaemon(Options{}) {}
    explicit FakeDaemon(Options options);
    // Listening at a path, for one connection.
    explicit FakeDaemon(const std::string& path, Options options);
    FakeDaemon(const FakeDaemon&) = delete;
    FakeDaemon& operator=(const FakeDaemon&) = delete;
    ~FakeDaemon();

    UniqueFd client_end() { return std::move(client_end_); }
    // For requests of this type from now on; an empty hook: honest again.
    void on(wire::Type type, Hook hook);
    // What an honest daemon answers.
    Packet honest(const wire::Request& request);

    // What came so far.
    std::vector<std::byte> file();
    std::map<wire::Type, int> requests();
    int descriptors();      // passed by OPEN
    int inline_payloads();  // writes whose bytes were in the packet

  private:
    void serve(int socket);
    bool handle(int socket, std::span<const std::byte> packet, std::vector<UniqueFd> fds);
    void store(uint64_t offset, uint64_t length, const wire::Payload& payload);
    Packet read(uint64_t tag, const wire::Read& request);
    Packet statx(uint64_t tag);

    const Options options_;
    UniqueFd client_end_;
    UniqueFd socket_;   // connected, or listening
    std::mutex mutex_;  // of all below
    wire::Connection connection_;
    std::byte* arena_ = nullptr;
    std::map<wire::Type, Hook> hooks_;
    std::map<wire::Type, int> requests_;
    std::vector<std::byte> file_;
    std::set<uint64_t> handles_;
    uint64_t next_handle_ = 1;
    int descriptors_ = 0;
    int inline_payloads_ = 0;
    std::thread thread_;
};

}  // namespace atomic4::test
