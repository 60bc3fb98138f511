// A set of byte ranges of one file: what later records have settled already.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>
#include <vector>

namespace atomic4 {

struct FilePiece {
    uint64_t begin = 0;
    uint64_t end = 0;  // after it
    uint64_t length() const { return end - begin; }
};

class RangeCover {
  public:
    // The parts of a range that are not in the set, in order.
    std::vector<FilePiece> missing(FilePiece range) const {
        std::vector<FilePiece> parts;
        auto next = after(range.begin);
        while (range.begin < range.end) {
            if (next == ranges_.end() || next->first >= range.end) {
                parts.push_back(range);
                break;
            }
            if (next->first > range.begin) parts.push_back({range.begin, next->first});
            range.begin = next->second;
            ++next;
        }
        return parts;
    }

    void add(FilePiece range) {
        if (range.begin >= range.end) return;
        auto next = after(range.begin);
        while (next != ranges_.end() && next->first <= range.end) {
            range.begin = std::min(range.begin, next->first);
            range.end = std::max(range.end, next->second);
            next = ranges_.erase(next);
        }
        ranges_.emplace(range.begin, range.end);
    }

  private:
    using Ranges = std::map<uint64_t, uint64_t>;  // begin → end; they don't touch
    // The first that ends at or after this.
    Ranges::const_iterator after(uint64_t begin) const {
        auto next = ranges_.upper_bound(begin);
        if (next != ranges_.begin() && std::prev(next)->second >= begin) --next;
        return next;
    }

    Ranges ranges_;
};

}  // namespace atomic4
