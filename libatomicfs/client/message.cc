#include "client/message.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace atomic4::wire {
namespace {

constexpr uint64_t kFileMax = std::numeric_limits<int64_t>::max();

// What is left of a packet. Structures are bytes only (endian.h), so they are copied out.
class Reader {
  public:
    explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}

    template <class T>
    Result<T> take() {
        T value;
        const auto bytes = A4_TRY(take_bytes(sizeof value));
        std::memcpy(&value, bytes.data(), sizeof value);
        return value;
    }
    Result<std::span<const std::byte>> take_bytes(uint64_t count) {
        if (count > bytes_.size())
            return fail(EINVAL, "the packet ends {} bytes too early", count - bytes_.size());
        const auto taken = bytes_.first(count);
        bytes_ = bytes_.subspan(count);
        return taken;
    }
    Result<> at_end() const {
        if (!bytes_.empty())
            return fail(EINVAL, "{} bytes follow the message in its packet", bytes_.size());
        return {};
    }

  private:
    std::span<const std::byte> bytes_;
};

Result<> check_zero(uint32_t reserved) {
    if (reserved != 0) return fail(EINVAL, "a reserved field is {:#x}, not 0", reserved);
    return {};
}

Result<> check_flags(uint32_t flags, uint32_t known) {
    if ((flags & ~known) != 0) return fail(EINVAL, "unknown flags {:#x}", flags & ~known);
    return {};
}

Result<Source> decode_source(uint32_t source) {
    if (source > static_cast<uint32_t>(Source::Arena))
        return fail(EINVAL, "{} is no source: 0 is inline, 1 the arena", source);
    return static_cast<Source>(source);
}

// Where bytes of files are: not empty, and not past what a file can have. The sum can't wrap:
// length is at most max.
Result<> check_range(uint64_t offset, uint64_t length, uint64_t max, int too_long = EMSGSIZE) {
    if (length == 0) return fail(EINVAL, "the length is 0");
    if (length > max) return fail(too_long, "the length is {}, at most {} are taken", length, max);
    if (offset > kFileMax - length)
        return fail(EFBIG, "{} bytes at {} end past the largest file offset", length, offset);
    return {};
}

Result<> check_arena(uint64_t arena_offset, uint64_t length, const Connection& connection) {
    const uint64_t size = connection.arena.value();
    if (size == 0) return fail(EINVAL, "the connection has no arena: ARENA must come first");
    if (length > size || arena_offset > size - length)
        return fail(EINVAL, "{} bytes at {} lie outside the arena of {}", length, arena_offset,
                    size);
    return {};
}

// Inline bytes have no place in the arena; there are at most kInlineMax of them in a packet.
Result<> check_inline(uint64_t arena_offset, uint64_t length) {
    if (arena_offset != 0) return fail(EINVAL, "an arena offset with an inline payload");
    if (length > kInlineMax)
        return fail(EMSGSIZE, "{} bytes inline, at most {} are taken: larger ones need the arena",
                    length, kInlineMax);
    return {};
}

Result<Payload> take_payload(Reader& reader, Source source, uint64_t arena_offset, uint64_t length,
                             const Connection& connection) {
    Payload payload;
    payload.source = source;
    if (source == Source::Arena) {
        A4_CHECK(check_arena(arena_offset, length, connection));
        payload.arena_offset = arena_offset;
        return payload;
    }
    A4_CHECK(check_inline(arena_offset, length));
    payload.bytes = A4_TRY(reader.take_bytes(length));
    return payload;
}

Result<Body> decode_hello(Reader& reader) {
    const auto request = A4_TRY(reader.take<HelloRequest>());
    if (request.magic != kMagic) return fail(EPROTO, "no atomic4 client: the magic is wrong");
    const uint32_t lowest = request.version_min;
    const uint32_t highest = request.version_max;
    if (lowest > highest) return fail(EINVAL, "versions {} to {} are no range", lowest, highest);
    const uint32_t version = std::min(highest, kVersion);
    if (version < lowest || version == 0)
        return fail(EOPNOTSUPP, "versions {} to {} are offered, this daemon speaks {}", lowest,
                    highest, kVersion);
    return Hello{version};
}

Result<Body> decode_arena(Reader& reader, const Connection& connection) {
    if (connection.arena != Bytes(0)) return fail(EPROTO, "the connection has its arena already");
    const auto request = A4_TRY(reader.take<ArenaRequest>());
    if (request.size == 0) return fail(EINVAL, "an arena of 0 bytes");
    if (request.size > kArenaMax)
        return fail(EMSGSIZE, "an arena of {} bytes, at most {} are taken", uint64_t{request.size},
                    kArenaMax);
    return Arena{Bytes(request.size)};
}

Result<Body> decode_open(Reader& reader, const Connection& connection) {
    const auto request = A4_TRY(reader.take<OpenRequest>());
    A4_CHECK(check_zero(request.reserved));
    A4_CHECK(check_flags(request.flags, kOpenFlags));
    if ((request.flags & (kOpenRead | kOpenWrite)) == 0)
        return fail(EINVAL, "opening neither for reading nor for writing");
    if (request.engine > static_cast<uint32_t>(WireEngine::Logged))
        return fail(EINVAL, "{} is no engine", uint32_t{request.engine});
    Open open;
    open.flags = request.flags;
    open.engine = static_cast<WireEngine>(uint32_t{request.engine});
    if (connection.target == TargetKind::Mounted) {
        if (request.path_length != 0)
            return fail(EINVAL, "files of a mounted volume are opened by descriptor, not by path");
        return open;
    }
    if (request.path_length == 0)
        return fail(EINVAL, "files of an unmounted volume are opened by path, and there is none");
    if (request.path_length > kPathMax)
        return fail(ENAMETOOLONG, "a path of {} bytes, at most {} are taken",
                    uint32_t{request.path_length}, kPathMax);
    const auto bytes = A4_TRY(reader.take_bytes(request.path_length));
    open.path = {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
    if (open.path.front() != '/') return fail(EINVAL, "the path doesn't start with '/'");
    if (open.path.find('\0') != std::string_view::npos)
        return fail(EINVAL, "the path has a NUL inside");
    return open;
}

Result<Body> decode_write(Reader& reader, const Connection& connection) {
    const auto request = A4_TRY(reader.take<WriteRequest>());
    A4_CHECK(check_flags(request.flags, kWriteFlags));
    const Source source = A4_TRY(decode_source(request.source));
    const bool plain = (request.flags & kWritePlain) != 0;
    // No unit_max is larger: for an atomic write a rule like the others.
    A4_CHECK(check_range(request.offset, request.length, kWriteMax, plain ? EMSGSIZE : EINVAL));
    Write write;
    write.handle = request.handle;
    write.offset = ByteOffset(request.offset);
    write.length = Bytes(request.length);
    write.plain = plain;
    write.payload =
        A4_TRY(take_payload(reader, source, request.arena_offset, request.length, connection));
    return write;
}

Result<Body> decode_batch(Reader& reader, const Connection& connection) {
    const auto request = A4_TRY(reader.take<BatchRequest>());
    const Source source = A4_TRY(decode_source(request.source));
    if (request.count == 0) return fail(EINVAL, "a batch of 0 ranges");
    if (request.count > kBatchRangesMax)
        return fail(EMSGSIZE, "a batch of {} ranges, at most {} are taken", uint32_t{request.count},
                    kBatchRangesMax);
    // The ranges lie before all payloads: a second reader stays behind them.
    Reader payloads = reader;
    A4_TRY(payloads.take_bytes(uint64_t{request.count} * sizeof(BatchRange)));
    Batch batch;
    batch.ranges.reserve(request.count);
    uint64_t total = 0;  // at most kBatchMax before each addition, so it can't wrap
    for (uint32_t i = 0; i < request.count; ++i) {
        const auto range = A4_TRY(reader.take<BatchRange>());
        A4_CHECK(check_range(range.offset, range.length, kBatchMax));
        total += range.length;
        if (total > kBatchMax)
            return fail(EMSGSIZE, "a batch of more than {} bytes in all", kBatchMax);
        if (source == Source::Inline) A4_CHECK(check_inline(0, total));
        batch.ranges.push_back(
            {range.handle, ByteOffset(range.offset), Bytes(range.length),
             A4_TRY(take_payload(payloads, source, range.arena_offset, range.length, connection))});
    }
    reader = payloads;
    return batch;
}

Result<Body> decode_read(Reader& reader, const Connection& connection) {
    const auto request = A4_TRY(reader.take<ReadRequest>());
    A4_CHECK(check_zero(request.reserved));
    Read read;
    read.into = A4_TRY(decode_source(request.source));
    A4_CHECK(check_range(request.offset, request.length, kReadMax));
    if (read.into == Source::Arena)
        A4_CHECK(check_arena(request.arena_offset, request.length, connection));
    else
        A4_CHECK(check_inline(request.arena_offset, request.length));
    read.handle = request.handle;
    read.offset = ByteOffset(request.offset);
    read.length = Bytes(request.length);
    read.arena_offset = request.arena_offset;
    return read;
}

template <class Message>
Result<Body> decode_handle(Reader& reader) {
    const auto request = A4_TRY(reader.take<HandleRequest>());
    return Message{request.handle};
}

Result<Body> decode_stats(Reader& reader) {
    const auto request = A4_TRY(reader.take<StatsRequest>());
    A4_CHECK(check_zero(request.reserved));
    if (request.format > static_cast<uint32_t>(StatsFormat::Prometheus))
        return fail(EINVAL, "{} is no format of statistics", uint32_t{request.format});
    return Stats{static_cast<StatsFormat>(uint32_t{request.format})};
}

Result<Body> decode_body(Type type, Reader& reader, const Connection& connection) {
    switch (type) {
        case Type::Hello:
            return decode_hello(reader);
        case Type::Arena:
            return decode_arena(reader, connection);
        case Type::Open:
            return decode_open(reader, connection);
        case Type::Write:
            return decode_write(reader, connection);
        case Type::Batch:
            return decode_batch(reader, connection);
        case Type::Read:
            return decode_read(reader, connection);
        case Type::Statx:
            return decode_handle<Statx>(reader);
        case Type::Flush:
            return decode_handle<Flush>(reader);
        case Type::Close:
            return decode_handle<Close>(reader);
        case Type::Stats:
            return decode_stats(reader);
        case Type::Ping:
            return Ping{};
        case Type::Freeze:
            return Freeze{};
        case Type::Thaw:
            return Thaw{};
    }
    return fail(EOPNOTSUPP, "{} is no message of version {} of the protocol",
                static_cast<uint16_t>(type), kVersion);
}

const char* name_of(Type type) {
    switch (type) {
        case Type::Hello:
            return "HELLO";
        case Type::Arena:
            return "ARENA";
        case Type::Open:
            return "OPEN";
        case Type::Write:
            return "WRITE";
        case Type::Batch:
            return "BATCH";
        case Type::Read:
            return "READ";
        case Type::Statx:
            return "STATX";
        case Type::Flush:
            return "FLUSH";
        case Type::Close:
            return "CLOSE";
        case Type::Stats:
            return "STATS";
        case Type::Ping:
            return "PING";
        case Type::Freeze:
            return "FREEZE";
        case Type::Thaw:
            return "THAW";
    }
    return "a message";
}

// Descriptors that a message brings.
size_t descriptors_of(Type type, TargetKind target) {
    if (type == Type::Arena) return 1;
    return type == Type::Open && target == TargetKind::Mounted ? 1 : 0;
}

// A reason is cut between two characters (UTF-8).
std::string_view cut_reason(std::string_view reason) {
    if (reason.size() <= kReasonMax) return reason;
    size_t end = kReasonMax;
    while (end > 0 && (static_cast<unsigned char>(reason[end]) & 0xc0) == 0x80) --end;
    return reason.substr(0, end);
}

void append(std::vector<std::byte>& packet, const void* bytes, size_t count) {
    const auto* first = static_cast<const std::byte*>(bytes);
    packet.insert(packet.end(), first, first + count);
}

ReplyHeader reply_header(Type type, uint64_t tag, size_t length) {
    ReplyHeader header;
    header.type = static_cast<uint16_t>(static_cast<uint16_t>(type) | kReplyBit);
    header.length = static_cast<uint32_t>(length);
    header.tag = tag;
    return header;
}

}  // namespace

Result<RequestHeader> decode_header(std::span<const std::byte> packet) {
    Reader reader(packet);
    auto header = reader.take<RequestHeader>();
    if (!header) return fail(EPROTO, "a packet of {} bytes has no header", packet.size());
    return header;
}

Result<Request> decode(std::span<const std::byte> packet, size_t fd_count,
                       const Connection& connection) {
    const RequestHeader header = A4_TRY(decode_header(packet));
    const auto type = static_cast<Type>(uint16_t{header.type});
    if (connection.greeted == (type == Type::Hello))
        return connection.greeted ? fail(EPROTO, "HELLO comes once")
                                  : fail(EPROTO, "HELLO must come first");
    if (packet.size() > kPacketMax)
        return fail(EMSGSIZE, "a packet of {} bytes, at most {} are taken", packet.size(),
                    kPacketMax);
    if (header.length != packet.size())
        return fail(EINVAL, "the length {} is not the packet's, {}", uint32_t{header.length},
                    packet.size());
    Reader reader(packet.subspan(sizeof header));
    const auto decode_all = [&]() -> Result<Body> {
        A4_CHECK(check_flags(header.flags, 0));
        Body body = A4_TRY(decode_body(type, reader, connection));
        A4_CHECK(reader.at_end());
        if (fd_count != descriptors_of(type, connection.target))
            return fail(EINVAL, "{} descriptors came with it, not {}", fd_count,
                        descriptors_of(type, connection.target));
        return body;
    };
    Body body = A4_TRY(decode_all().context(name_of(type)));
    return Request{header.tag, type, std::move(body)};
}

bool is_wire_error(int code) {
    switch (code) {
        case EPERM:
        case ENOENT:
        case EIO:
        case EBADF:
        case ENOMEM:
        case EACCES:
        case EBUSY:
        case EEXIST:
        case EXDEV:
        case ENOTDIR:
        case EISDIR:
        case EINVAL:
        case EMFILE:
        case EFBIG:
        case ENOSPC:
        case EROFS:
        case ENAMETOOLONG:
        case ELOOP:
        case EPROTO:
        case EMSGSIZE:
        case EOPNOTSUPP:
        case ESHUTDOWN:
        case ESTALE:
        case EUCLEAN:
        case EDQUOT:
            return true;
        default:
            return false;
    }
}

std::vector<std::byte> encode_error(Type type, uint64_t tag, const Error& error) {
    const std::string_view reason = cut_reason(error.message);
    ReplyHeader header = reply_header(type, tag, sizeof header + reason.size());
    header.error = static_cast<uint32_t>(is_wire_error(error.code) ? error.code : EIO);
    header.reason_length = static_cast<uint32_t>(reason.size());
    std::vector<std::byte> packet;
    packet.reserve(sizeof header + reason.size());
    append(packet, &header, sizeof header);
    append(packet, reason.data(), reason.size());
    return packet;
}

std::vector<std::byte> encode_reply(Type type, uint64_t tag, std::span<const std::byte> body,
                                    std::span<const std::byte> tail) {
    const size_t length = sizeof(ReplyHeader) + body.size() + tail.size();
    const ReplyHeader header = reply_header(type, tag, length);
    std::vector<std::byte> packet;
    packet.reserve(length);
    append(packet, &header, sizeof header);
    append(packet, body.data(), body.size());
    append(packet, tail.data(), tail.size());
    return packet;
}

}  // namespace atomic4::wire
