// ZoneIndex: which zones have an aligned free run of at least a given order, nearest first.
//
// One set of zones per order, as three-level bitmaps: 122,880 zones (15 TiB) cost some 300 KiB, a
// look-up a few words. The order kept for a zone is an upper bound until the zone has been read
// (aligned_allocator.h), as the kernel's s_mb_largest_free_orders lists are exact for initialised
// groups only.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

namespace atomic4 {

// A set of integers below a bound, with "first member not below".
class SortedBitset {
  public:
    explicit SortedBitset(uint32_t bound = 0);
    void insert(uint32_t value);
    void erase(uint32_t value);
    std::optional<uint32_t> first_from(uint32_t value) const;

  private:
    std::vector<std::vector<uint64_t>> levels_;  // [0] the members; each above: non-zero words
    uint32_t bound_ = 0;
};

class ZoneIndex {
  public:
    static constexpr int kNone = -1;  // no free block at all
    static constexpr int kOrders = 16;

    explicit ZoneIndex(uint32_t zones);
    // Files the zone under a largest order (kNone … kOrders - 1).
    void put(uint32_t zone, int order);
    int order_of(uint32_t zone) const { return orders_[zone]; }
    // The nearest zone at or after goal (wrapping around) whose order is at least order.
    std::optional<uint32_t> nearest(int order, uint32_t goal) const;
    // The zone of the smallest order from order upwards, nearest to goal in that order.
    std::optional<uint32_t> tightest(int order, uint32_t goal) const;

  private:
    std::vector<int8_t> orders_;
    std::array<SortedBitset, kOrders> by_order_;
};

}  // namespace atomic4
