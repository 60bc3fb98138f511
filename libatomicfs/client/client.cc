#include "client/client.h"

#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cstring>

namespace atomic4 {

using namespace wire;

namespace {

template <class T>
std::span<const std::byte> bytes_of(const T& value) {
    return std::as_bytes(std::span(&value, 1));
}

Result<> check_length(uint64_t length, uint64_t max, int too_long = EMSGSIZE) {
    if (length == 0) return fail(EINVAL, "a length of 0");
    if (length > max)
        return fail(too_long, "{} bytes in one request, at most {} are possible", length, max);
    return {};
}

Result<UniqueFd> connect_socket(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof address.sun_path)
        return fail(ENAMETOOLONG, "{}: too long for a socket's path", path);
    path.copy(address.sun_path, path.size());
    UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    if (!socket) return fail(Error::from_errno(errno, "socket"));
    if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
        const int code = errno;
        return fail(Error::from_errno(code, fmt::format("connecting to {}", path)));
    }
    return socket;
}

}  // namespace

// --- connecting

Result<std::unique_ptr<Client>> Client::connect(const std::string& path,
                                                const ClientOptions& options) {
    UniqueFd socket = A4_TRY(connect_socket(path));
    return from_socket(std::move(socket), options).context(path);
}

Result<std::unique_ptr<Client>> Client::from_socket(UniqueFd socket, const ClientOptions& options) {
    std::unique_ptr<Client> client(new Client(std::move(socket), options));
    A4_CHECK(client->greet().context("HELLO"));
    const Bytes arena = std::min(options.arena, client->daemon_.arena_max);
    if (arena != Bytes(0)) A4_CHECK(client->share_arena(arena).context("ARENA"));
    return client;
}

Client::Client(UniqueFd socket, const ClientOptions& options)
    : socket_(std::move(socket)),
      spin_(options.spin_us),
      pending_(kOutstandingMax),
      packet_(std::make_unique_for_overwrite<std::byte[]>(kPacketMax)) {
    for (size_t i = pending_.size(); i-- > 0;) unused_.push_back(static_cast<uint8_t>(i));
}

Result<> Client::greet() {
    HelloRequest hello;
    hello.magic = kMagic;
    hello.version_min = kVersion;
    hello.version_max = kVersion;
    Outgoing message;
    message.type = Type::Hello;
    message.body = bytes_of(hello);
    daemon_ = std::get<DaemonInfo>(A4_TRY(call(message)).body);
    return {};
}

Result<> Client::share_arena(Bytes size) {
    auto arena = A4_TRY(ClientArena::create(size));
    ArenaRequest request;
    request.size = arena->size().value();
    Outgoing message;
    message.type = Type::Arena;
    message.body = bytes_of(request);
    message.fd = arena->fd();
    A4_TRY(call(message));
    arena_ = std::move(arena);
    return {};
}

// --- synchronous calls

Result<File> Client::open(int fd, uint32_t flags, WireEngine engine) {
    OpenRequest request;
    request.flags = flags;
    request.engine = static_cast<uint32_t>(engine);
    Outgoing message;
    message.type = Type::Open;
    message.body = bytes_of(request);
    message.fd = fd;
    return std::get<File>(A4_TRY(call(message)).body);
}

Result<File> Client::open(std::string_view path, uint32_t flags, WireEngine engine) {
    if (path.size() > kPathMax)
        return fail(ENAMETOOLONG, "a path of {} bytes, at most {} are possible", path.size(),
                    kPathMax);
    OpenRequest request;
    request.flags = flags;
    request.engine = static_cast<uint32_t>(engine);
    request.path_length = static_cast<uint32_t>(path.size());
    Outgoing message;
    message.type = Type::Open;
    message.body = bytes_of(request);
    message.payload = std::as_bytes(std::span(path));
    return std::get<File>(A4_TRY(call(message)).body);
}

Result<Written> Client::write(uint64_t handle, ByteOffset offset, std::span<const std::byte> data) {
    return std::get<Written>(A4_TRY(wait(submit_write(handle, offset, data))).body);
}

Result<> Client::write_plain(uint64_t handle, ByteOffset offset, std::span<const std::byte> data) {
    A4_TRY(wait(submit_write_plain(handle, offset, data)));
    return {};
}

Result<Written> Client::write_batch(std::span<const BatchPart> parts) {
    return std::get<Written>(A4_TRY(wait(submit_batch(parts))).body);
}

Result<Bytes> Client::read(uint64_t handle, ByteOffset offset, std::span<std::byte> into) {
    const Reply reply = A4_TRY(wait(submit_read(handle, offset, into)));
    return Bytes(std::get<Reply::ReadBytes>(reply.body).length);
}

Result<FileStatus> Client::statx(uint64_t handle) {
    return std::get<FileStatus>(A4_TRY(wait(submit_statx(handle))).body);
}

Result<> Client::flush(uint64_t handle) {
    A4_TRY(wait(submit_flush(handle)));
    return {};
}

Result<> Client::close(uint64_t handle) {
    A4_TRY(wait(submit_handle(Type::Close, handle)));
    return {};
}

Result<std::string> Client::stats(StatsFormat format) {
    StatsRequest request;
    request.format = static_cast<uint32_t>(format);
    Outgoing message;
    message.type = Type::Stats;
    message.body = bytes_of(request);
    return std::get<std::string>(A4_TRY(call(message)).body);
}

Result<> Client::ping() {
    A4_TRY(call({}));
    return {};
}

Result<> Client::freeze() {
    Outgoing message;
    message.type = Type::Freeze;
    A4_TRY(call(message));
    return {};
}

Result<> Client::thaw() {
    Outgoing message;
    message.type = Type::Thaw;
    A4_TRY(call(message));
    return {};
}

// --- submitting

Result<uint64_t> Client::submit_write(uint64_t handle, ByteOffset offset,
                                      std::span<const std::byte> data) {
    return submit_write(handle, offset, data, 0);
}

Result<uint64_t> Client::submit_write_plain(uint64_t handle, ByteOffset offset,
                                            std::span<const std::byte> data) {
    return submit_write(handle, offset, data, kWritePlain);
}

Result<uint64_t> Client::submit_write(uint64_t handle, ByteOffset offset,
                                      std::span<const std::byte> data, uint32_t flags) {
    // As the daemon would answer.
    const bool plain = (flags & kWritePlain) != 0;
    A4_CHECK(check_length(data.size(), kWriteMax, plain ? EMSGSIZE : EINVAL));
    const Place place = A4_TRY(find_place(data));
    if (place.ours)
        std::memcpy(arena_->at(place.arena_offset, data.size()).data(), data.data(), data.size());
    WriteRequest request;
    request.handle = handle;
    request.offset = offset.value();
    request.length = data.size();
    request.arena_offset = place.arena_offset;
    request.flags = flags;
    request.source = static_cast<uint32_t>(place.source);
    Outgoing message;
    message.type = Type::Write;
    message.body = bytes_of(request);
    if (place.source == Source::Inline) message.payload = data;
    message.length = data.size();
    message.place = place;
    return submit(message);
}

// Either every part lies in memory of arena_alloc, or all are copied behind each other.
Result<uint64_t> Client::submit_batch(std::span<const BatchPart> parts) {
    if (parts.empty()) return fail(EINVAL, "a batch of 0 ranges");
    if (parts.size() > kBatchRangesMax)
        return fail(EMSGSIZE, "a batch of {} ranges, at most {} are possible", parts.size(),
                    kBatchRangesMax);
    uint64_t total = 0;
    bool in_arena = arena_ != nullptr;
    for (const BatchPart& part : parts) {
        A4_CHECK(check_length(part.data.size(), daemon_.batch_max.value()));
        total += part.data.size();
        in_arena = in_arena && arena_->offset_of(part.data);
    }
    A4_CHECK(check_length(total, daemon_.batch_max.value()));
    Place place{Source::Arena, 0, false};
    if (!in_arena) place = A4_TRY(find_room(total));

    BatchRequest request;
    request.count = static_cast<uint32_t>(parts.size());
    request.source = static_cast<uint32_t>(place.source);
    std::vector<std::byte> body;
    const auto append = [&body](std::span<const std::byte> bytes) {
        body.insert(body.end(), bytes.begin(), bytes.end());
    };
    body.reserve(sizeof request + parts.size() * sizeof(BatchRange) +
                 (place.source == Source::Inline ? total : 0));
    append(bytes_of(request));
    uint64_t next = place.arena_offset;
    for (const BatchPart& part : parts) {
        BatchRange range;
        range.handle = part.handle;
        range.offset = part.offset.value();
        range.length = part.data.size();
        if (in_arena) range.arena_offset = *arena_->offset_of(part.data);
        if (place.ours) {
            range.arena_offset = next;
            std::memcpy(arena_->at(next, part.data.size()).data(), part.data.data(),
                        part.data.size());
            next += part.data.size();
        }
        append(bytes_of(range));
    }
    if (place.source == Source::Inline)
        for (const BatchPart& part : parts) append(part.data);
    Outgoing message;
    message.type = Type::Batch;
    message.body = body;
    message.length = total;
    message.place = place;
    return submit(message);
}

Result<uint64_t> Client::submit_read(uint64_t handle, ByteOffset offset,
                                     std::span<std::byte> into) {
    A4_CHECK(check_length(into.size(), kReadMax));
    const Place place = A4_TRY(find_place(into));
    ReadRequest request;
    request.handle = handle;
    request.offset = offset.value();
    request.length = into.size();
    request.arena_offset = place.arena_offset;
    request.source = static_cast<uint32_t>(place.source);
    Outgoing message;
    message.type = Type::Read;
    message.body = bytes_of(request);
    message.length = into.size();
    message.into = into;
    message.place = place;
    return submit(message);
}

Result<uint64_t> Client::submit_statx(uint64_t handle) {
    return submit_handle(Type::Statx, handle);
}

Result<uint64_t> Client::submit_flush(uint64_t handle) {
    return submit_handle(Type::Flush, handle);
}

Result<uint64_t> Client::submit_handle(Type type, uint64_t handle) {
    HandleRequest request;
    request.handle = handle;
    Outgoing message;
    message.type = type;
    message.body = bytes_of(request);
    return submit(message);
}

// --- the arena

Result<std::span<std::byte>> Client::arena_alloc(Bytes length) {
    if (!arena_) return fail(EOPNOTSUPP, "this connection has no arena");
    const auto offset = arena_->allocate(length.value());
    if (!offset)
        return fail(ENOMEM, "no {} bytes in a row are free in the arena of {}", length,
                    arena_->size());
    return arena_->at(*offset, length.value());
}

void Client::arena_free(std::span<const std::byte> memory) {
    if (!arena_) return;
    if (const auto offset = arena_->offset_of(memory)) arena_->release(*offset);
}

Result<Client::Place> Client::find_place(std::span<const std::byte> memory) {
    if (arena_)
        if (const auto offset = arena_->offset_of(memory))
            return Place{Source::Arena, *offset, false};
    return find_room(memory.size());
}

// In the arena if it has room, else inline if the bytes are few enough, else in the arena as soon
// as answers have made room.
Result<Client::Place> Client::find_room(uint64_t length) {
    const auto allocate = [&]() -> std::optional<Place> {
        const auto offset = arena_ ? arena_->allocate(length) : std::nullopt;
        if (!offset) return std::nullopt;
        return Place{Source::Arena, *offset, true};
    };
    if (const auto place = allocate()) return *place;
    if (length <= daemon_.inline_max.value()) return Place{};
    if (!arena_)
        return fail(EMSGSIZE,
                    "{} bytes need an arena, and this connection has none; at most {} go without",
                    length, daemon_.inline_max);
    while (length <= arena_->size().value() && in_flight_ > 0) {
        receive(0);
        if (const auto place = allocate()) return *place;
    }
    A4_CHECK(check_alive());
    return fail(ENOMEM,
                "no {} bytes in a row are free in the arena of {}: connect with a larger one, or "
                "free some of it",
                length, arena_->size());
}

void Client::release(const Place& place) {
    if (place.ours) arena_->release(place.arena_offset);
}

}  // namespace atomic4
