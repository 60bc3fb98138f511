// Replies as the client reads them: the counterpart of message.h, and as distrustful. Whatever
// decode_reply returns has an error code of the closed set, lengths inside what was asked for, and
// views inside the packet.
//
// Errors: EPROTO: the daemon sent what PROTOCOL.md doesn't allow. Threads: any; no state.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <variant>

#include "base/result.h"
#include "base/units.h"
#include "client/wire_format.h"

namespace atomic4 {

// What HELLO tells.
struct DaemonInfo {
    uint32_t version = 0;
    wire::TargetKind target = wire::TargetKind::Mounted;
    std::array<uint8_t, 16> uuid{};  // of the volume
    Bytes block_size;
    uint32_t outstanding_max = 1;
    Bytes inline_max;
    Bytes arena_max;
    Bytes batch_max;
};

// A file opened through the daemon.
struct File {
    uint64_t handle = 0;
    uint32_t inode = 0;
    uint32_t generation = 0;
};

// How a write became durable. A plain one: Auto and None, and it isn't yet.
struct Written {
    wire::WireEngine engine = wire::WireEngine::Auto;
    wire::AckMode ack_mode = wire::AckMode::None;
};

struct FileStatus {
    Bytes size;
    uint32_t inode = 0;
    uint32_t generation = 0;
    Bytes unit;  // 0: not an atomic file
    Bytes unit_min;
    Bytes unit_max;
    Bytes unit_max_native;  // 0: none
    Bytes unit_max_logged;
    uint32_t segments_max = 0;
    wire::WireEngine engine = wire::WireEngine::Auto;  // that would serve a write of one unit
    wire::AckMode ack_mode = wire::AckMode::None;
    bool atomic = false;  // the inode has the atomic flag
    uint64_t writes_native = 0;
    uint64_t writes_logged = 0;
    std::string why_not_native;
    std::string why_strict;
};

struct Reply {
    // Of a READ. bytes: a view into the packet; empty if they are in the arena.
    struct ReadBytes {
        uint64_t length = 0;
        std::span<const std::byte> bytes;
    };
    using Body =
        std::variant<std::monostate, DaemonInfo, File, Written, ReadBytes, FileStatus, std::string>;

    int code = 0;  // 0, or an errno value of the closed set
    std::string reason;
    Body body;  // none with an error, or if the type has none
};

// What a reply is measured against.
struct ExpectedReply {
    wire::Type type = wire::Type::Ping;
    wire::Source into = wire::Source::Inline;  // READ
    uint64_t length = 0;                       // READ: bytes asked for
};

// The tag alone, to find the request that a packet answers.
Result<uint64_t> reply_tag(std::span<const std::byte> packet);
Result<Reply> decode_reply(std::span<const std::byte> packet, const ExpectedReply& expected);

}  // namespace atomic4
