// The daemon's socket protocol, byte by byte. daemon/PROTOCOL.md is the text that decides.
//
// AF_UNIX SOCK_SEQPACKET: one message is one packet. A client sends requests, each with a tag of
// its choice; the daemon answers each once, with the same tag, in any order. Integers are
// little-endian, reserved bytes and unknown flags zero: anything else is refused. Numbers are
// append-only: a retired one keeps its line here as a tombstone.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "base/endian.h"

namespace atomic4::wire {

inline constexpr std::array<char, 8> kMagic{'A', '4', 'S', 'O', 'C', 'K', 'E', 'T'};
inline constexpr uint32_t kVersion = 1;

// Limits of one connection.
inline constexpr uint32_t kInlineMax = 64 << 10;            // payload bytes inside a packet
inline constexpr uint32_t kPacketMax = kInlineMax + 40960;  // of any message, either way
inline constexpr uint32_t kOutstandingMax = 256;            // requests without an answer yet
inline constexpr uint32_t kHandlesMax = 1024;               // open handles
inline constexpr uint32_t kBatchRangesMax = 1024;           // ranges of a batch
inline constexpr uint64_t kArenaMax = uint64_t{1} << 30;    // bytes of the shared memory arena
inline constexpr uint64_t kReadMax = uint64_t{4} << 20;     // bytes of one READ
inline constexpr uint64_t kWriteMax = uint64_t{4} << 20;    // bytes of one WRITE, atomic or plain
inline constexpr uint64_t kBatchMax = uint64_t{64}
                                      << 20;      // bytes of a batch; the log may allow less
inline constexpr uint32_t kPathMax = 4095;        // bytes of a path
inline constexpr uint32_t kReasonMax = 1024;      // bytes of a reason in words
inline constexpr uint32_t kTextMax = kInlineMax;  // bytes of a STATS text

enum class Type : uint16_t {
    Hello = 1,
    Arena = 2,
    Open = 3,
    Write = 4,
    Batch = 5,
    Read = 6,
    Statx = 7,
    Flush = 8,
    Close = 9,
    Stats = 10,
    Ping = 11,
    Freeze = 12,  // root only: retire everything and hold new writes
    Thaw = 13,
};
inline constexpr uint16_t kReplyBit = 0x8000;  // set in a reply's type

// Of OPEN.
inline constexpr uint32_t kOpenRead = 1;
inline constexpr uint32_t kOpenWrite = 2;
inline constexpr uint32_t kOpenAtomic = 4;       // O_ATOMIC: anything but atomic writes is refused
inline constexpr uint32_t kOpenCooperative = 8;  // "I write this file only through the daemon"
inline constexpr uint32_t kOpenFlags = 15;
// Of WRITE.
inline constexpr uint32_t kWritePlain = 1;  // neither atomic nor durable before FLUSH
inline constexpr uint32_t kWriteFlags = 1;

enum class Source : uint32_t { Inline = 0, Arena = 1 };  // where a payload is, or a READ goes
enum class WireEngine : uint32_t { Auto = 0, Native = 1, Logged = 2 };
enum class AckMode : uint32_t { None = 0, Exclusive = 1, Strict = 2 };
enum class TargetKind : uint32_t { Mounted = 1, Owned = 2 };
enum class StatsFormat : uint32_t { Json = 0, Prometheus = 1 };

struct RequestHeader {
    /* 00 */ le16 type;
    /* 02 */ le16 flags;   // 0
    /* 04 */ le32 length;  // of the packet
    /* 08 */ le64 tag;
};
struct ReplyHeader {
    /* 00 */ le16 type;  // the request's, with kReplyBit
    /* 02 */ le16 flags;
    /* 04 */ le32 length;
    /* 08 */ le64 tag;
    /* 10 */ le32 error;          // 0, or an errno value of the closed set (message.h)
    /* 14 */ le32 reason_length;  // bytes of reason, the packet's last; 0 without error
};

// Requests: a RequestHeader, then one of these. No body: STATS has one, PING, FREEZE, THAW none.
struct HelloRequest {
    /* 00 */ std::array<char, 8> magic;
    /* 08 */ le32 version_min;  // the client speaks these
    /* 0c */ le32 version_max;
};
struct ArenaRequest {  // with one descriptor: a memfd with F_SEAL_SHRINK
    /* 00 */ le64 size;
};
struct OpenRequest {  // mounted: with one descriptor and no path; owned: with a path
    /* 00 */ le32 flags;
    /* 04 */ le32 engine;
    /* 08 */ le32 path_length;
    /* 0c */ le32 reserved;
};
struct WriteRequest {  // Source::Inline: the payload follows
    /* 00 */ le64 handle;
    /* 08 */ le64 offset;
    /* 10 */ le64 length;
    /* 18 */ le64 arena_offset;
    /* 20 */ le32 flags;
    /* 24 */ le32 source;
};
struct BatchRequest {  // then BatchRanges, then (Source::Inline) their payloads in order
    /* 00 */ le32 count;
    /* 04 */ le32 source;
};
struct BatchRange {
    /* 00 */ le64 handle;
    /* 08 */ le64 offset;
    /* 10 */ le64 length;
    /* 18 */ le64 arena_offset;
};
struct ReadRequest {
    /* 00 */ le64 handle;
    /* 08 */ le64 offset;
    /* 10 */ le64 length;
    /* 18 */ le64 arena_offset;
    /* 20 */ le32 source;
    /* 24 */ le32 reserved;
};
struct HandleRequest {  // STATX, FLUSH, CLOSE
    /* 00 */ le64 handle;
};
struct StatsRequest {
    /* 00 */ le32 format;
    /* 04 */ le32 reserved;
};

// Replies: a ReplyHeader, then, without error, one of these. ARENA, FLUSH, CLOSE, PING, FREEZE,
// THAW have none; STATS has its text.
struct HelloReply {
    /* 00 */ le32 version;
    /* 04 */ le32 target;  // TargetKind
    /* 08 */ std::array<uint8_t, 16> uuid;
    /* 18 */ le32 block_size;
    /* 1c */ le32 outstanding_max;
    /* 20 */ le32 inline_max;
    /* 24 */ le32 reserved;
    /* 28 */ le64 arena_max;
    /* 30 */ le64 batch_max;  // payload bytes of a batch that the log takes
};
struct OpenReply {
    /* 00 */ le64 handle;
    /* 08 */ le32 inode;
    /* 0c */ le32 generation;
};
struct WriteReply {          // WRITE and BATCH
    /* 00 */ le32 engine;    // Native or Logged; Auto for a plain write
    /* 04 */ le32 ack_mode;  // AckMode
};
struct ReadReply {  // Source::Inline: the bytes follow
    /* 00 */ le64 length;
};
struct StatxReply {  // then why_not_native, then why_strict
    /* 00 */ le64 size;
    /* 08 */ le32 inode;
    /* 0c */ le32 generation;
    /* 10 */ le64 unit;  // 0: not an atomic file
    /* 18 */ le64 unit_min;
    /* 20 */ le64 unit_max;
    /* 28 */ le64 unit_max_native;  // 0: none
    /* 30 */ le64 unit_max_logged;
    /* 38 */ le32 segments_max;
    /* 3c */ le32 engine;  // that would serve a write of one unit
    /* 40 */ le32 ack_mode;
    /* 44 */ le32 atomic;  // 1: the inode has the atomic flag
    /* 48 */ le64 writes_native;
    /* 50 */ le64 writes_logged;
    /* 58 */ le32 why_not_native_length;
    /* 5c */ le32 why_strict_length;
};

static_assert(sizeof(RequestHeader) == 16 && sizeof(ReplyHeader) == 24);
static_assert(sizeof(HelloRequest) == 16 && sizeof(HelloReply) == 56);
static_assert(sizeof(ArenaRequest) == 8 && sizeof(OpenRequest) == 16 && sizeof(OpenReply) == 16);
static_assert(sizeof(WriteRequest) == 40 && sizeof(WriteReply) == 8);
static_assert(sizeof(BatchRequest) == 8 && sizeof(BatchRange) == 32);
static_assert(sizeof(ReadRequest) == 40 && sizeof(ReadReply) == 8);
static_assert(sizeof(HandleRequest) == 8 && sizeof(StatsRequest) == 8);
static_assert(sizeof(StatxReply) == 0x60);
static_assert(sizeof(BatchRequest) + kBatchRangesMax * sizeof(BatchRange) + sizeof(RequestHeader) +
                  kInlineMax <=
              kPacketMax);

}  // namespace atomic4::wire
