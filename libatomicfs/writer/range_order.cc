#include "writer/range_order.h"

#include <algorithm>

namespace atomic4 {

bool overlap(const HeldRange& a, const HeldRange& b) {
    return a.inode == b.inode && a.offset < b.offset + b.length && b.offset < a.offset + a.length;
}

bool RangeOrder::running(const HeldRange& range, Use use) const {
    const uint64_t begin = range.offset.value();
    const uint64_t end = begin + range.length.value();
    auto it = writers_.lower_bound({range.inode, begin});
    if (it != writers_.end() && it->first.first == range.inode && it->first.second < end)
        return true;
    if (it != writers_.begin()) {
        --it;
        if (it->first.first == range.inode && it->second > begin) return true;
    }
    return use == Use::Write &&
           std::ranges::any_of(readers_, [&](const HeldRange& r) { return overlap(r, range); });
}

bool RangeOrder::may_start(std::span<const HeldRange> ranges, Use use) {
    return std::ranges::none_of(ranges, [&](const HeldRange& range) {
        return running(range, use) || std::ranges::any_of(passed_over_, [&](const Held& before) {
                   return (use == Use::Write || before.use == Use::Write) &&
                          overlap(before.range, range);
               });
    });
}

void RangeOrder::pass_over(std::span<const HeldRange> ranges, Use use) {
    for (const HeldRange& range : ranges) passed_over_.push_back({range, use});
}

void RangeOrder::hold(std::span<const HeldRange> ranges, Use use) {
    for (const HeldRange& range : ranges) {
        if (use == Use::Read)
            readers_.push_back(range);
        else
            writers_[{range.inode, range.offset.value()}] = (range.offset + range.length).value();
    }
}

void RangeOrder::release(std::span<const HeldRange> ranges, Use use) {
    for (const HeldRange& range : ranges) {
        if (use == Use::Read)
            readers_.erase(std::ranges::find(readers_, range));
        else
            writers_.erase({range.inode, range.offset.value()});
    }
}

}  // namespace atomic4
