// The allocator's index of zones, and the set under it, against plain models.
#include "ext4/zone_index.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

namespace atomic4::test {
namespace {

TEST(SortedBitsetModel, AgainstASet) {
    std::mt19937_64 random(7);
    for (const uint32_t bound : {1u, 2u, 63u, 64u, 65u, 4096u, 4097u, 70000u, 262144u, 262145u}) {
        SCOPED_TRACE(bound);
        SortedBitset bits(bound);
        std::set<uint32_t> model;
        for (int step = 0; step < 3000; ++step) {
            const auto value = static_cast<uint32_t>(random() % bound);
            if (random() % 2 == 0) {
                bits.insert(value);
                model.insert(value);
            } else {
                // Often one that is there.
                const auto near = model.lower_bound(value);
                const uint32_t gone = near == model.end() ? value : *near;
                bits.erase(gone);
                model.erase(gone);
            }
            const auto from = static_cast<uint32_t>(random() % (uint64_t{bound} + 2));
            const auto expected = model.lower_bound(from);
            const auto found = bits.first_from(from);
            ASSERT_EQ(found.has_value(), expected != model.end()) << from;
            if (found) {
                ASSERT_EQ(*found, *expected) << from;
            }
        }
    }
    EXPECT_FALSE(SortedBitset(0).first_from(0));
}

TEST(ZoneIndexModel, AgainstAList) {
    std::mt19937_64 random(11);
    for (const uint32_t zones : {1u, 3u, 64u, 200u, 5000u}) {
        SCOPED_TRACE(zones);
        ZoneIndex index(zones);
        std::vector<int> orders(zones, ZoneIndex::kNone);
        for (int step = 0; step < 1500; ++step) {
            const auto zone = static_cast<uint32_t>(random() % zones);
            const int order = static_cast<int>(random() % (ZoneIndex::kOrders + 1)) - 1;
            index.put(zone, order);
            orders[zone] = order;
            ASSERT_EQ(index.order_of(zone), order);

            const int want = static_cast<int>(random() % ZoneIndex::kOrders);
            const auto goal = static_cast<uint32_t>(random() % zones);
            std::optional<uint32_t> nearest;
            std::optional<uint32_t> tightest;
            for (uint32_t i = 0; i < zones; ++i) {
                const uint32_t z = (goal + i) % zones;
                if (orders[z] < want) continue;
                if (!nearest) nearest = z;
                if (!tightest || orders[z] < orders[*tightest]) tightest = z;
            }
            ASSERT_EQ(index.nearest(want, goal), nearest);
            ASSERT_EQ(index.tightest(want, goal), tightest);
        }
    }
}

}  // namespace
}  // namespace atomic4::test
