#include "support/wire_client.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <stdexcept>
#include <thread>

#include "support/other_process.h"

namespace atomic4::test {
namespace {

[[noreturn]] void give_up(const char* what) {
    fmt::print(stderr, "wire client: {}\n", what);
    std::abort();
}

bool send_with(int socket, const Packet& packet, const std::vector<int>& descriptors, int flags) {
    iovec part{const_cast<std::byte*>(packet.data()), packet.size()};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    std::vector<std::byte> control;
    if (!descriptors.empty()) {
        const size_t bytes = descriptors.size() * sizeof(int);
        control.resize(CMSG_SPACE(bytes));
        message.msg_control = control.data();
        message.msg_controllen = control.size();
        cmsghdr* const head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(bytes);
        std::memcpy(CMSG_DATA(head), descriptors.data(), bytes);
    }
    return ::sendmsg(socket, &message, flags | MSG_NOSIGNAL) == static_cast<ssize_t>(packet.size());
}

}  // namespace

void as_user(const Identity& who, const std::function<void()>& run) {
    std::thread([&] {
        // The system calls themselves change one thread; the C library's wrappers change all.
        if (who.uid != 0 && (::syscall(SYS_setgroups, who.groups.size(), who.groups.data()) != 0 ||
                             ::syscall(SYS_setresgid, who.gid, who.gid, who.gid) != 0 ||
                             ::syscall(SYS_setresuid, who.uid, who.uid, who.uid) != 0))
            give_up("becoming another user");
        run();
    }).join();
}

OpenedFile open_as(const Identity& who, const std::string& path, int flags) {
    OpenedFile opened;
    as_user(who, [&] {
        opened.fd.reset(::open(path.c_str(), flags | O_CLOEXEC, 0600));
        opened.error = opened.fd ? 0 : errno;
    });
    return opened;
}

WireClient::WireClient(const std::string& socket, const Identity& who) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    socket.copy(address.sun_path, sizeof address.sun_path - 1);
    int error = 0;
    as_user(who, [&] {
        socket_.reset(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
        if (!socket_ || ::connect(socket_.get(), reinterpret_cast<const sockaddr*>(&address),
                                  sizeof address) != 0)
            error = errno;
    });
    if (error != 0) throw std::runtime_error(socket + ": " + std::strerror(error));
}

bool WireClient::send(const Packet& packet, const std::vector<int>& descriptors) const {
    return send_with(socket_.get(), packet, descriptors, 0);
}

bool WireClient::send_now(const Packet& packet, const std::vector<int>& descriptors) const {
    return send_with(socket_.get(), packet, descriptors, MSG_DONTWAIT);
}

std::optional<Answer> WireClient::receive() const {
    if (!readable(socket_.get(), kPatienceMs)) give_up("no answer comes");
    Packet packet(wire::kPacketMax + 1);
    const ssize_t got = ::recv(socket_.get(), packet.data(), packet.size(), 0);
    if (got <= 0) return std::nullopt;
    packet.resize(static_cast<size_t>(got));
    wire::ReplyHeader header;
    if (packet.size() < sizeof header) give_up("an answer without a header");
    std::memcpy(&header, packet.data(), sizeof header);
    Answer answer;
    answer.type = static_cast<uint16_t>(header.type & ~wire::kReplyBit);
    answer.tag = header.tag;
    answer.error = header.error;
    answer.body.assign(packet.begin() + sizeof header, packet.end());
    if ((header.type & wire::kReplyBit) == 0 || header.length != packet.size() ||
        (answer.error == 0 && header.reason_length != 0) ||
        (answer.error != 0 &&
         (header.reason_length != answer.body.size() || header.reason_length == 0 ||
          !wire::is_wire_error(static_cast<int>(answer.error)))))
        give_up("an answer that the protocol doesn't allow");
    if (answer.error != 0)
        answer.reason.assign(reinterpret_cast<const char*>(answer.body.data()), answer.body.size());
    return answer;
}

bool WireClient::ends() const {
    for (std::byte any[64]; readable(socket_.get(), kPatienceMs);) {
        if (::recv(socket_.get(), any, sizeof any, 0) <= 0) return true;
    }
    return false;
}

void WireClient::half_close() const {
    ::shutdown(socket_.get(), SHUT_WR);
}

Answer WireClient::ask(wire::Type type, std::span<const std::byte> body,
                       std::span<const std::byte> tail, const std::vector<int>& descriptors) {
    const uint64_t tag = ++tag_;
    Answer ended;
    ended.error = EPIPE;
    if (!send(request_packet(type, tag, body, tail), descriptors)) return ended;
    for (;;) {
        auto answer = receive();
        if (!answer) return ended;
        if (answer->tag == tag) return std::move(*answer);
    }
}

Answer WireClient::hello() {
    wire::HelloRequest body{};
    body.magic = wire::kMagic;
    body.version_min = wire::kVersion;
    body.version_max = wire::kVersion;
    return ask(wire::Type::Hello, bytes_of(body));
}

Answer WireClient::pass(wire::Type type, std::span<const std::byte> body,
                        std::span<const std::byte> tail, const std::vector<int>& descriptors) {
    constexpr int kTries = 100'000;
    Answer answer = ask(type, body, tail, descriptors);
    for (int i = 0; i < kTries && answer.reason.find("was lost") != std::string::npos; ++i)
        answer = ask(type, body, tail, descriptors);
    return answer;
}

Answer WireClient::arena(int memfd, uint64_t size) {
    wire::ArenaRequest body{};
    body.size = size;
    return pass(wire::Type::Arena, bytes_of(body), {}, {memfd});
}

Answer WireClient::open(int fd, uint32_t flags, wire::WireEngine engine, std::string_view path) {
    wire::OpenRequest body{};
    body.flags = flags;
    body.engine = static_cast<uint32_t>(engine);
    body.path_length = static_cast<uint32_t>(path.size());
    std::vector<int> descriptors;
    if (fd >= 0) descriptors.push_back(fd);
    return pass(wire::Type::Open, bytes_of(body), bytes_of(path), descriptors);
}

uint64_t WireClient::must_open(int fd, uint32_t flags, std::string_view path) {
    const Answer answer = open(fd, flags, wire::WireEngine::Auto, path);
    if (answer.error != 0) throw std::runtime_error("open: " + answer.reason);
    wire::OpenReply reply;
    std::memcpy(&reply, answer.body.data(), sizeof reply);
    return reply.handle;
}

Answer WireClient::write(uint64_t handle, uint64_t offset, std::span<const std::byte> data,
                         uint32_t flags) {
    wire::WriteRequest body{};
    body.handle = handle;
    body.offset = offset;
    body.length = data.size();
    body.flags = flags;
    return ask(wire::Type::Write, bytes_of(body), data);
}

Answer WireClient::read(uint64_t handle, uint64_t offset, uint64_t length) {
    wire::ReadRequest body{};
    body.handle = handle;
    body.offset = offset;
    body.length = length;
    return ask(wire::Type::Read, bytes_of(body));
}

Answer WireClient::with_handle(wire::Type type, uint64_t handle) {
    wire::HandleRequest body{};
    body.handle = handle;
    return ask(type, bytes_of(body));
}

Packet write_packet(uint64_t tag, uint64_t handle, uint64_t offset, std::span<const std::byte> data,
                    uint32_t flags) {
    wire::WriteRequest body{};
    body.handle = handle;
    body.offset = offset;
    body.length = data.size();
    body.flags = flags;
    return request_packet(wire::Type::Write, tag, bytes_of(body), data);
}

Packet arena_write_packet(uint64_t tag, uint64_t handle, uint64_t offset, uint64_t length,
                          uint64_t arena_offset, uint32_t flags) {
    wire::WriteRequest body{};
    body.handle = handle;
    body.offset = offset;
    body.length = length;
    body.arena_offset = arena_offset;
    body.flags = flags;
    body.source = static_cast<uint32_t>(wire::Source::Arena);
    return request_packet(wire::Type::Write, tag, bytes_of(body));
}

Packet read_packet(uint64_t tag, uint64_t handle, uint64_t offset, uint64_t length) {
    wire::ReadRequest body{};
    body.handle = handle;
    body.offset = offset;
    body.length = length;
    return request_packet(wire::Type::Read, tag, bytes_of(body));
}

}  // namespace atomic4::test
