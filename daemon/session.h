// One client's connection: receives requests, carries them out on the target, answers.
//
// Bounded: a client that has kOutstandingMax requests without a received answer, or more than a few
// MiB of answers that it doesn't read, is not listened to until it reads. Nobody else notices. The
// sum over all clients is bounded too (request_memory.h).
//
// Every message goes through wire::decode and nothing else looks at packets. A packet that can't be
// answered, or is out of turn, ends the connection after a reply that says why.
//
// Threads: the event loop's. A session lives as long as something that it started runs.
#pragma once

#include <array>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "client/message.h"
#include "daemon/arena_map.h"
#include "daemon/request_memory.h"
#include "daemon/stats.h"
#include "daemon/volume_service.h"

namespace atomic4 {

class Session : public std::enable_shared_from_this<Session> {
  public:
    struct Around {
        EventLoop& loop;
        VolumeService& volume;
        Stats& stats;
        std::shared_ptr<RequestMemory> memory;  // what runs may outlive the server
        Engine engine = Engine::Auto;           // of files that don't ask for one
        // The STATS texts.
        std::function<std::string(wire::StatsFormat)> stats_text;
        // Something was refused: the errno value, and in words who, which file, why.
        std::function<void(const Peer&, int, const std::string&)> refused;
        std::function<void(const Session*)> gone;
    };

    Session(Around around, UniqueFd socket, Peer peer);
    ~Session();
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;

    void start() { receive(); }
    // No more requests: what runs is finished, its answers are sent, and the rest of what has come
    // is refused with ESHUTDOWN. Then the connection is closed.
    void end();
    // At once; answers are lost.
    void cut_off() { disconnect(); }
    const Peer& peer() const { return peer_; }
    size_t handles() const { return handles_.size(); }
    // Requests are under way.
    size_t outstanding() const { return outstanding_; }

  private:
    struct Handle {
        FileRef file;
        uint32_t flags = 0;
        Engine engine = Engine::Auto;
    };
    using Clock = std::chrono::steady_clock;
    // What an answer needs to know of its request.
    struct Asked {
        wire::Type type;
        uint64_t tag;
        Clock::time_point since;
        uint64_t handle = 0;  // 0: it is about none
        size_t memory = 0;    // taken for it, and given back when the answer is sent
    };
    struct Outgoing {
        std::vector<std::byte> packet;
        size_t memory;
    };

    void receive();
    void received(int result);
    std::vector<UniqueFd> take_descriptors();
    void handle(const Asked& asked, const wire::Request& request,
                std::vector<UniqueFd> descriptors);
    void handle(const Asked& asked, const wire::Hello& body);
    void handle(const Asked& asked, const wire::Arena& body, UniqueFd descriptor);
    void handle(const Asked& asked, const wire::Open& body, UniqueFd descriptor);
    void handle(const Asked& asked, const wire::Write& body);
    void handle(const Asked& asked, const wire::Batch& body);
    void handle(const Asked& asked, const wire::Read& body);
    void handle(const Asked& asked, const wire::Statx& body);
    void handle(const Asked& asked, const wire::Flush& body);
    void handle(const Asked& asked, const wire::Close& body);
    void handle(const Asked& asked, const wire::Stats& body);
    void handle_freeze(const Asked& asked, bool freeze);

    Result<Handle*> find(uint64_t number);
    Result<FileRef> writable(uint64_t number, bool plain, Engine* engine);
    void submit(const Asked& asked, std::unique_ptr<WriteOp> op, std::shared_ptr<void> memory);
    void answer(const Asked& asked, std::span<const std::byte> body,
                std::span<const std::byte> tail = {});
    void answer_done(const Asked& asked, const Result<>& done) {
        done ? answer(asked, {}) : refuse(asked, done.error());
    }
    void refuse(const Asked& asked, const Error& error);
    void report(const Asked& asked, const Error& error) const;
    void enqueue(const Asked& asked, std::vector<std::byte> packet);
    void take_memory(Asked& asked, size_t bytes);
    void give_memory(size_t bytes);
    void send_next();
    void send_now();
    void forget_first();
    void disconnect();

    Around around_;
    UniqueFd socket_;
    Peer peer_;
    wire::Connection connection_;
    std::shared_ptr<ArenaMap> arena_;
    std::map<uint64_t, Handle> handles_;
    uint64_t next_handle_ = 1;
    size_t opening_ = 0;

    std::unique_ptr<std::byte[]> packet_;
    iovec receive_part_{};
    msghdr receive_message_{};
    alignas(cmsghdr) std::array<char, 256> control_{};
    bool receiving_ = false;

    std::deque<Outgoing> outgoing_;
    size_t outgoing_bytes_ = 0;
    iovec send_part_{};
    msghdr send_message_{};
    bool sending_ = false;
    size_t outstanding_ = 0;  // received, and the answer not sent
    size_t memory_ = 0;       // taken by these
    bool stopping_ = false;   // end() was called: nothing more is begun
    bool ending_ = false;     // nothing more is received
    bool gone_ = false;       // nothing more is sent either
};

}  // namespace atomic4
