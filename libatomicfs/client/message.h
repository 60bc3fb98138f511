// Messages of the socket protocol: the one place that validates them, and that builds replies.
//
// decode() is given a packet and what the connection has established; whatever it returns has
// every field inside its limits, every flag known, every payload inside the packet or the arena, so
// nothing behind it checks again. It touches no descriptor and no arena memory.
//
// Errors: EPROTO: the packet can't be answered or is out of turn (the connection is closed after
// the reply); EINVAL, EMSGSIZE, EFBIG, EOPNOTSUPP (unknown type or version): answered, the
// connection goes on. Threads: any; no state.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/result.h"
#include "base/units.h"
#include "client/wire_format.h"

namespace atomic4::wire {

// What the connection has established.
struct Connection {
    bool greeted = false;
    TargetKind target = TargetKind::Mounted;
    Bytes arena;  // 0: none yet
};

struct Hello {
    uint32_t version = 0;  // the highest that both speak
};
struct Arena {
    Bytes size;
};
struct Open {
    uint32_t flags = 0;
    WireEngine engine = WireEngine::Auto;
    std::string_view path;  // owned
};
// A payload inside the packet, or a place in the arena.
struct Payload {
    Source source = Source::Inline;
    std::span<const std::byte> bytes;  // Inline
    uint64_t arena_offset = 0;         // Arena
};
struct Write {
    uint64_t handle = 0;
    ByteOffset offset;
    Bytes length;
    bool plain = false;
    Payload payload;
};
struct Batch {
    struct Range {
        uint64_t handle = 0;
        ByteOffset offset;
        Bytes length;
        Payload payload;
    };
    std::vector<Range> ranges;
};
struct Read {
    uint64_t handle = 0;
    ByteOffset offset;
    Bytes length;
    Source into = Source::Inline;
    uint64_t arena_offset = 0;
};
struct Statx {
    uint64_t handle = 0;
};
struct Flush {
    uint64_t handle = 0;
};
struct Close {
    uint64_t handle = 0;
};
struct Stats {
    StatsFormat format = StatsFormat::Json;
};
struct Ping {};
struct Freeze {};
struct Thaw {};

using Body = std::variant<Hello, Arena, Open, Write, Batch, Read, Statx, Flush, Close, Stats, Ping,
                          Freeze, Thaw>;
struct Request {
    uint64_t tag = 0;
    Type type = Type::Ping;
    Body body;
};

// The header alone, for the tag of a reply to a packet that decode refuses. EPROTO: no header.
Result<RequestHeader> decode_header(std::span<const std::byte> packet);
// Views in the result point into the packet. fd_count: descriptors that came with it.
Result<Request> decode(std::span<const std::byte> packet, size_t fd_count,
                       const Connection& connection);

// The errno values a reply may carry (PROTOCOL.md); any other becomes EIO.
bool is_wire_error(int code);

// Replies, as complete packets.
std::vector<std::byte> encode_error(Type type, uint64_t tag, const Error& error);
// A reply without error: body and tail follow the header.
std::vector<std::byte> encode_reply(Type type, uint64_t tag, std::span<const std::byte> body,
                                    std::span<const std::byte> tail = {});

}  // namespace atomic4::wire
