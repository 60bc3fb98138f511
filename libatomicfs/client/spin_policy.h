// Whether waiting for an answer begins with spinning.
//
// Waking up costs more than a round trip that needs no I/O (facts of this kind: both sides asleep
// 40 to 60 us, spinning 6 us). But while a client spins the daemon may lack the CPU, so it pays
// only where answers come within the time that a client is ready to spin. That is judged by a
// moving average of the latest latencies. The limit is twice that time, since the latency of an
// answer that was slept for contains the waking: a client that stopped spinning begins again when
// the answers are fast.
//
// Threads: one.
#pragma once

#include <algorithm>
#include <chrono>

namespace atomic4 {

class SpinPolicy {
  public:
    using Duration = std::chrono::nanoseconds;

    // 0: never.
    explicit SpinPolicy(Duration limit) : limit_(limit) {}

    Duration limit() const { return limit_; }
    bool worthwhile() const { return limit_ > Duration::zero() && average_ < 2 * limit_; }
    // Capped: one answer that took a second is forgotten after a few fast ones.
    void measured(Duration latency) {
        average_ += (std::min(latency, kCap * limit_) - average_) / kWeight;
    }

  private:
    static constexpr int kCap = 16;
    static constexpr int kWeight = 8;

    Duration limit_;
    Duration average_ = Duration::zero();
};

}  // namespace atomic4
