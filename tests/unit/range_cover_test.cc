#include "redo/range_cover.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

namespace atomic4::test {
namespace {

// Against a set of bytes.
TEST(RangeCover, MissingPartsAreThoseNotAdded) {
    for (uint64_t seed = 1; seed <= 200; ++seed) {
        std::mt19937_64 random(seed);
        RangeCover cover;
        std::set<uint64_t> added;
        for (int step = 0; step < 40; ++step) {
            const uint64_t begin = random() % 100;
            const FilePiece range{begin, begin + random() % 12};
            uint64_t last = 0;
            std::set<uint64_t> missing;
            for (const FilePiece& part : cover.missing(range)) {
                ASSERT_LT(part.begin, part.end) << "seed " << seed;
                ASSERT_TRUE(missing.empty() || part.begin > last) << "seed " << seed;
                last = part.end;
                for (uint64_t at = part.begin; at < part.end; ++at) missing.insert(at);
            }
            std::set<uint64_t> want;
            for (uint64_t at = range.begin; at < range.end; ++at) {
                if (!added.contains(at)) want.insert(at);
            }
            ASSERT_EQ(missing, want) << "seed " << seed << ", step " << step;
            if (random() % 2 != 0) {
                cover.add(range);
                for (uint64_t at = range.begin; at < range.end; ++at) added.insert(at);
            }
        }
    }
}

}  // namespace
}  // namespace atomic4::test
