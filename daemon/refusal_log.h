// Refusals in the log: who, which file, why; but no client can fill a disk with them.
//
// A user's first refusals are told as they come, kBurst of them; after that one more each kPause.
// What was held back is counted and told in one line, with the last of its reasons. What is
// nobody's fault (a device's) shares one such allowance, whoever was asking.
//
// Control characters, which a client's path may have, are replaced: a line of the log is ours.
// Threads: one.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>

namespace atomic4 {

class RefusalLog {
  public:
    using Clock = std::chrono::steady_clock;
    static constexpr uint32_t kBurst = 20;
    static constexpr std::chrono::seconds kPause{10};

    explicit RefusalLog(std::function<void(const std::string&)> write) : write_(std::move(write)) {}

    // user: whose fault it is, if anybody's.
    void refused(std::optional<uid_t> user, const std::string& what, Clock::time_point now);
    // Tells of what was held back and may be told by now. To be called each kPause while anything
    // is held back, and once at the end with all = true.
    void tell_rest(Clock::time_point now, bool all = false);
    bool holds_back() const { return held_back_ > 0; }

  private:
    struct Allowance {
        uint32_t left = kBurst;
        Clock::time_point since;  // left was right then
        uint64_t held_back = 0;
        std::string last;

        void refill(Clock::time_point now);
        bool untouched() const { return left == kBurst && held_back == 0; }
    };
    void tell(std::optional<uid_t> user, Allowance& allowance);

    std::function<void(const std::string&)> write_;
    std::map<std::optional<uid_t>, Allowance> allowances_;
    uint64_t held_back_ = 0;
};

}  // namespace atomic4
