// Reads a redo log: what is live, where it ends, and whether that end can be believed.
//
// The log's writer has one write in flight at a time, so a crash damages at most the last record:
// the first invalid record ends the log. Unless a valid one of the same session with a later
// sequence stands anywhere in the space beyond: then something in the middle was lost, which no
// crash does, and the log is Corrupt. The valid records before that are still returned: they were
// acknowledged, and the caller replays them, but leaves the log alone as evidence.
//
// A read error is never taken for the end: it fails the whole reading with EIO and the position.
// Nothing here writes. Memory: the list of records, and what LogContents::windows
// keeps (at most 128 MiB).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/units.h"
#include "device/device.h"
#include "redo/log_buffer.h"
#include "redo/log_record.h"
#include "redo/log_superblock.h"

namespace atomic4 {

// A valid data record. Its payload is its ranges' bytes in order, without gaps.
struct LoggedRecord {
    uint64_t sequence = 0;
    ByteOffset position;
    Bytes total_length;
    ByteOffset payload;  // log position of its first byte
    uint64_t time = 0;   // when it was made: nanoseconds since 1970
    std::vector<RangeRef> ranges;
    uint32_t payload_seed = 0;  // to check the payload again when it is read for replay
    uint32_t payload_crc = 0;
};

enum class LogEnd {
    Clean,     // nothing of this session stands where the next record would
    TornTail,  // the beginning of a record that was never complete, so never acknowledged
    Corrupt,   // a record is missing or damaged although it had been complete
};
const char* to_text(LogEnd end);

// Aligned to log blocks; shared by the payloads that were read at once.
class PayloadMemory {
  public:
    Result<std::span<std::byte>> get(Bytes length) {
        size_ = length;
        return buffer_.get(length);
    }
    Bytes size() const { return size_; }

  private:
    LogBuffer buffer_;
    Bytes size_;
};
// A piece of the log, as it was read.
struct LogWindow {
    ByteOffset start;
    std::span<const std::byte> bytes;
    std::shared_ptr<const PayloadMemory> memory;
};

struct LogContents {
    LogState superblock;            // the one in force
    size_t slot = 0;                // where it stands
    std::string superblock_damage;  // what is wrong with the other one; empty: nothing
    std::vector<LoggedRecord> live;
    uint64_t retired = 0;        // records up to this sequence are placed and flushed
    uint64_t placed = 0;         // records up to this one are placed, flushed or not
    uint64_t next_sequence = 1;  // higher than any that was seen
    ByteOffset head;             // where the next record would go
    LogEnd end = LogEnd::Clean;
    // The log's bytes under live records, in order and without gaps, as far as there is room: so
    // that replay needn't read them again.
    std::vector<LogWindow> windows;
    std::string end_detail;  // for people: what was found at the end; may be empty when Clean
};

// EIO, EUCLEAN, EOPNOTSUPP as in log_superblock.h.
Result<LogContents> read_log(Device& log, const LogId& expected);

// The whole payload, checked again. EIO: can't be read. EUCLEAN: no longer what read_log saw.
Result<std::vector<std::byte>> read_payload(Device& log, const LoggedRecord& record);

struct Payload {
    std::shared_ptr<const PayloadMemory> memory;
    std::span<const std::byte> bytes;
};

// read_payload for many records, in the order of the log: from what read_log has kept, and else
// reading ahead in large pieces.
class PayloadReader {
  public:
    explicit PayloadReader(Device& log, std::span<const LogWindow> windows = {})
        : log_(log), windows_(windows) {}
    Result<Payload> read(const LoggedRecord& record);

  private:
    Result<Payload> find(ByteOffset from, Bytes length);
    Result<> fill(ByteOffset from, Bytes padded);

    Device& log_;
    std::span<const LogWindow> windows_;
    std::vector<std::shared_ptr<PayloadMemory>> pool_;  // used again when nobody else holds it
    std::shared_ptr<PayloadMemory> memory_;
    std::span<std::byte> window_;
    ByteOffset start_;
};

}  // namespace atomic4
