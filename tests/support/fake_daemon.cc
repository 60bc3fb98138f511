#include "support/fake_daemon.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <stdexcept>

namespace atomic4::test {

using namespace wire;

FakeDaemon::FakeDaemon(Options options) : options_(options) {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
        throw std::runtime_error("socketpair");
    client_end_.reset(ends[0]);
    socket_.reset(ends[1]);
    thread_ = std::thread([this] { serve(socket_.get()); });
}

FakeDaemon::FakeDaemon(const std::string& path, Options options) : options_(options) {
    socket_.reset(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof address.sun_path - 1);
    if (bind(socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
        listen(socket_.get(), 1) != 0)
        throw std::runtime_error("listening at " + path);
    thread_ = std::thread([this] {
        UniqueFd accepted(accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC));
        if (!accepted) return;
        serve(accepted.get());
    });
}

FakeDaemon::~FakeDaemon() {
    client_end_.reset();
    // Wakes accept; a connected client is gone already, or its end is.
    shutdown(socket_.get(), SHUT_RDWR);
    thread_.join();
    if (arena_ != nullptr) munmap(arena_, connection_.arena.value());
}

void FakeDaemon::on(Type type, Hook hook) {
    const std::lock_guard lock(mutex_);
    hooks_[type] = std::move(hook);
}

std::vector<std::byte> FakeDaemon::file() {
    const std::lock_guard lock(mutex_);
    return file_;
}
std::map<Type, int> FakeDaemon::requests() {
    const std::lock_guard lock(mutex_);
    return requests_;
}
int FakeDaemon::descriptors() {
    const std::lock_guard lock(mutex_);
    return descriptors_;
}
int FakeDaemon::inline_payloads() {
    const std::lock_guard lock(mutex_);
    return inline_payloads_;
}

void FakeDaemon::serve(int socket) {
    std::vector<std::byte> packet(kPacketMax);
    for (;;) {
        iovec part{packet.data(), packet.size()};
        alignas(cmsghdr) char control[CMSG_SPACE(4 * sizeof(int))];
        msghdr message{};
        message.msg_iov = &part;
        message.msg_iovlen = 1;
        message.msg_control = control;
        message.msg_controllen = sizeof control;
        const ssize_t count = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
        if (count <= 0) break;
        std::vector<UniqueFd> fds;
        for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c))
            for (size_t i = 0; CMSG_LEN((i + 1) * sizeof(int)) <= c->cmsg_len; ++i) {
                int fd = -1;
                std::memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
                fds.emplace_back(fd);
            }
        if (!handle(socket, {packet.data(), static_cast<size_t>(count)}, std::move(fds))) break;
    }
    shutdown(socket, SHUT_RDWR);
}

// False: the connection is to be closed.
bool FakeDaemon::handle(int socket, std::span<const std::byte> packet, std::vector<UniqueFd> fds) {
    Hook hook;
    std::optional<Result<Request>> request;
    {
        const std::lock_guard lock(mutex_);
        request = decode(packet, fds.size(), connection_);
        if (*request) {
            ++requests_[(*request)->type];
            if ((*request)->type == Type::Open) descriptors_ += static_cast<int>(fds.size());
            if (const auto* arena = std::get_if<Arena>(&(*request)->body)) {
                const int seals = fcntl(fds[0].get(), F_GET_SEALS);
                void* memory = mmap(nullptr, arena->size.value(), PROT_READ | PROT_WRITE,
                                    MAP_SHARED, fds[0].get(), 0);
                if (seals < 0 || (seals & F_SEAL_SHRINK) == 0 || memory == MAP_FAILED) return false;
                arena_ = static_cast<std::byte*>(memory);
            }
            if (const auto found = hooks_.find((*request)->type); found != hooks_.end())
                hook = found->second;
        }
    }
    std::vector<Packet> answers;
    if (!*request) {
        const auto header = decode_header(packet);
        if (!header) return false;
        answers.push_back(
            encode_error(static_cast<Type>(uint16_t{header->type}), header->tag, request->error()));
    } else if (hook) {
        Answer answer = hook(**request);
        if (!answer) return false;
        answers = std::move(*answer);
    } else {
        answers.push_back(honest(**request));
    }
    for (const Packet& answer : answers) send(socket, answer.data(), answer.size(), MSG_NOSIGNAL);
    return true;
}

void FakeDaemon::store(uint64_t offset, uint64_t length, const wire::Payload& payload) {
    const bool in_arena = payload.source == Source::Arena;
    if (!in_arena) ++inline_payloads_;
    const std::byte* bytes = in_arena ? arena_ + payload.arena_offset : payload.bytes.data();
    file_.resize(std::max<size_t>(file_.size(), offset + length));
    std::copy_n(bytes, length, file_.begin() + static_cast<long>(offset));
}

Packet FakeDaemon::read(uint64_t tag, const Read& request) {
    const uint64_t offset = std::min<uint64_t>(request.offset.value(), file_.size());
    const uint64_t length = std::min<uint64_t>(request.length.value(), file_.size() - offset);
    ReadReply reply;
    reply.length = length;
    const auto bytes = std::span(file_).subspan(offset, length);
    if (request.into == Source::Inline)
        return encode_reply(Type::Read, tag, bytes_of(reply), bytes);
    std::ranges::copy(bytes, arena_ + request.arena_offset);
    return encode_reply(Type::Read, tag, bytes_of(reply));
}

Packet FakeDaemon::statx(uint64_t tag) {
    StatxReply reply;
    reply.size = file_.size();
    reply.inode = 12;
    reply.generation = 34;
    reply.unit = 16384;
    reply.unit_min = 4096;
    reply.unit_max = 4 << 20;
    reply.unit_max_logged = 4 << 20;
    reply.segments_max = 1;
    reply.engine = static_cast<uint32_t>(WireEngine::Logged);
    reply.ack_mode = static_cast<uint32_t>(AckMode::Strict);
    reply.atomic = 1;
    reply.writes_logged = static_cast<uint64_t>(requests_[Type::Write]);
    reply.why_not_native_length = 12;
    reply.why_strict_length = 7;
    return encode_reply(Type::Statx, tag, bytes_of(reply), bytes_of("not a deviceopen in"));
}

Packet FakeDaemon::honest(const Request& request) {
    const std::lock_guard lock(mutex_);
    const auto known = [&](uint64_t handle) { return handles_.contains(handle); };
    const auto bad_handle = [&] {
        return encode_error(request.type, request.tag, Error{EBADF, "no such handle"});
    };
    WriteReply written;
    written.engine = static_cast<uint32_t>(WireEngine::Logged);
    written.ack_mode = static_cast<uint32_t>(AckMode::Strict);
    if (std::holds_alternative<Hello>(request.body)) {
        connection_.greeted = true;
        connection_.target = options_.target;
        HelloReply reply;
        reply.version = kVersion;
        reply.target = static_cast<uint32_t>(options_.target);
        reply.uuid[0] = 0xab;
        reply.block_size = 4096;
        reply.outstanding_max = options_.outstanding_max;
        reply.inline_max = kInlineMax;
        reply.arena_max = kArenaMax;
        reply.batch_max = 1 << 20;
        return encode_reply(request.type, request.tag, bytes_of(reply));
    }
    if (const auto* arena = std::get_if<Arena>(&request.body)) {
        connection_.arena = arena->size;
    } else if (std::holds_alternative<Open>(request.body)) {
        handles_.insert(next_handle_);
        OpenReply reply;
        reply.handle = next_handle_++;
        reply.inode = 12;
        reply.generation = 34;
        return encode_reply(request.type, request.tag, bytes_of(reply));
    } else if (const auto* write = std::get_if<Write>(&request.body)) {
        if (!known(write->handle)) return bad_handle();
        store(write->offset.value(), write->length.value(), write->payload);
        if (write->plain) written = {};
        return encode_reply(request.type, request.tag, bytes_of(written));
    } else if (const auto* batch = std::get_if<Batch>(&request.body)) {
        for (const auto& range : batch->ranges)
            if (!known(range.handle)) return bad_handle();
        for (const auto& range : batch->ranges)
            store(range.offset.value(), range.length.value(), range.payload);
        return encode_reply(request.type, request.tag, bytes_of(written));
    } else if (const auto* wanted = std::get_if<Read>(&request.body)) {
        return known(wanted->handle) ? read(request.tag, *wanted) : bad_handle();
    } else if (const auto* asked = std::get_if<Statx>(&request.body)) {
        return known(asked->handle) ? statx(request.tag) : bad_handle();
    } else if (const auto* flush = std::get_if<Flush>(&request.body)) {
        if (!known(flush->handle)) return bad_handle();
    } else if (const auto* close = std::get_if<Close>(&request.body)) {
        if (handles_.erase(close->handle) == 0) return bad_handle();
    } else if (std::holds_alternative<Stats>(request.body)) {
        return encode_reply(request.type, request.tag, {}, bytes_of("{\"writes\": 1}"));
    } else if (std::holds_alternative<Freeze>(request.body)) {
        return encode_error(request.type, request.tag, Error{EPERM, "only root may freeze"});
    }
    return encode_reply(request.type, request.tag, {});
}

}  // namespace atomic4::test
