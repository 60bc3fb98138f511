// A client of atomic4d: opens files through the daemon and writes them atomically. PROTOCOL.md says
// what an answer means.
//
//     auto client = A4_TRY(Client::connect("/run/atomic4/UUID.sock"));
//     const File file = A4_TRY(client->open(fd, wire::kOpenRead | wire::kOpenWrite));
//     A4_TRY(client->write(file.handle, ByteOffset(0), page));  // durable, all or nothing
//
// Synchronous calls send one request and wait for its answer. submit_* only send, and return the
// request's tag; reap collects the answers, in the order in which they come. Both mix freely. At
// most daemon().outstanding_max requests are in flight: a submit beyond that first waits for an
// answer and keeps it for reap. Answers are kept until they are reaped, however many.
//
// Memory: needs no alignment. Written bytes are copied at the call, so the caller may change them
// after it; what a submit_read fills must stay until its completion is reaped. The exception is
// memory of arena_alloc, which the daemon accesses itself: nothing is copied, and it must be left
// alone until the completion is reaped (otherwise only its own bytes are affected).
//
// Errors: as the daemon answered them, code and reason; EINVAL, EMSGSIZE, ENOMEM: what can't be
// sent. When the daemon closes the connection every request without an answer completes with EIO
// ("in doubt"), when it breaks the protocol with EPROTO; then every call fails so: connect anew.
//
// Threads: one per Client at a time. A forked child must not use its parent's.
#pragma once

#include <chrono>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "base/units.h"
#include "client/arena.h"
#include "client/reply.h"
#include "client/spin_policy.h"
#include "client/wire_format.h"

namespace atomic4 {

struct ClientOptions {
    Bytes arena{16 << 20};                  // 0: none, payloads then travel in packets
    std::chrono::microseconds spin_us{50};  // before sleeping (SpinPolicy); 0: sleep at once
};

// One range of a batch.
struct BatchPart {
    uint64_t handle = 0;
    ByteOffset offset;
    std::span<const std::byte> data;
};

// The answer to a submitted request.
struct Completion {
    uint64_t tag = 0;
    int code = 0;                      // 0, or an errno value
    std::string reason;                // of an error, in words
    Written written;                   // writes and batches
    Bytes length;                      // bytes written or read
    std::optional<FileStatus> status;  // submit_statx
};

class Client {
  public:
    // ENAMETOOLONG: the path is too long for a socket; those of socket(2) and connect(2).
    static Result<std::unique_ptr<Client>> connect(const std::string& path,
                                                   const ClientOptions& options = {});
    // The same on a connected AF_UNIX SOCK_SEQPACKET socket.
    static Result<std::unique_ptr<Client>> from_socket(UniqueFd socket,
                                                       const ClientOptions& options = {});
    Client(const Client&) = delete;
    Client& operator=(const Client&) = delete;

    const DaemonInfo& daemon() const { return daemon_; }

    // flags: wire::kOpen*. Mounted volumes: the descriptor proves what the caller may do; it is
    // passed, the caller keeps its own. Owned volumes: an absolute path inside the volume.
    Result<File> open(int fd, uint32_t flags, wire::WireEngine engine = wire::WireEngine::Auto);
    Result<File> open(std::string_view path, uint32_t flags,
                      wire::WireEngine engine = wire::WireEngine::Auto);

    Result<Written> write(uint64_t handle, ByteOffset offset, std::span<const std::byte> data);
    // Neither atomic nor durable before flush.
    Result<> write_plain(uint64_t handle, ByteOffset offset, std::span<const std::byte> data);
    // All ranges become durable together or not at all.
    Result<Written> write_batch(std::span<const BatchPart> parts);
    // The bytes read: fewer than asked for at the end of the file.
    Result<Bytes> read(uint64_t handle, ByteOffset offset, std::span<std::byte> into);
    Result<FileStatus> statx(uint64_t handle);
    Result<> flush(uint64_t handle);
    Result<> close(uint64_t handle);
    Result<std::string> stats(wire::StatsFormat format = wire::StatsFormat::Json);
    Result<> ping();
    // Root only: everything is retired, new writes wait until thaw.
    Result<> freeze();
    Result<> thaw();

    Result<uint64_t> submit_write(uint64_t handle, ByteOffset offset,
                                  std::span<const std::byte> data);
    Result<uint64_t> submit_write_plain(uint64_t handle, ByteOffset offset,
                                        std::span<const std::byte> data);
    Result<uint64_t> submit_batch(std::span<const BatchPart> parts);
    Result<uint64_t> submit_read(uint64_t handle, ByteOffset offset, std::span<std::byte> into);
    Result<uint64_t> submit_statx(uint64_t handle);
    Result<uint64_t> submit_flush(uint64_t handle);

    // Up to max completions: those that are there, or, if none is and requests are in flight, the
    // first that comes within the timeout (negative: however long it takes).
    std::vector<Completion> reap(size_t max,
                                 std::chrono::milliseconds timeout = std::chrono::milliseconds(-1));
    // Readable when an answer has come. Other calls may have received answers meanwhile: before
    // sleeping on it, reap with timeout 0 until nothing comes.
    int fd() const { return socket_.get(); }
    size_t in_flight() const { return in_flight_; }

    // Memory that the daemon sees, for writes and reads without a copy. ENOMEM: the arena is full;
    // EOPNOTSUPP: there is none. Page-aligned; goes with the client.
    Result<std::span<std::byte>> arena_alloc(Bytes length);
    void arena_free(std::span<const std::byte> memory);

  private:
    struct Place {  // of a payload
        wire::Source source = wire::Source::Inline;
        uint64_t arena_offset = 0;
        bool ours = false;  // allocated for this request
    };
    struct Outgoing {
        wire::Type type = wire::Type::Ping;
        std::span<const std::byte> body;
        std::span<const std::byte> payload;  // inline
        int fd = -1;                         // passed with it
        uint64_t length = 0;                 // bytes to write or read
        std::span<std::byte> into;           // READ
        Place place;
    };
    struct Pending {
        uint64_t tag = 0;  // 0: a free entry
        ExpectedReply expected;
        std::span<std::byte> into;
        Place place;
    };
    struct Done {
        uint64_t tag = 0;
        uint64_t length = 0;
        Reply reply;
    };

    Client(UniqueFd socket, const ClientOptions& options);
    Result<> greet();
    Result<> share_arena(Bytes size);

    Result<uint64_t> submit(const Outgoing& message);
    Result<uint64_t> submit_handle(wire::Type type, uint64_t handle);
    Result<uint64_t> submit_write(uint64_t handle, ByteOffset offset,
                                  std::span<const std::byte> data, uint32_t flags);
    Result<> transmit(const Outgoing& message, uint64_t tag);
    Result<Reply> call(const Outgoing& message);
    Result<Reply> wait(Result<uint64_t> tag);
    Result<Place> find_place(std::span<const std::byte> memory);
    Result<Place> find_room(uint64_t length);
    void release(const Place& place);

    bool receive(int flags);
    Result<> answered(std::span<const std::byte> packet);
    std::optional<Done> take(uint64_t tag);
    void wait_for_answer(std::chrono::milliseconds timeout);
    Result<> check_alive() const;
    void lose_connection();
    void break_connection(int code, std::string_view what);

    UniqueFd socket_;
    SpinPolicy spin_;
    DaemonInfo daemon_;
    std::unique_ptr<ClientArena> arena_;
    std::optional<Error> broken_;   // why every further call fails
    std::vector<Pending> pending_;  // found by the lowest byte of the tag
    std::vector<uint8_t> unused_;   // free entries of it
    size_t in_flight_ = 0;
    uint64_t sequence_ = 0;  // the rest of the tag
    std::deque<Done> done_;  // received, not yet reaped
    std::unique_ptr<std::byte[]> packet_;
};

}  // namespace atomic4
