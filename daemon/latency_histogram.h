// How long things took: a log-linear histogram, as HdrHistogram's.
//
// Each power of two of nanoseconds is divided into 32 buckets, so a percentile is at most 1/32
// off; below 1024 ns the buckets are 32 ns wide. Longer times than 2^37 ns (137 s) count as that.
// A bucket holds the times above its lower and up to its upper bound, which makes the counts up to
// a power of two exact. Recording doesn't allocate and takes a few instructions.
// Threads: one.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>

namespace atomic4 {

class LatencyHistogram {
  public:
    using Time = std::chrono::nanoseconds;
    static constexpr unsigned kLowestPower = 10;
    static constexpr unsigned kHighestPower = 37;

    void record(Time time);  // negative ones count as 0
    void add(const LatencyHistogram& other);

    uint64_t count() const { return count_; }
    Time sum() const { return Time(sum_); }
    Time min() const { return Time(count_ == 0 ? 0 : min_); }
    Time max() const { return Time(max_); }
    Time mean() const { return Time(count_ == 0 ? 0 : sum_ / static_cast<int64_t>(count_)); }
    // The time that this share (0 to 1) of all didn't exceed; 0 if there are none.
    Time quantile(double share) const;
    // How many took at most 2^power ns; power from kLowestPower to kHighestPower.
    uint64_t count_up_to(unsigned power) const;

  private:
    static constexpr unsigned kSubBits = 5;
    static constexpr size_t kSubBuckets = size_t{1} << kSubBits;
    static constexpr size_t kBuckets = kSubBuckets * (1 + kHighestPower - kLowestPower);
    static size_t bucket_of(uint64_t nanoseconds);
    static uint64_t upper_bound(size_t bucket);

    std::array<uint64_t, kBuckets> buckets_{};
    uint64_t count_ = 0;
    int64_t sum_ = 0;
    int64_t min_ = 0;
    int64_t max_ = 0;
};

}  // namespace atomic4
