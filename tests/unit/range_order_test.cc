// Operations that overlap keep their order; others don't wait for each other.
#include "writer/range_order.h"

#include <gtest/gtest.h>

#include <random>

namespace atomic4 {
namespace {

using Use = RangeOrder::Use;

HeldRange range(uint32_t inode, uint64_t offset, uint64_t length) {
    return {inode, ByteOffset(offset), Bytes(length)};
}
std::vector<HeldRange> one(uint32_t inode, uint64_t offset, uint64_t length) {
    return {range(inode, offset, length)};
}

TEST(RangeOrder, OverlapsAreFoundWhereverTheyLie) {
    RangeOrder order;
    order.hold(one(5, 100, 100), Use::Write);
    order.begin_walk();
    for (const auto& [offset, length, free] : {std::tuple{0, 100, true},
                                               {0, 101, false},
                                               {150, 10, false},
                                               {50, 500, false},
                                               {199, 1, false},
                                               {200, 1, true}})
        EXPECT_EQ(order.may_start(one(5, offset, length), Use::Write), free)
            << offset << "+" << length;
    EXPECT_TRUE(order.may_start(one(4, 100, 100), Use::Write));
    EXPECT_TRUE(order.may_start(one(6, 100, 100), Use::Write));
    order.release(one(5, 100, 100), Use::Write);
    EXPECT_TRUE(order.idle());
    EXPECT_TRUE(order.may_start(one(5, 100, 100), Use::Write));
}

TEST(RangeOrder, WhoIsPassedOverKeepsItsPlace) {
    RangeOrder order;
    order.hold(one(1, 0, 10), Use::Write);
    order.begin_walk();
    EXPECT_FALSE(order.may_start({{range(1, 5, 10), range(2, 0, 10)}}, Use::Write));
    order.pass_over({{range(1, 5, 10), range(2, 0, 10)}}, Use::Write);
    // It would be free, but the one before it comes first.
    EXPECT_FALSE(order.may_start(one(2, 5, 1), Use::Write));
    EXPECT_FALSE(order.may_start(one(2, 5, 1), Use::Read));
    EXPECT_TRUE(order.may_start(one(2, 10, 1), Use::Write));
    order.begin_walk();
    EXPECT_TRUE(order.may_start(one(2, 5, 1), Use::Write));
}

TEST(RangeOrder, ReadersShare) {
    RangeOrder order;
    order.hold(one(1, 0, 10), Use::Read);
    order.hold(one(1, 0, 10), Use::Read);
    order.begin_walk();
    EXPECT_TRUE(order.may_start(one(1, 5, 1), Use::Read));
    EXPECT_FALSE(order.may_start(one(1, 5, 1), Use::Write));
    order.pass_over(one(1, 5, 1), Use::Write);
    EXPECT_FALSE(order.may_start(one(1, 5, 1), Use::Read)) << "a writer waits there";
    order.release(one(1, 0, 10), Use::Read);
    order.begin_walk();
    EXPECT_FALSE(order.may_start(one(1, 5, 1), Use::Write));
    order.release(one(1, 0, 10), Use::Read);
    EXPECT_TRUE(order.may_start(one(1, 5, 1), Use::Write));
}

// Against a plain list, at random.
TEST(RangeOrder, AgreesWithAPlainList) {
    std::mt19937 random(7);
    const auto below = [&](uint32_t n) { return static_cast<uint32_t>(random() % n); };
    RangeOrder order;
    std::vector<std::pair<HeldRange, Use>> running;
    for (int i = 0; i < 20000; ++i) {
        if (!running.empty() && below(2) == 0) {
            const auto it = running.begin() + below(static_cast<uint32_t>(running.size()));
            order.release(std::span(&it->first, 1), it->second);
            running.erase(it);
            continue;
        }
        const HeldRange wanted = range(below(3), below(100), 1 + below(20));
        const Use use = below(3) == 0 ? Use::Read : Use::Write;
        bool expected = true;
        for (const auto& [held, held_use] : running)
            expected = expected &&
                       !(overlap(held, wanted) && (use == Use::Write || held_use == Use::Write));
        order.begin_walk();
        ASSERT_EQ(order.may_start(std::span(&wanted, 1), use), expected) << i;
        if (!expected) continue;
        order.hold(std::span(&wanted, 1), use);
        running.emplace_back(wanted, use);
    }
}

}  // namespace
}  // namespace atomic4
