#include "daemon/latency_histogram.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace atomic4 {

size_t LatencyHistogram::bucket_of(uint64_t nanoseconds) {
    // One less: the upper bound belongs to the bucket.
    const uint64_t value =
        std::min(std::max<uint64_t>(nanoseconds, 1) - 1, (uint64_t{1} << kHighestPower) - 1);
    const unsigned power =
        std::max(static_cast<unsigned>(std::bit_width(value | 1)) - 1, kLowestPower - 1);
    if (power < kLowestPower) return value >> (kLowestPower - kSubBits);
    return kSubBuckets * (1 + power - kLowestPower) +
           ((value >> (power - kSubBits)) & (kSubBuckets - 1));
}

uint64_t LatencyHistogram::upper_bound(size_t bucket) {
    if (bucket < kSubBuckets) return (bucket + 1) << (kLowestPower - kSubBits);
    const size_t power = kLowestPower + bucket / kSubBuckets - 1;
    return (kSubBuckets + bucket % kSubBuckets + 1) << (power - kSubBits);
}

void LatencyHistogram::record(Time time) {
    const int64_t value = std::max<int64_t>(time.count(), 0);
    ++buckets_[bucket_of(static_cast<uint64_t>(value))];
    min_ = count_ == 0 ? value : std::min(min_, value);
    max_ = std::max(max_, value);
    sum_ += value;
    ++count_;
}

void LatencyHistogram::add(const LatencyHistogram& other) {
    if (other.count_ == 0) return;
    for (size_t i = 0; i < kBuckets; ++i) buckets_[i] += other.buckets_[i];
    min_ = count_ == 0 ? other.min_ : std::min(min_, other.min_);
    max_ = std::max(max_, other.max_);
    sum_ += other.sum_;
    count_ += other.count_;
}

LatencyHistogram::Time LatencyHistogram::quantile(double share) const {
    if (count_ == 0) return Time(0);
    const double rank = std::clamp(std::ceil(share * static_cast<double>(count_)), 1.0,
                                   static_cast<double>(count_));
    const auto wanted = static_cast<uint64_t>(rank);
    size_t bucket = 0;
    for (uint64_t seen = buckets_[0]; seen < wanted && bucket + 1 < kBuckets;)
        seen += buckets_[++bucket];
    return Time(std::clamp(static_cast<int64_t>(upper_bound(bucket)), min_, max_));
}

uint64_t LatencyHistogram::count_up_to(unsigned power) const {
    const size_t end = kSubBuckets * (1 + power - kLowestPower);
    uint64_t count = 0;
    for (size_t i = 0; i < end; ++i) count += buckets_[i];
    return count;
}

}  // namespace atomic4
