// The redo log on disk. FORMAT.md, section "Redo log", is the text that decides.
//
// Byte 0 is the log file's first byte; every structure starts on a 4096-byte log block, whatever
// the filesystem's block size is. Two superblocks, then records in a ring from kFirstRecord to
// log_size. Integers are little-endian, reserved bytes zero. Numbers are append-only: a retired one
// keeps its line here as a tombstone.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "base/endian.h"
#include "base/units.h"

namespace atomic4 {

// Random, made with the log. Records carry it rather than the filesystem's UUID, which tune2fs -U
// may change under us.
using LogId = std::array<uint8_t, 16>;

inline constexpr uint64_t kLogBlock = 4096;
inline constexpr size_t kSuperblockSlots = 2;
inline constexpr std::array<ByteOffset, kSuperblockSlots> kSuperblockPosition{ByteOffset(0),
                                                                              ByteOffset(8192)};
inline constexpr ByteOffset kFirstRecord{16384};
inline constexpr Bytes kMinLogSize{uint64_t{64} << 10};

inline constexpr std::array<char, 8> kLogSuperblockMagic{'A', '4', 'R', 'E', 'D', 'O', 'S', 'B'};
inline constexpr std::array<char, 8> kRecordMagic{'A', '4', 'R', 'E', 'C', 'O', 'R', 'D'};

inline constexpr uint32_t kLogVersion = 2;  // 1: records without time and placed
inline constexpr uint32_t kRecordData = 1;
inline constexpr uint32_t kRecordPad = 2;

// LogSuperblock::flags. A placement or flush failed: whatever was placed is not known to be stored.
inline constexpr uint32_t kLogInDoubt = 1;
// Somebody may have opened files of live records unnoticed: their newer bytes count.
inline constexpr uint32_t kLogUnguarded = 2;
// A replay where nobody sees the volume has judged all records and is placing them; the stamp is
// that mount's. If it is cut, what changed the files since was itself.
inline constexpr uint32_t kLogReplaying = 4;
inline constexpr uint32_t kLogFlags = kLogInDoubt | kLogUnguarded | kLogReplaying;

// No session is open and the record space holds nothing, whatever its bytes say.
inline constexpr uint64_t kNoEpoch = 0;
// A higher sequence in a superblock is damage: "sequence + n" never overflows.
inline constexpr uint64_t kMaxSequence = uint64_t{1} << 62;

struct LogSuperblock {
    /* 000 */ std::array<char, 8> magic;
    /* 008 */ le32 version;
    /* 00c */ le32 checksum;  // crc32c(~0) of the 4096 bytes with this field zero
    /* 010 */ LogId log_id;
    /* 020 */ le64 update;  // the valid superblock with the higher one counts
    /* 028 */ le64 epoch;   // random for each session; 0: none is open
    /* 030 */ le64 log_size;
    /* 038 */ le64 tail;  // the oldest record that may be live, or where the next one will go
    /* 040 */ le64 tail_sequence;
    /* 048 */ le64 retired;   // records up to this sequence are placed and flushed
    /* 050 */ le64 fs_mtime;  // s_mtime and s_mnt_count when the session began
    /* 058 */ le32 fs_mnt_count;
    /* 05c */ le32 flags;  // kLogFlags
    /* 060 */ std::array<uint8_t, 0xfa0> reserved;
};
static_assert(sizeof(LogSuperblock) == kLogBlock && alignof(LogSuperblock) == 1);
static_assert(offsetof(LogSuperblock, magic) == 0x000);
static_assert(offsetof(LogSuperblock, version) == 0x008);
static_assert(offsetof(LogSuperblock, checksum) == 0x00c);
static_assert(offsetof(LogSuperblock, log_id) == 0x010);
static_assert(offsetof(LogSuperblock, update) == 0x020);
static_assert(offsetof(LogSuperblock, epoch) == 0x028);
static_assert(offsetof(LogSuperblock, log_size) == 0x030);
static_assert(offsetof(LogSuperblock, tail) == 0x038);
static_assert(offsetof(LogSuperblock, tail_sequence) == 0x040);
static_assert(offsetof(LogSuperblock, retired) == 0x048);
static_assert(offsetof(LogSuperblock, fs_mtime) == 0x050);
static_assert(offsetof(LogSuperblock, fs_mnt_count) == 0x058);
static_assert(offsetof(LogSuperblock, flags) == 0x05c);
static_assert(offsetof(LogSuperblock, reserved) == 0x060);

struct RecordHeader {
    /* 00 */ std::array<char, 8> magic;
    /* 08 */ le32 type;        // kRecordData, kRecordPad
    /* 0c */ le32 header_crc;  // seeded; header_length bytes with this field zero
    /* 10 */ LogId log_id;
    /* 20 */ le64 epoch;
    /* 28 */ le64 sequence;
    /* 30 */ le64 retired;        // records up to this sequence are placed and flushed
    /* 38 */ le64 position;       // where this header stands
    /* 40 */ le64 total_length;   // header, payload and padding; a multiple of 4096
    /* 48 */ le32 header_length;  // this, the ranges and zeros; a multiple of 4096
    /* 4c */ le32 range_count;
    /* 50 */ le32 payload_crc;  // seeded; total_length - header_length bytes
    /* 54 */ le32 flags;        // 0
    /* 58 */ le64 payload_length;
    /* 60 */ le64 time;    // when it was made: nanoseconds since 1970
    /* 68 */ le64 placed;  // records up to this sequence are placed, flushed or not
    /* 70 */ std::array<uint8_t, 16> reserved;
};
static_assert(sizeof(RecordHeader) == 0x80 && alignof(RecordHeader) == 1);
static_assert(offsetof(RecordHeader, magic) == 0x00);
static_assert(offsetof(RecordHeader, type) == 0x08);
static_assert(offsetof(RecordHeader, header_crc) == 0x0c);
static_assert(offsetof(RecordHeader, log_id) == 0x10);
static_assert(offsetof(RecordHeader, epoch) == 0x20);
static_assert(offsetof(RecordHeader, sequence) == 0x28);
static_assert(offsetof(RecordHeader, retired) == 0x30);
static_assert(offsetof(RecordHeader, position) == 0x38);
static_assert(offsetof(RecordHeader, total_length) == 0x40);
static_assert(offsetof(RecordHeader, header_length) == 0x48);
static_assert(offsetof(RecordHeader, range_count) == 0x4c);
static_assert(offsetof(RecordHeader, payload_crc) == 0x50);
static_assert(offsetof(RecordHeader, flags) == 0x54);
static_assert(offsetof(RecordHeader, payload_length) == 0x58);
static_assert(offsetof(RecordHeader, time) == 0x60);
static_assert(offsetof(RecordHeader, placed) == 0x68);
static_assert(offsetof(RecordHeader, reserved) == 0x70);

// In an operation's number: ranges of it that an earlier record had are placed already, so it can't
// be given up any more.
inline constexpr uint32_t kOperationBegun = uint32_t{1} << 31;

// Follow the header at once. A range never crosses a log block: header and block are multiples
// of 32.
struct RecordRange {
    /* 00 */ le32 inode;
    /* 04 */ le32 generation;
    /* 08 */ le64 offset;
    /* 10 */ le32 length;     // of its bytes in the payload; not 0
    /* 14 */ le32 operation;  // ranges of one record with the same number: all or nothing;
                              // kOperationBegun
    /* 18 */ le64 new_size;   // the file's size after the write; 0: unchanged
};
static_assert(sizeof(RecordRange) == 32 && alignof(RecordRange) == 1);
static_assert(offsetof(RecordRange, inode) == 0x00);
static_assert(offsetof(RecordRange, generation) == 0x04);
static_assert(offsetof(RecordRange, offset) == 0x08);
static_assert(offsetof(RecordRange, length) == 0x10);
static_assert(offsetof(RecordRange, operation) == 0x14);
static_assert(offsetof(RecordRange, new_size) == 0x18);
static_assert(sizeof(RecordHeader) % sizeof(RecordRange) == 0);
static_assert(kLogBlock % sizeof(RecordRange) == 0);

}  // namespace atomic4
