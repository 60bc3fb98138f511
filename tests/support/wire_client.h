// The client's end of the socket protocol without any manners: sends what it is told to, whole
// packets or broken ones, with any descriptors, and shows what comes back.
#pragma once

#include <functional>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "support/wire_packets.h"

namespace atomic4::test {

// Whom the kernel takes a caller for.
struct Identity {
    uid_t uid = 0;
    gid_t gid = 0;
    std::vector<gid_t> groups;
};
// Runs it in a thread that is this user to the kernel, without any capability unless it is root.
void as_user(const Identity& who, const std::function<void()>& run);
// Opened by that user: the descriptor, or -errno.
struct OpenedFile {
    UniqueFd fd;
    int error = 0;
};
OpenedFile open_as(const Identity& who, const std::string& path, int flags);

struct Answer {
    uint16_t type = 0;  // the request's, without the reply bit
    uint64_t tag = 0;
    uint32_t error = 0;
    std::string reason;
    Packet body;
};

class WireClient {
  public:
    // Connected, by `who`; not greeted. Throws if it can't be.
    explicit WireClient(const std::string& socket, const Identity& who = {});

    int fd() const { return socket_.get(); }
    // False: the daemon has closed the connection. Waits for room if need be.
    bool send(const Packet& packet, const std::vector<int>& descriptors = {}) const;
    // Only if there is room for it.
    bool send_now(const Packet& packet, const std::vector<int>& descriptors = {}) const;
    // The next answer; nothing if the connection ends. Aborts where nothing comes at all, or what
    // isn't a reply.
    std::optional<Answer> receive() const;
    // Waits until the daemon closes; answers before that are dropped. False: it doesn't.
    bool ends() const;
    void close() { socket_.reset(); }
    void half_close() const;

    // Sends and returns the answer to it; error EPIPE (32): the connection ended.
    Answer ask(wire::Type type, std::span<const std::byte> body = {},
               std::span<const std::byte> tail = {}, const std::vector<int>& descriptors = {});
    Answer hello();
    // These two pass a descriptor that was lost once more: those that were refused are closed a
    // moment later, and few at a time (EBUSY).
    Answer arena(int memfd, uint64_t size);
    // fd < 0: by path.
    Answer open(int fd, uint32_t flags, wire::WireEngine engine = wire::WireEngine::Auto,
                std::string_view path = {});
    // The handle of an OPEN that must succeed.
    uint64_t must_open(int fd, uint32_t flags, std::string_view path = {});
    Answer write(uint64_t handle, uint64_t offset, std::span<const std::byte> data,
                 uint32_t flags = 0);
    Answer read(uint64_t handle, uint64_t offset, uint64_t length);
    Answer with_handle(wire::Type type, uint64_t handle);

  private:
    Answer pass(wire::Type type, std::span<const std::byte> body, std::span<const std::byte> tail,
                const std::vector<int>& descriptors);

    UniqueFd socket_;
    uint64_t tag_ = 0;
};

// Requests, ready to be sent.
Packet write_packet(uint64_t tag, uint64_t handle, uint64_t offset, std::span<const std::byte> data,
                    uint32_t flags = 0);
Packet arena_write_packet(uint64_t tag, uint64_t handle, uint64_t offset, uint64_t length,
                          uint64_t arena_offset, uint32_t flags = 0);
Packet read_packet(uint64_t tag, uint64_t handle, uint64_t offset, uint64_t length);

}  // namespace atomic4::test
