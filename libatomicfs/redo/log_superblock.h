// The two superblocks of the redo log: what a session starts from.
//
// Only one is written at a time, each durably, so a torn write leaves the other. They are always
// rewritten both, the one that is *not* in force first: at every moment a valid superblock says
// either the old state or the new one. Space counts as free only when both have passed it, so
// reading from the older one is correct too, merely longer.
//
// Errors: EIO for a failed read or write, which never counts as "invalid" (the bytes may be fine
// and newer); EUCLEAN when no superblock can be trusted or they are another log's; EOPNOTSUPP for a
// version or flag that this code doesn't know.
#pragma once

#include <string>

#include "base/result.h"
#include "base/units.h"
#include "device/device.h"
#include "redo/log_format.h"

namespace atomic4 {

// The filesystem's s_mtime and s_mnt_count when the session began: if they have changed, somebody
// mounted the volume since, and files may be newer than the records.
struct SessionStamp {
    uint64_t fs_mtime = 0;
    uint32_t fs_mnt_count = 0;
    bool operator==(const SessionStamp&) const = default;
};

// A superblock, decoded. The fields are log_format.h's.
struct LogState {
    LogId log_id{};
    uint64_t update = 0;
    uint64_t epoch = kNoEpoch;
    Bytes log_size;
    ByteOffset tail = kFirstRecord;
    uint64_t tail_sequence = 1;
    uint64_t retired = 0;
    SessionStamp stamp;
    uint32_t flags = 0;

    Bytes capacity() const { return ByteOffset(log_size.value()) - kFirstRecord; }
    ByteOffset end() const { return ByteOffset(log_size.value()); }
    bool operator==(const LogState&) const = default;
};

struct ChosenSuperblock {
    LogState state;
    size_t slot = 0;
    std::string damage;  // what is wrong with the other one; empty: nothing
};

LogSuperblock encode_superblock(const LogState& state);

// EUCLEAN: damaged. EOPNOTSUPP: sound, but of an unknown kind.
Result<LogState> decode_superblock(const LogSuperblock& raw, Bytes device_size);

// Reads both and picks the one in force.
Result<ChosenSuperblock> read_superblocks(Device& log, const LogId& expected);

// The id in a log's superblocks, when nobody knows it. EUCLEAN: neither is valid.
Result<LogId> read_log_id(Device& log);

// Sets flags (kLogUnguarded, …) in the log of somebody who is gone, if a session is open in it.
Result<> mark_log(Device& log, const LogId& expected, uint32_t flags);

// Writes state to both slots, `in_force` last, raising state.update for each. Durable when it
// returns; after an error, either state may be in force.
Result<> store_superblocks(Device& log, LogState& state, size_t in_force);

}  // namespace atomic4
