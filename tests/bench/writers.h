// Threads that write, each one write at a time, all beginning at once, and what the machine spent
// meanwhile.
#pragma once

#include <functional>
#include <random>

#include "bench/bench.h"

namespace atomic4::bench {

struct Load {
    unsigned writers = 1;
    uint64_t unit = 16 * kKiB;
    double seconds = 1;
    bool operator==(const Load&) const = default;
};

struct Figures {
    double writes_per_second = 0;
    // Processor time of the whole machine: client, daemon and kernel, whatever else runs included.
    double cpu_us_per_write = 0;
    std::string note;
};

// One writer's random, aligned offsets.
class Offsets {
  public:
    Offsets(unsigned seed, uint64_t file_size, uint64_t unit)
        : random_(seed), units_(file_size / unit), unit_(unit) {}
    uint64_t next() { return random_() % units_ * unit_; }

  private:
    std::mt19937_64 random_;
    uint64_t units_;
    uint64_t unit_;
};

// Processor seconds that the whole machine has spent since it started.
double busy_seconds();

// Writes once, or one batch; returns how many writes that were.
using WriteOnce = std::function<uint64_t()>;
// Made in the writer's own thread. What it throws, run_writers throws.
using MakeWriter = std::function<WriteOnce(unsigned index)>;

// Runs so many writers for load.seconds, after a few writes each to warm up.
Figures run_writers(const Load& load, const MakeWriter& make_writer);

}  // namespace atomic4::bench
