// What the daemon counts, and how it reports it: as JSON (STATS, atomic4ctl) and as Prometheus
// text.
//
// Counters only grow, from 0 at the daemon's start; latencies and percentiles too are since then.
// Counting doesn't allocate. What is a state and not a count comes in a Snapshot, taken by the
// caller when a report is wanted.
// Threads: one.
#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "base/units.h"
#include "daemon/latency_histogram.h"

namespace atomic4 {

enum class WriteKind { Native, Logged, Plain };

// The daemon's state when a report is made.
struct Snapshot {
    std::string target;  // as the daemon was called
    std::string uuid;    // of the volume
    std::string engine;  // auto, native, logged
    uint64_t clients = 0;
    uint64_t open_handles = 0;
    uint64_t files_strict = 0;  // files with handles, by how their writes are acknowledged
    uint64_t files_exclusive = 0;
    Bytes log_used;
    Bytes log_capacity;
    uint64_t live_records = 0;
    Bytes request_memory;   // of requests whose answers aren't sent yet
    bool poisoned = false;  // a log write or flush failed: writes are refused until a restart
    uint64_t late = 0;
    bool frozen = false;
};

class Stats {
  public:
    using Time = LatencyHistogram::Time;

    // A write that was acknowledged as done, from its arrival to its acknowledgement. A batch is
    // one logged write of all its bytes.
    void write(WriteKind kind, Bytes length, Time latency);
    void batch(uint64_t ranges);
    void read(Bytes length, Time latency);
    // A record of the log: the requests in it, and its length there.
    void group(uint64_t requests, Bytes record);
    void ack_strict() { ++strict_; }
    void ack_exclusive() { ++exclusive_; }
    void retired(uint64_t records) { retired_ += records; }
    // A flush of the device or fdatasync of a file.
    void flush(Time latency) { flushes_.record(latency); }
    // A request answered with an error: its errno value.
    void error(int code);
    // An OPEN that authority refused; it is an error too.
    void refused() { ++refused_; }
    // Writes submitted with RWF_ATOMIC.
    void rwf_atomic(uint64_t submissions) { rwf_atomic_ += submissions; }

    nlohmann::ordered_json to_json(const Snapshot& now) const;
    std::string to_prometheus(const Snapshot& now) const;

  private:
    struct Writes {
        uint64_t bytes = 0;
        LatencyHistogram latency;
    };
    static constexpr size_t kKinds = 3;
    // errno values up to it are counted apart; the kernel's are below 134.
    static constexpr size_t kErrors = 160;
    // Group sizes up to 2^0, 2^1, … requests; the last has all that are larger too.
    static constexpr size_t kGroupSizes = 17;

    LatencyHistogram all_writes() const;

    std::array<Writes, kKinds> writes_;
    Writes reads_;
    uint64_t batches_ = 0;
    uint64_t batch_ranges_ = 0;
    std::array<uint64_t, kGroupSizes> group_sizes_{};
    uint64_t groups_ = 0;
    uint64_t group_requests_ = 0;
    uint64_t group_bytes_ = 0;
    uint64_t strict_ = 0;
    uint64_t exclusive_ = 0;
    uint64_t retired_ = 0;
    LatencyHistogram flushes_;
    std::array<uint64_t, kErrors> errors_{};  // [0]: values that aren't counted apart
    uint64_t refused_ = 0;
    uint64_t rwf_atomic_ = 0;
};

}  // namespace atomic4
