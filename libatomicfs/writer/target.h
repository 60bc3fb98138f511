// Target: a volume that takes writes from many clients at once: what the daemon serves.
//
// Two kinds: a mounted volume (mounted_target.h), whose log and data are written through files, and
// an owned one (owned_target.h), written on the device. Both take the same operations with the same
// rules (write_rules.h), and acknowledge in the same sense:
//
//   atomic, batch   durable, all old or all new after a crash; a read begun afterwards returns it
//   plain           in the file; durable after flush()
//
// Operations that overlap are carried out one after the other in the order of their submission,
// whatever their kinds and engines. Others may overtake each other.
//
// Data is the caller's and must stay valid until `done` is called; a logged write is copied
// once, so if the caller changes it meanwhile only its own bytes are affected.
//
// After a failed log write, placement or flush everything is refused as "in doubt" (poisoned())
// until a restart has recovered.
//
// Threads: one, the event loop's. Completions are called from the loop, never from inside the call.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/units.h"
#include "device/event_loop.h"
#include "writer/write_rules.h"

namespace atomic4 {

// A file that clients have open; the same object for all who have the same inode open.
class TargetFile {
  public:
    virtual ~TargetFile() = default;
    uint32_t inode = 0;
    uint32_t generation = 0;
    uint64_t writes_native = 0;
    uint64_t writes_logged = 0;
};
using FileRef = std::shared_ptr<TargetFile>;

enum class Ack { None, Exclusive, Strict };

struct WriteDone {
    Engine engine = Engine::Auto;  // Native or Logged; Auto for a plain write
    Ack ack = Ack::None;
};

struct WriteOp {
    enum class Kind { Atomic, Batch, Plain };
    struct Range {
        FileRef file;
        ByteOffset offset;
        std::span<const std::byte> data;
    };
    Kind kind = Kind::Atomic;
    Engine engine = Engine::Auto;  // Atomic only
    std::vector<Range> ranges;     // one, unless a batch
    std::function<void(Result<WriteDone>)> done;
};

struct FileLimits {
    Bytes size;
    Bytes unit;  // 0: not an atomic file
    Bytes unit_min;
    Bytes unit_max;
    Bytes unit_max_native;
    Bytes unit_max_logged;
    Engine engine = Engine::Logged;  // that would serve a write of one unit
    Ack ack = Ack::Strict;
    bool atomic = false;
    std::string why_not_native;
    std::string why_strict;
};

// Counts for STATS, running totals unless said otherwise.
struct TargetCounts {
    uint64_t writes_native = 0, bytes_native = 0;
    uint64_t writes_logged = 0, bytes_logged = 0;
    uint64_t writes_plain = 0, bytes_plain = 0;
    uint64_t batches = 0, reads = 0, bytes_read = 0, flushes = 0;
    uint64_t acks_strict = 0, acks_exclusive = 0;
    uint64_t groups = 0;
    uint64_t retirements = 0;
    uint64_t atomic_submissions = 0;  // RWF_ATOMIC writes given to the kernel
    Bytes log_used, log_capacity;     // now
    uint64_t live_records = 0;        // now
    uint64_t late = 0;                // now: placements that a file's lock keeps waiting
    bool frozen = false;              // now
    uint64_t files = 0, files_strict = 0, files_exclusive = 0;  // now
};

class Target {
  public:
    virtual ~Target() = default;

    virtual void submit(std::unique_ptr<WriteOp> op) = 0;
    // What is stored now; `done` gets how many bytes lie before EOF.
    virtual void read(FileRef file, ByteOffset offset, std::span<std::byte> into,
                      std::function<void(Result<Bytes>)> done) = 0;
    // All that was acknowledged on the file, plain writes too, is durable; null: on all files.
    virtual void flush(FileRef file, std::function<void(Result<>)> done) = 0;
    virtual Result<FileLimits> limits(const FileRef& file) = 0;
    // One client less has the file open. The last one's: its records retire.
    virtual void close(FileRef file) = 0;

    // Retires everything and holds new writes until thaw.
    virtual void freeze(std::function<void(Result<>)> done) = 0;
    virtual void thaw() = 0;
    // Finishes what was submitted, retires everything, ends the session. Nothing may be submitted
    // afterwards.
    virtual void stop(std::function<void(Result<>)> done) = 0;

    virtual const std::string* poisoned() const = 0;  // why, or null
    virtual Bytes block_size() const = 0;
    virtual Bytes batch_max() const = 0;  // payload bytes of one batch
    virtual TargetCounts counts() const = 0;
    // For each group: how many requests its record carries, and its length in the log.
    std::function<void(size_t requests, Bytes record)> on_group;
    // Told when a placement has waited long for a file that somebody keeps locked.
    std::function<void(uint32_t inode)> on_late;
    // Requests are under way whose end a device decides: spinning for clients would only cost.
    virtual bool device_busy() const = 0;
};

}  // namespace atomic4
