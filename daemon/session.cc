#include "daemon/session.h"

#include <sys/socket.h>

#include <cstring>

#include "daemon/foreign_descriptor.h"

namespace atomic4 {
namespace {

// Answers that a client may leave unread before it isn't listened to any more.
constexpr size_t kOutgoingMax = size_t{4} << 20;

template <class T>
std::span<const std::byte> bytes_of(const T& value) {
    return std::as_bytes(std::span(&value, 1));
}
std::span<const std::byte> bytes_of(const std::string& text) {
    return std::as_bytes(std::span(text));
}

Engine engine_of(wire::WireEngine engine) {
    switch (engine) {
        case wire::WireEngine::Native:
            return Engine::Native;
        case wire::WireEngine::Logged:
            return Engine::Logged;
        case wire::WireEngine::Auto:
            break;
    }
    return Engine::Auto;
}
uint32_t wire_engine(Engine engine) {
    switch (engine) {
        case Engine::Native:
            return static_cast<uint32_t>(wire::WireEngine::Native);
        case Engine::Logged:
            return static_cast<uint32_t>(wire::WireEngine::Logged);
        case Engine::Auto:
            break;
    }
    return static_cast<uint32_t>(wire::WireEngine::Auto);
}
uint32_t wire_ack(Ack ack) {
    switch (ack) {
        case Ack::Exclusive:
            return static_cast<uint32_t>(wire::AckMode::Exclusive);
        case Ack::Strict:
            return static_cast<uint32_t>(wire::AckMode::Strict);
        case Ack::None:
            break;
    }
    return static_cast<uint32_t>(wire::AckMode::None);
}

const char* name_of(wire::Type type) {
    switch (type) {
        case wire::Type::Hello:
            return "hello";
        case wire::Type::Arena:
            return "arena";
        case wire::Type::Open:
            return "open";
        case wire::Type::Write:
            return "write";
        case wire::Type::Batch:
            return "batch";
        case wire::Type::Read:
            return "read";
        case wire::Type::Statx:
            return "statx";
        case wire::Type::Flush:
            return "flush";
        case wire::Type::Close:
            return "close";
        case wire::Type::Stats:
            return "stats";
        case wire::Type::Ping:
            return "ping";
        case wire::Type::Freeze:
            return "freeze";
        case wire::Type::Thaw:
            return "thaw";
    }
    return "a request of unknown type";
}

// The handle that a request is about; a batch's first. 0: none.
uint64_t handle_of(const wire::Body& body) {
    return std::visit(
        [](const auto& request) -> uint64_t {
            if constexpr (requires { request.handle; })
                return request.handle;
            else if constexpr (requires { request.ranges; })
                return request.ranges.empty() ? 0 : request.ranges.front().handle;
            else
                return 0;
        },
        body);
}

struct FreeMemory {
    void operator()(std::byte* memory) const { std::free(memory); }
};
// Page-aligned, so that direct I/O takes it.
std::shared_ptr<std::byte> page_memory(uint64_t size) {
    return {static_cast<std::byte*>(std::aligned_alloc(4096, round_up(size, 4096))), FreeMemory{}};
}

// Payloads of a write: in the arena where they stay, or copied out of the packet.
class Payloads {
  public:
    explicit Payloads(std::shared_ptr<ArenaMap> arena) : arena_(std::move(arena)) {}

    // Room for that many inline bytes, of all that is going to be taken.
    Result<> expect(uint64_t inline_bytes) {
        if (inline_bytes == 0) return {};
        copies_ = page_memory(inline_bytes);
        if (!copies_) return fail(ENOMEM, "no memory for the payload");
        return {};
    }
    std::span<const std::byte> take(const wire::Payload& payload, Bytes length) {
        if (payload.source == wire::Source::Arena) return arena_->at(payload.arena_offset, length);
        std::byte* const copy = copies_.get() + used_;
        std::memcpy(copy, payload.bytes.data(), payload.bytes.size());
        used_ += payload.bytes.size();
        return {copy, payload.bytes.size()};
    }

  private:
    std::shared_ptr<ArenaMap> arena_;
    // One piece: as many small ones, of whole pages, could be many times as large as the packet.
    std::shared_ptr<std::byte> copies_;
    size_t used_ = 0;
};

// What carrying out a request takes besides its packet: at least, the answer and our notes on it.
constexpr size_t kMemoryOfRequest = 2048;
constexpr size_t kMemoryOfRange = 256;

size_t memory_for(const wire::Request& request) {
    if (const auto* write = std::get_if<wire::Write>(&request.body))
        return round_up(write->payload.bytes.size(), 4096);
    if (const auto* batch = std::get_if<wire::Batch>(&request.body)) {
        size_t bytes = 0;
        for (const wire::Batch::Range& range : batch->ranges) bytes += range.payload.bytes.size();
        return round_up(bytes, 4096) + batch->ranges.size() * kMemoryOfRange;
    }
    if (const auto* read = std::get_if<wire::Read>(&request.body))  // the buffer, and the answer
        return read->into == wire::Source::Inline ? 2 * round_up(read->length.value(), 4096) : 0;
    return std::holds_alternative<wire::Stats>(request.body) ? wire::kTextMax : 0;
}

}  // namespace

Session::Session(Around around, UniqueFd socket, Peer peer)
    : around_(std::move(around)),
      socket_(std::move(socket)),
      peer_(std::move(peer)),
      packet_(new std::byte[wire::kPacketMax]) {
    connection_.target = around_.volume.kind();
    around_.memory->join();
}

Session::~Session() {
    // Of answers that could no more be sent.
    around_.memory->give(memory_);
    around_.memory->leave();
}

// --- receiving ---

void Session::receive() {
    if (receiving_ || ending_ || outstanding_ >= wire::kOutstandingMax ||
        outgoing_bytes_ > kOutgoingMax || !around_.memory->admits(memory_))
        return;
    receiving_ = true;
    receive_part_ = {packet_.get(), wire::kPacketMax};
    receive_message_ = {};
    receive_message_.msg_iov = &receive_part_;
    receive_message_.msg_iovlen = 1;
    // Who has too many descriptors in the air can't pass more: the kernel drops them.
    if (foreign_pending(peer_.uid) < kForeignMax) {
        receive_message_.msg_control = control_.data();
        receive_message_.msg_controllen = control_.size();
    }
    around_.loop.receive(socket_.get(), &receive_message_,
                         [self = shared_from_this()](int result) { self->received(result); });
}

std::vector<UniqueFd> Session::take_descriptors() {
    std::vector<UniqueFd> descriptors;
    for (cmsghdr* head = CMSG_FIRSTHDR(&receive_message_); head != nullptr;
         head = CMSG_NXTHDR(&receive_message_, head)) {
        if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS) continue;
        const size_t count = (head->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; ++i) {
            int fd = -1;
            std::memcpy(&fd, CMSG_DATA(head) + i * sizeof fd, sizeof fd);
            descriptors.emplace_back(fd);
        }
    }
    return descriptors;
}

void Session::received(int result) {
    receiving_ = false;
    std::vector<UniqueFd> descriptors;
    // A packet without bytes looks like the end, and can carry some too.
    if (result >= 0) descriptors = take_descriptors();
    const auto drop = [&] {
        for (UniqueFd& fd : descriptors) close_foreign(std::move(fd), peer_.uid);
    };
    if (result <= 0 || ending_) {
        drop();
        // After end() that is all; what runs still gets its answers.
        if (result == 0 && stopping_) ending_ = true;
        if (result < 0 || !ending_ || outstanding_ == 0) disconnect();
        return;
    }
    const std::span<const std::byte> packet(packet_.get(), static_cast<size_t>(result));
    const auto header = wire::decode_header(packet);
    if (!header) {
        // Nobody knows what to answer.
        drop();
        around_.stats.error(EPROTO);
        around_.refused(
            peer_, EPROTO,
            fmt::format("a packet of {} bytes by {}: no header; the connection is closed", result,
                        to_text(peer_)));
        return disconnect();
    }
    ++outstanding_;
    Asked asked{static_cast<wire::Type>(uint16_t{header->type}), header->tag, Clock::now()};
    take_memory(asked, kMemoryOfRequest);
    if ((receive_message_.msg_flags & MSG_TRUNC) != 0) {
        drop();
        ending_ = true;
        return refuse(asked, {EPROTO, "the packet is longer than any message"});
    }
    if (stopping_) {
        drop();
        refuse(asked, {ESHUTDOWN, "the daemon is stopping: connect to its successor"});
        return receive();
    }
    // No message has two: with more it isn't valid, now or later.
    if ((receive_message_.msg_flags & MSG_CTRUNC) != 0 && descriptors.size() < 2) {
        drop();
        refuse(asked, {EBUSY,
                       "the descriptor that came with it was lost: this user has passed many that "
                       "are still being closed, or the daemon has too many open; try again"});
        return receive();
    }
    auto request = wire::decode(packet, descriptors.size(), connection_);
    if (!request) {
        drop();
        if (request.error().code == EPROTO) ending_ = true;
        refuse(asked, request.error());
        return receive();
    }
    asked.handle = handle_of(request->body);
    take_memory(asked, memory_for(*request));
    handle(asked, *request, std::move(descriptors));
    receive();
}

void Session::handle(const Asked& asked, const wire::Request& request,
                     std::vector<UniqueFd> descriptors) {
    UniqueFd descriptor;
    if (!descriptors.empty()) descriptor = std::move(descriptors.front());
    std::visit(
        [&](const auto& body) {
            using Body = std::decay_t<decltype(body)>;
            if constexpr (std::is_same_v<Body, wire::Arena> || std::is_same_v<Body, wire::Open>)
                handle(asked, body, std::move(descriptor));
            else if constexpr (std::is_same_v<Body, wire::Ping>)
                answer(asked, {});
            else if constexpr (std::is_same_v<Body, wire::Freeze>)
                handle_freeze(asked, true);
            else if constexpr (std::is_same_v<Body, wire::Thaw>)
                handle_freeze(asked, false);
            else
                handle(asked, body);
        },
        request.body);
}

// --- requests ---

void Session::handle(const Asked& asked, const wire::Hello& body) {
    connection_.greeted = true;
    wire::HelloReply reply{};
    reply.version = body.version;
    reply.target = static_cast<uint32_t>(around_.volume.kind());
    reply.uuid = around_.volume.uuid();
    reply.block_size = static_cast<uint32_t>(around_.volume.target().block_size().value());
    reply.outstanding_max = wire::kOutstandingMax;
    reply.inline_max = wire::kInlineMax;
    reply.arena_max = wire::kArenaMax;
    reply.batch_max = std::min(around_.volume.target().batch_max().value(), wire::kBatchMax);
    answer(asked, bytes_of(reply));
}

void Session::handle(const Asked& asked, const wire::Arena& body, UniqueFd descriptor) {
    auto mapped = ArenaMap::map(descriptor, body.size);
    if (!mapped) {
        close_foreign(std::move(descriptor), peer_.uid);
        return refuse(asked, mapped.error());
    }
    // It is a memfd, whose closing waits for nobody. Many clients may come at once.
    arena_ = std::move(*mapped);
    connection_.arena = body.size;
    answer(asked, {});
}

void Session::handle(const Asked& asked, const wire::Open& body, UniqueFd descriptor) {
    if (handles_.size() + opening_ >= wire::kHandlesMax) {
        close_foreign(std::move(descriptor), peer_.uid);
        return refuse(asked, {EMFILE, fmt::format("a connection has at most {} open files",
                                                  wire::kHandlesMax)});
    }
    OpenWish wish;
    wish.descriptor = std::move(descriptor);
    wish.path = body.path;
    wish.read = (body.flags & wire::kOpenRead) != 0;
    wish.write = (body.flags & wire::kOpenWrite) != 0;
    wish.cooperative = (body.flags & wire::kOpenCooperative) != 0;
    ++opening_;
    around_.volume.open_file(peer_, std::move(wish),
                             [self = shared_from_this(), asked, flags = body.flags,
                              engine = body.engine == wire::WireEngine::Auto
                                           ? around_.engine
                                           : engine_of(body.engine)](Result<FileRef> opened) {
                                 --self->opening_;
                                 if (!opened) {
                                     self->around_.stats.refused();
                                     return self->refuse(asked, opened.error());
                                 }
                                 if (self->gone_)
                                     return self->around_.volume.target().close(*opened);
                                 const uint64_t number = self->next_handle_++;
                                 wire::OpenReply reply{};
                                 reply.handle = number;
                                 reply.inode = (*opened)->inode;
                                 reply.generation = (*opened)->generation;
                                 self->handles_[number] = Handle{std::move(*opened), flags, engine};
                                 self->answer(asked, bytes_of(reply));
                             });
}

Result<Session::Handle*> Session::find(uint64_t number) {
    const auto found = handles_.find(number);
    if (found == handles_.end())
        return fail(EBADF, "handle {} is not open on this connection", number);
    return &found->second;
}

Result<FileRef> Session::writable(uint64_t number, bool plain, Engine* engine) {
    Handle* const handle = A4_TRY(find(number));
    if ((handle->flags & wire::kOpenWrite) == 0)
        return fail(EBADF, "handle {} is not open for writing", number);
    if (plain && (handle->flags & wire::kOpenAtomic) != 0)
        return fail(EINVAL, "handle {} is open for atomic writes only", number);
    *engine = handle->engine;
    return handle->file;
}

void Session::handle(const Asked& asked, const wire::Write& body) {
    auto op = std::make_unique<WriteOp>();
    op->kind = body.plain ? WriteOp::Kind::Plain : WriteOp::Kind::Atomic;
    auto file = writable(body.handle, body.plain, &op->engine);
    if (!file) return refuse(asked, file.error());
    auto payloads = std::make_shared<Payloads>(arena_);
    if (auto room = payloads->expect(body.payload.bytes.size()); !room)
        return refuse(asked, room.error());
    op->ranges.push_back(
        {std::move(*file), body.offset, payloads->take(body.payload, body.length)});
    submit(asked, std::move(op), std::move(payloads));
}

void Session::handle(const Asked& asked, const wire::Batch& body) {
    auto op = std::make_unique<WriteOp>();
    op->kind = WriteOp::Kind::Batch;
    auto payloads = std::make_shared<Payloads>(arena_);
    uint64_t inline_bytes = 0;
    for (const wire::Batch::Range& range : body.ranges) inline_bytes += range.payload.bytes.size();
    if (auto room = payloads->expect(inline_bytes); !room) return refuse(asked, room.error());
    for (const wire::Batch::Range& range : body.ranges) {
        Engine engine = Engine::Auto;
        auto file = writable(range.handle, false, &engine);
        if (!file) return refuse(asked, file.error());
        if (engine == Engine::Native) {
            return refuse(asked, {EOPNOTSUPP, fmt::format("handle {} is open for native writes: "
                                                          "only the log makes a batch atomic",
                                                          range.handle)});
        }
        op->ranges.push_back(
            {std::move(*file), range.offset, payloads->take(range.payload, range.length)});
    }
    submit(asked, std::move(op), std::move(payloads));
}

void Session::submit(const Asked& asked, std::unique_ptr<WriteOp> op,
                     std::shared_ptr<void> memory) {
    Bytes length;
    for (const WriteOp::Range& range : op->ranges) length += Bytes(range.data.size());
    const size_t ranges = op->kind == WriteOp::Kind::Batch ? op->ranges.size() : 0;
    op->done = [self = shared_from_this(), asked, length, ranges,
                memory = std::move(memory)](const Result<WriteDone>& done) {
        if (!done) return self->refuse(asked, done.error());
        ::atomic4::Stats& stats = self->around_.stats;
        const auto took = Clock::now() - asked.since;
        stats.write(done->engine == Engine::Native   ? WriteKind::Native
                    : done->engine == Engine::Logged ? WriteKind::Logged
                                                     : WriteKind::Plain,
                    length, took);
        if (ranges > 0) stats.batch(ranges);
        if (done->ack == Ack::Strict) stats.ack_strict();
        if (done->ack == Ack::Exclusive) stats.ack_exclusive();
        wire::WriteReply reply{};
        reply.engine = wire_engine(done->engine);
        reply.ack_mode = wire_ack(done->ack);
        self->answer(asked, bytes_of(reply));
    };
    around_.volume.target().submit(std::move(op));
}

void Session::handle(const Asked& asked, const wire::Read& body) {
    auto handle = find(body.handle);
    if (!handle) return refuse(asked, handle.error());
    if (((*handle)->flags & wire::kOpenRead) == 0)
        return refuse(asked,
                      {EBADF, fmt::format("handle {} is not open for reading", body.handle)});
    std::span<std::byte> into;
    std::shared_ptr<void> memory;
    if (body.into == wire::Source::Arena) {
        into = arena_->at(body.arena_offset, body.length);
        memory = arena_;
    } else {
        auto page = page_memory(body.length.value());
        if (!page) return refuse(asked, {ENOMEM, "no memory for the read"});
        into = {page.get(), body.length.value()};
        memory = std::move(page);
    }
    around_.volume.target().read(
        (*handle)->file, body.offset, into,
        [self = shared_from_this(), asked, into, memory,
         in_line = body.into == wire::Source::Inline](const Result<Bytes>& done) {
            if (!done) return self->refuse(asked, done.error());
            self->around_.stats.read(*done, Clock::now() - asked.since);
            wire::ReadReply reply{};
            reply.length = done->value();
            self->answer(asked, bytes_of(reply),
                         in_line ? std::span<const std::byte>(into.first(done->value()))
                                 : std::span<const std::byte>());
        });
}

void Session::handle(const Asked& asked, const wire::Statx& body) {
    auto handle = find(body.handle);
    if (!handle) return refuse(asked, handle.error());
    const FileRef& file = (*handle)->file;
    const auto limits = around_.volume.target().limits(file);
    if (!limits) return refuse(asked, limits.error());
    std::string why_not_native = limits->why_not_native.substr(0, wire::kReasonMax);
    const std::string why_strict = limits->why_strict.substr(0, wire::kReasonMax);
    wire::StatxReply reply{};
    reply.size = limits->size.value();
    reply.inode = file->inode;
    reply.generation = file->generation;
    reply.unit = limits->unit.value();
    reply.unit_min = limits->unit_min.value();
    reply.unit_max = limits->unit_max.value();
    reply.unit_max_native = limits->unit_max_native.value();
    reply.unit_max_logged = limits->unit_max_logged.value();
    reply.segments_max = 1;
    reply.engine =
        wire_engine((*handle)->engine == Engine::Auto ? limits->engine : (*handle)->engine);
    reply.ack_mode = wire_ack(limits->ack);
    reply.atomic = limits->atomic ? 1 : 0;
    reply.writes_native = file->writes_native;
    reply.writes_logged = file->writes_logged;
    reply.why_not_native_length = static_cast<uint32_t>(why_not_native.size());
    reply.why_strict_length = static_cast<uint32_t>(why_strict.size());
    why_not_native += why_strict;
    answer(asked, bytes_of(reply), bytes_of(why_not_native));
}

void Session::handle(const Asked& asked, const wire::Flush& body) {
    auto handle = find(body.handle);
    if (!handle) return refuse(asked, handle.error());
    around_.volume.target().flush((*handle)->file,
                                  [self = shared_from_this(), asked](const Result<>& done) {
                                      self->around_.stats.flush(Clock::now() - asked.since);
                                      self->answer_done(asked, done);
                                  });
}

void Session::handle(const Asked& asked, const wire::Close& body) {
    auto handle = find(body.handle);
    if (!handle) return refuse(asked, handle.error());
    around_.volume.target().close((*handle)->file);
    handles_.erase(body.handle);
    answer(asked, {});
}

void Session::handle(const Asked& asked, const wire::Stats& body) {
    const std::string text = around_.stats_text(body.format).substr(0, wire::kTextMax);
    answer(asked, {}, bytes_of(text));
}

void Session::handle_freeze(const Asked& asked, bool freeze) {
    if (peer_.uid != 0 && peer_.uid != ::geteuid()) {
        return refuse(asked, {EPERM, fmt::format("{} may not {} the volume: only root may",
                                                 to_text(peer_), freeze ? "freeze" : "thaw")});
    }
    if (!freeze) {
        around_.volume.target().thaw();
        return answer(asked, {});
    }
    around_.volume.target().freeze([self = shared_from_this(), asked](const Result<>& done) {
        self->answer_done(asked, done);
    });
}

// --- answers ---

void Session::answer(const Asked& asked, std::span<const std::byte> body,
                     std::span<const std::byte> tail) {
    enqueue(asked, wire::encode_reply(asked.type, asked.tag, body, tail));
}

void Session::refuse(const Asked& asked, const Error& error) {
    around_.stats.error(error.code);
    // That the daemon stops is in its log, and no client's doing.
    if (error.code != ESHUTDOWN) report(asked, error);
    enqueue(asked, wire::encode_error(asked.type, asked.tag, error));
}

void Session::report(const Asked& asked, const Error& error) const {
    std::string file;
    if (asked.handle != 0) {
        const auto found = handles_.find(asked.handle);
        file = found == handles_.end() ? fmt::format(", handle {}", asked.handle)
                                       : fmt::format(", inode {}", found->second.file->inode);
    }
    around_.refused(
        peer_, error.code,
        fmt::format("{} by {}{}: {}", name_of(asked.type), to_text(peer_), file, error.message));
}

void Session::take_memory(Asked& asked, size_t bytes) {
    asked.memory += bytes;
    memory_ += bytes;
    around_.memory->take(bytes);
}

void Session::give_memory(size_t bytes) {
    memory_ -= bytes;
    around_.memory->give(bytes);
}

void Session::enqueue(const Asked& asked, std::vector<std::byte> packet) {
    if (gone_) {
        --outstanding_;
        return give_memory(asked.memory);
    }
    outgoing_bytes_ += packet.size();
    outgoing_.push_back({std::move(packet), asked.memory});
    send_next();
}

void Session::send_next() {
    if (sending_ || gone_) return;
    if (outgoing_.empty()) {
        if (ending_ && outstanding_ == 0) disconnect();
        return;
    }
    sending_ = true;
    // The devices first: they work while clients are told.
    around_.loop.after_submit([self = shared_from_this()] { self->send_now(); });
}

// A socket nearly always has room; else the loop waits for it.
void Session::send_now() {
    while (!outgoing_.empty()) {
        std::vector<std::byte>& packet = outgoing_.front().packet;
        send_part_ = {packet.data(), packet.size()};
        send_message_ = {};
        send_message_.msg_iov = &send_part_;
        send_message_.msg_iovlen = 1;
        int result = -ECONNRESET;
        if (!gone_) {
            const ssize_t n = ::sendmsg(socket_.get(), &send_message_, MSG_NOSIGNAL | MSG_DONTWAIT);
            result = n < 0 ? -errno : static_cast<int>(n);
        }
        if (result == -EAGAIN || result == -EINTR) {
            return around_.loop.send(socket_.get(), &send_message_,
                                     [self = shared_from_this()](int sent) {
                                         self->forget_first();
                                         if (sent < 0) self->disconnect();
                                         self->send_now();
                                     });
        }
        forget_first();
        if (result < 0) disconnect();
    }
    sending_ = false;
    send_next();
    if (!gone_) receive();
}

void Session::forget_first() {
    outgoing_bytes_ -= outgoing_.front().packet.size();
    give_memory(outgoing_.front().memory);
    outgoing_.pop_front();
    --outstanding_;
}

void Session::end() {
    if (stopping_ || gone_) return;
    stopping_ = true;
    // Nothing more can be sent. What was is received: closed over it, the client's socket would
    // report a reset before the answers.
    ::shutdown(socket_.get(), SHUT_RD);
    receive();
}

void Session::disconnect() {
    if (gone_) return;
    const auto self = shared_from_this();
    gone_ = true;
    ending_ = true;
    // Ends a receive or send that waits.
    ::shutdown(socket_.get(), SHUT_RDWR);
    for (const auto& [number, handle] : handles_) around_.volume.target().close(handle.file);
    handles_.clear();
    if (!sending_) {
        outstanding_ -= outgoing_.size();
        for (const Outgoing& answer : outgoing_) give_memory(answer.memory);
        outgoing_.clear();
    }
    around_.gone(this);
}

}  // namespace atomic4
