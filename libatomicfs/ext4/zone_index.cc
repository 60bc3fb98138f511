#include "ext4/zone_index.h"

#include <bit>

namespace atomic4 {

SortedBitset::SortedBitset(uint32_t bound) : bound_(bound) {
    for (uint32_t words = (bound + 63) / 64; words > 0; words = words == 1 ? 0 : (words + 63) / 64)
        levels_.emplace_back(words, 0);
}

void SortedBitset::insert(uint32_t value) {
    for (auto& level : levels_) {
        level[value / 64] |= uint64_t{1} << (value % 64);
        value /= 64;
    }
}

void SortedBitset::erase(uint32_t value) {
    for (auto& level : levels_) {
        level[value / 64] &= ~(uint64_t{1} << (value % 64));
        if (level[value / 64] != 0) return;
        value /= 64;
    }
}

std::optional<uint32_t> SortedBitset::first_from(uint32_t value) const {
    if (value >= bound_) return std::nullopt;
    // Up until a word has a member at or after value, then down to the lowest one below it.
    uint64_t at = value;
    for (size_t up = 0; up < levels_.size(); ++up) {
        if (at / 64 >= levels_[up].size()) return std::nullopt;
        const uint64_t rest = levels_[up][at / 64] >> (at % 64);
        if (rest != 0) {
            at += static_cast<uint64_t>(std::countr_zero(rest));
            for (size_t down = up; down-- > 0;)
                at = at * 64 + static_cast<uint64_t>(std::countr_zero(levels_[down][at]));
            return static_cast<uint32_t>(at);
        }
        at = at / 64 + 1;
    }
    return std::nullopt;
}

ZoneIndex::ZoneIndex(uint32_t zones) : orders_(zones, kNone) {
    by_order_.fill(SortedBitset(zones));
}

void ZoneIndex::put(uint32_t zone, int order) {
    const int before = order_of(zone);
    if (before == order) return;
    if (before != kNone) by_order_[static_cast<size_t>(before)].erase(zone);
    if (order != kNone) by_order_[static_cast<size_t>(order)].insert(zone);
    orders_[zone] = static_cast<int8_t>(order);
}

std::optional<uint32_t> ZoneIndex::nearest(int order, uint32_t goal) const {
    for (const uint32_t from : {goal, uint32_t{0}}) {
        std::optional<uint32_t> best;
        for (int o = order; o < kOrders; ++o) {
            const auto zone = by_order_[static_cast<size_t>(o)].first_from(from);
            if (zone && (!best || *zone < *best)) best = zone;
        }
        if (best) return best;
    }
    return std::nullopt;
}

std::optional<uint32_t> ZoneIndex::tightest(int order, uint32_t goal) const {
    for (int o = order; o < kOrders; ++o) {
        for (const uint32_t from : {goal, uint32_t{0}}) {
            if (const auto zone = by_order_[static_cast<size_t>(o)].first_from(from)) return zone;
        }
    }
    return std::nullopt;
}

}  // namespace atomic4
