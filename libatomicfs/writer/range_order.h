// Which operations may run at once: those whose ranges overlap go one after the other, in the order
// in which they came.
//
// Running operations hold their ranges. Whoever looks for the next to start walks the waiting ones
// in order and asks for each: may_start() is false if it overlaps a running one, or one before it
// in this walk that has to wait. Readers don't exclude each other.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "base/units.h"

namespace atomic4 {

struct HeldRange {
    uint32_t inode = 0;
    ByteOffset offset;
    Bytes length;
    bool operator==(const HeldRange&) const = default;
};
bool overlap(const HeldRange& a, const HeldRange& b);

class RangeOrder {
  public:
    enum class Use { Read, Write };

    // Before a walk over the waiting operations.
    void begin_walk() { passed_over_.clear(); }
    bool may_start(std::span<const HeldRange> ranges, Use use);
    // The operation has to wait, for whatever reason: those behind it that overlap it too.
    void pass_over(std::span<const HeldRange> ranges, Use use);

    void hold(std::span<const HeldRange> ranges, Use use);
    void release(std::span<const HeldRange> ranges, Use use);

    bool idle() const { return writers_.empty() && readers_.empty(); }

  private:
    struct Held {
        HeldRange range;
        Use use;
    };
    bool running(const HeldRange& range, Use use) const;

    // Ranges that are being written don't overlap: by inode and offset, to their end.
    std::map<std::pair<uint32_t, uint64_t>, uint64_t> writers_;
    std::vector<HeldRange> readers_;
    std::vector<Held> passed_over_;
};

}  // namespace atomic4
