// A number that grows, and that threads and processes wait for: in a SharedValue
// (support/forked.h), other processes too, which std::atomic::wait can't.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <climits>
#include <cstdint>
#include <ctime>

namespace atomic4::test {

class SharedCount {
  public:
    uint32_t value() const { return value_; }
    void set(uint32_t value) {
        value_ = value;
        wake();
    }
    void add() {
        ++value_;
        wake();
    }
    // Until it is that or more.
    void wait_for(uint32_t value) const {
        for (uint32_t now = value_; now < value; now = value_) sleep(now, nullptr);
    }
    // False: it isn't by then.
    bool wait_for(uint32_t value, std::chrono::steady_clock::time_point end) const {
        const auto ns =
            std::chrono::duration_cast<std::chrono::nanoseconds>(end.time_since_epoch()).count();
        const timespec limit{ns / 1'000'000'000, ns % 1'000'000'000};
        uint32_t now = value_;
        for (; now < value && std::chrono::steady_clock::now() < end; now = value_)
            sleep(now, &limit);
        return now >= value;
    }

  private:
    void wake() { ::syscall(SYS_futex, &value_, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0); }
    // While the value is that; also shorter. The limit is a time of CLOCK_MONOTONIC.
    void sleep(uint32_t value, const timespec* limit) const {
        ::syscall(SYS_futex, &value_, FUTEX_WAIT_BITSET, value, limit, nullptr,
                  FUTEX_BITSET_MATCH_ANY);
    }

    std::atomic<uint32_t> value_{0};
};

}  // namespace atomic4::test
