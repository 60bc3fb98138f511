#include "client/reply.h"

#include <algorithm>
#include <cstring>

#include "client/message.h"

namespace atomic4 {
namespace {

using namespace wire;

template <class T>
Result<T> take(std::span<const std::byte>& bytes) {
    T value;
    if (bytes.size() < sizeof value)
        return fail(EPROTO, "an answer ends {} bytes too early", sizeof value - bytes.size());
    std::memcpy(&value, bytes.data(), sizeof value);
    bytes = bytes.subspan(sizeof value);
    return value;
}

std::string text_of(std::span<const std::byte> bytes) {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

template <class Enum>
Result<Enum> take_enum(uint32_t value, Enum first, Enum last) {
    if (value < static_cast<uint32_t>(first) || value > static_cast<uint32_t>(last))
        return fail(EPROTO, "an answer has {} where it can't be", value);
    return static_cast<Enum>(value);
}

Result<WireEngine> take_engine(uint32_t value) {
    return take_enum(value, WireEngine::Auto, WireEngine::Logged);
}
Result<AckMode> take_ack_mode(uint32_t value) {
    return take_enum(value, AckMode::None, AckMode::Strict);
}

Result<Reply::Body> take_hello(std::span<const std::byte>& bytes) {
    const auto hello = A4_TRY(take<HelloReply>(bytes));
    if (hello.version != kVersion || hello.outstanding_max == 0 || hello.reserved != 0)
        return fail(EPROTO, "HELLO was answered with version {}, {} requests outstanding",
                    uint32_t{hello.version}, uint32_t{hello.outstanding_max});
    DaemonInfo info;
    info.version = hello.version;
    info.target = A4_TRY(take_enum(hello.target, TargetKind::Mounted, TargetKind::Owned));
    info.uuid = hello.uuid;
    info.block_size = Bytes(hello.block_size);
    info.outstanding_max = std::min<uint32_t>(hello.outstanding_max, kOutstandingMax);
    info.inline_max = Bytes(std::min<uint32_t>(hello.inline_max, kInlineMax));
    info.arena_max = Bytes(std::min<uint64_t>(hello.arena_max, kArenaMax));
    info.batch_max = Bytes(std::min<uint64_t>(hello.batch_max, kBatchMax));
    return info;
}

Result<Reply::Body> take_open(std::span<const std::byte>& bytes) {
    const auto open = A4_TRY(take<OpenReply>(bytes));
    return File{open.handle, open.inode, open.generation};
}

Result<Reply::Body> take_written(std::span<const std::byte>& bytes) {
    const auto write = A4_TRY(take<WriteReply>(bytes));
    return Written{A4_TRY(take_engine(write.engine)), A4_TRY(take_ack_mode(write.ack_mode))};
}

Result<Reply::Body> take_read(std::span<const std::byte>& bytes, const ExpectedReply& expected) {
    const auto read = A4_TRY(take<ReadReply>(bytes));
    if (read.length > expected.length)
        return fail(EPROTO, "{} bytes were read where {} were asked for", uint64_t{read.length},
                    expected.length);
    Reply::ReadBytes result{read.length, {}};
    if (expected.into == Source::Inline) {
        if (bytes.size() < read.length)
            return fail(EPROTO, "{} bytes were read, but {} came", uint64_t{read.length},
                        bytes.size());
        result.bytes = bytes.first(read.length);
        bytes = bytes.subspan(read.length);
    }
    return result;
}

Result<Reply::Body> take_statx(std::span<const std::byte>& bytes) {
    const auto statx = A4_TRY(take<StatxReply>(bytes));
    if (statx.atomic > 1) return fail(EPROTO, "STATX says atomic {}", uint32_t{statx.atomic});
    FileStatus status;
    status.size = Bytes(statx.size);
    status.inode = statx.inode;
    status.generation = statx.generation;
    status.unit = Bytes(statx.unit);
    status.unit_min = Bytes(statx.unit_min);
    status.unit_max = Bytes(statx.unit_max);
    status.unit_max_native = Bytes(statx.unit_max_native);
    status.unit_max_logged = Bytes(statx.unit_max_logged);
    status.segments_max = statx.segments_max;
    status.engine = A4_TRY(take_engine(statx.engine));
    status.ack_mode = A4_TRY(take_ack_mode(statx.ack_mode));
    status.atomic = statx.atomic == 1;
    status.writes_native = statx.writes_native;
    status.writes_logged = statx.writes_logged;
    const uint64_t texts = uint64_t{statx.why_not_native_length} + statx.why_strict_length;
    if (texts != bytes.size())
        return fail(EPROTO, "STATX announces {} bytes of reasons, {} came", texts, bytes.size());
    status.why_not_native = text_of(bytes.first(statx.why_not_native_length));
    status.why_strict = text_of(bytes.subspan(statx.why_not_native_length));
    bytes = {};
    return status;
}

Result<Reply::Body> take_stats(std::span<const std::byte>& bytes) {
    if (bytes.size() > kTextMax)
        return fail(EPROTO, "STATS has {} bytes, at most {} can be", bytes.size(), kTextMax);
    std::string text = text_of(bytes);
    bytes = {};
    return text;
}

Result<Reply::Body> take_body(std::span<const std::byte>& bytes, const ExpectedReply& expected) {
    switch (expected.type) {
        case Type::Hello:
            return take_hello(bytes);
        case Type::Open:
            return take_open(bytes);
        case Type::Write:
        case Type::Batch:
            return take_written(bytes);
        case Type::Read:
            return take_read(bytes, expected);
        case Type::Statx:
            return take_statx(bytes);
        case Type::Stats:
            return take_stats(bytes);
        case Type::Arena:
        case Type::Flush:
        case Type::Close:
        case Type::Ping:
        case Type::Freeze:
        case Type::Thaw:
            break;
    }
    return Reply::Body();
}

}  // namespace

Result<uint64_t> reply_tag(std::span<const std::byte> packet) {
    return uint64_t{A4_TRY(take<ReplyHeader>(packet)).tag};
}

Result<Reply> decode_reply(std::span<const std::byte> packet, const ExpectedReply& expected) {
    const size_t packet_size = packet.size();
    const auto header = A4_TRY(take<ReplyHeader>(packet));
    if (header.type != (static_cast<uint16_t>(expected.type) | kReplyBit))
        return fail(EPROTO, "a request of type {} was answered with type {:#x}",
                    static_cast<uint16_t>(expected.type), uint16_t{header.type});
    if (header.flags != 0 || header.length != packet_size || packet_size > kPacketMax)
        return fail(EPROTO, "an answer of {} bytes says that its length is {}, its flags {:#x}",
                    packet_size, uint32_t{header.length}, uint16_t{header.flags});
    Reply reply;
    if (header.error != 0) {
        const auto code = static_cast<int>(uint32_t{header.error});
        if (!is_wire_error(code) || header.reason_length > kReasonMax ||
            header.reason_length != packet.size())
            return fail(EPROTO, "an answer has error {} with {} bytes of reason, {} came", code,
                        uint32_t{header.reason_length}, packet.size());
        reply.code = code;
        reply.reason = text_of(packet);
        return reply;
    }
    if (header.reason_length != 0) return fail(EPROTO, "an answer has a reason without an error");
    reply.body = A4_TRY(take_body(packet, expected));
    if (!packet.empty())
        return fail(EPROTO, "{} bytes follow an answer of type {} in its packet", packet.size(),
                    static_cast<uint16_t>(expected.type));
    return reply;
}

}  // namespace atomic4
