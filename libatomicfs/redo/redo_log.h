// The redo log's writer: makes a group of writes durable, as one, before anyone places them.
//
// A session begins on a log without live records. Then, in a loop that the atomic writer drives:
//
//   append           one record is durable: the group's writes can no longer be lost or torn
//   (the caller)     places the payloads, says so (note_placed), and flushes them
//   note_retired     later records say so
//   persist_retired  both superblocks say so, and the space is free again
//
// append and persist_retired write themselves. Callers that do their own I/O use the halves that
// these are made of: stage_… says which bytes to write where, durably and in order; finish_… is
// told how that went. Of each kind one may be under way at a time.
//
// A record is *live* while replay would still apply it: until its retirement is durable, in a later
// record or in a superblock. Noting it is not enough. Replaying a live record over newer bytes
// loses them, so nothing else may write its ranges before (overlaps_live).
//
// A failed log write is final. Whether its bytes are on disk is unknown, so nothing may follow
// them: the log is poisoned, and every later append or persist is EIO, "in doubt", until a restart
// reads the log afresh.
//
// Threads: one at a time; the views that append returns may be read by others meanwhile.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/units.h"
#include "device/device.h"
#include "redo/log_buffer.h"
#include "redo/log_reader.h"

namespace atomic4 {

// The longest single write that a log of this capacity promises: min(4 MiB, largest power of two
// <= capacity / 4).
Bytes log_unit_max(Bytes capacity);

class RedoLog {
  public:
    // A new, empty log over the whole device, rounded down to log blocks. Whatever was there is
    // forgotten. EINVAL: too small.
    static Result<> format(Device& log, const LogId& id, SessionStamp stamp);

    // Begins a session, under a new epoch that is durable in both superblocks before anything
    // else. EBUSY: the log has live records or is corrupt (replay it, then reset_log).
    static Result<std::unique_ptr<RedoLog>> begin(Device& log, const LogContents& contents,
                                                  SessionStamp stamp);

    Bytes capacity() const { return state_.capacity(); }
    Bytes unit_max() const { return log_unit_max(capacity()); }
    // The longest record: half the ring, at most 1 GiB. It fits wherever the head stands once the
    // log is empty.
    Bytes record_max() const;

    struct Appended {
        uint64_t sequence = 0;
        // The log's own copy, one view a range, and what must be placed: the client may change its
        // memory. Valid as long as `memory` is kept, which the next appends do without then.
        std::vector<std::span<const std::byte>> payloads;
        std::shared_ptr<const LogBuffer> memory;
    };

    // Bytes to be written durably at a log position.
    struct LogWrite {
        ByteOffset position;
        std::span<const std::byte> bytes;
    };
    // The first, if there is a pad, must be durable before the second is begun.
    struct Staged {
        std::vector<LogWrite> writes;
        Appended appended;
    };

    // Writes one record with all ranges, durable when it returns. EINVAL: no ranges, an empty one,
    // or data that doesn't match. EMSGSIZE: longer than record_max. EAGAIN: no room before records
    // retire; nothing was written. EIO: the log is poisoned, now or before.
    Result<Appended> append(std::span<const RangeRef> ranges,
                            std::span<const std::span<const std::byte>> data);
    bool has_room(std::span<const RangeRef> ranges) const;
    // What a record of this length, header and padding included, leaves free; nothing: it has no
    // room now.
    std::optional<Bytes> free_after(Bytes record) const;
    // The record in memory, with append's errors; nothing is written.
    Result<Staged> stage_append(std::span<const RangeRef> ranges,
                                std::span<const std::span<const std::byte>> data);
    // All writes of the staged append are durable, or one failed.
    Result<> finish_append(Result<> written);

    // Records up to this sequence are placed, though perhaps not flushed.
    void note_placed(uint64_t sequence);
    // Records up to this sequence are placed and flushed.
    void note_retired(uint64_t sequence);
    // Makes that durable and frees the space. Writes nothing if there is nothing new.
    Result<> persist_retired();
    // The next superblock to write for that; nothing if both say it. After the first of two,
    // what was noted is no longer live; after the second the space is free.
    std::optional<LogWrite> stage_retired();
    Result<> finish_retired(Result<> written);
    // Sets flags (kLogInDoubt, …) in both superblocks, durably, also in a poisoned log.
    Result<> mark(uint32_t flags);
    // Ends the session: EBUSY while anything is live. Afterwards a reader needn't search the log.
    Result<> close();

    bool empty() const;  // nothing is live
    uint64_t live_count() const;
    bool overlaps_live(uint32_t inode, ByteOffset offset, Bytes length) const;
    bool has_live(uint32_t inode) const;
    // 0: none was ever written.
    uint64_t last_sequence() const { return next_sequence_ - 1; }
    uint64_t durable_retired() const { return durable_retired_; }
    Bytes used() const { return used_; }

    bool poisoned() const { return !why_.empty(); }
    const std::string& why() const { return why_; }

  private:
    struct Entry {
        uint64_t sequence;
        Bytes length;
        std::vector<RangeRef> ranges;  // none: a pad
    };

    RedoLog(Device& log, const LogState& state, size_t in_force);

    Bytes pad_before(Bytes record) const;
    bool fits(Bytes record) const { return free_after(record).has_value(); }
    Result<std::shared_ptr<LogBuffer>> free_buffer(Bytes length);
    Result<> check_usable() const;
    tl::unexpected<Error> poison(Error error, std::string_view doing);
    RecordHeader start_header(uint64_t sequence, ByteOffset position) const;
    std::span<const std::byte> build_pad(std::span<std::byte> block, Bytes length) const;
    std::span<const std::byte> build_record(std::span<std::byte> record, uint64_t sequence,
                                            ByteOffset position, std::span<const RangeRef> ranges,
                                            std::span<const std::span<const std::byte>> data,
                                            Bytes payload) const;
    void free_entries();
    std::deque<Entry>::const_iterator first_live() const;

    Device& log_;
    LogState state_;                                       // as the superblock in force has it
    size_t in_force_;                                      // the slot of the newer one
    std::array<uint64_t, kSuperblockSlots> slot_retired_;  // as each has it

    ByteOffset head_;
    ByteOffset front_;  // where the oldest of entries_ stands
    uint64_t next_sequence_;
    uint64_t noted_placed_;   // the caller's word
    uint64_t noted_retired_;  // likewise
    uint64_t staged_retired_ = 0;
    uint64_t durable_retired_;   // what replay would know
    std::deque<Entry> entries_;  // everything that either superblock may still start from
    Bytes used_;                 // their lengths: space that must not be overwritten
    std::vector<Entry> staged_;  // being written
    std::vector<std::shared_ptr<LogBuffer>> buffers_;  // kept by others, or free
    LogBuffer pad_buffer_;
    LogBuffer superblock_buffer_;
    bool closed_ = false;
    bool storing_ = false;
    std::string why_;
};

// After a replay or a discard: empties the log and closes it. All of its records, also those beyond
// a gap in a corrupt log, are gone.
Result<> reset_log(Device& log, const LogContents& contents, SessionStamp stamp);

}  // namespace atomic4
