#include "support/crash_device.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "support/bytes.h"

namespace atomic4::test {
namespace {

constexpr uint64_t kSeeds = 400;
using Image = std::vector<std::byte>;

// The first byte of each 512-byte sector from 4096 on, as digits: "0102".
std::string sectors(const Image& image) {
    std::string result;
    for (size_t at = 4096; at < image.size(); at += 512)
        result.push_back(static_cast<char>('0' + std::to_integer<int>(image[at])));
    return result;
}

std::set<std::string> outcomes(const CrashDevice& device, size_t events_done) {
    std::set<std::string> result;
    for (uint64_t seed = 0; seed < kSeeds; ++seed)
        result.insert(sectors(device.image_after(events_done, seed)));
    return result;
}

// Two sectors after the superblock's block.
CrashDevice two_sectors() {
    return CrashDevice(filled(4096 + 1024, 0));
}

constexpr ByteOffset kFirst(4096);
constexpr ByteOffset kSecond(4096 + 512);

TEST(CrashDevice, PlainWritesAreKeptDroppedOrTorn) {
    CrashDevice device = two_sectors();
    ASSERT_TRUE(device.write(kFirst, filled(1024, 1)).has_value());
    EXPECT_EQ(device.events(), 1u);
    EXPECT_EQ(device.describe(0), "write of 1024 bytes at 4096");
    const std::set<std::string> any{"00", "01", "10", "11"};
    EXPECT_EQ(outcomes(device, 0), any);  // in flight
    EXPECT_EQ(outcomes(device, 1), any);  // done, but in the cache
    ASSERT_TRUE(device.flush().has_value());
    EXPECT_EQ(outcomes(device, 1), any);  // the flush is in flight
    EXPECT_EQ(outcomes(device, 2), std::set<std::string>{"11"});
    EXPECT_EQ(sectors(device.image_after(1, 0)), "00");
    EXPECT_EQ(sectors(device.image_after(1, 1)), "11");
    EXPECT_EQ(device.contents(), device.image_after(2, 0));
}

TEST(CrashDevice, LaterWritesWin) {
    CrashDevice device = two_sectors();
    ASSERT_TRUE(device.write(kFirst, filled(512, 1)).has_value());
    ASSERT_TRUE(device.write(kFirst, filled(512, 2)).has_value());
    EXPECT_EQ(outcomes(device, 2), (std::set<std::string>{"00", "10", "20"}));
    ASSERT_TRUE(device.flush().has_value());
    ASSERT_TRUE(device.write(kFirst, filled(512, 3)).has_value());
    EXPECT_EQ(outcomes(device, 4), (std::set<std::string>{"20", "30"}));
}

TEST(CrashDevice, DurableWritesAreThereWhenDone) {
    CrashDevice device = two_sectors();
    ASSERT_TRUE(device.write(kSecond, filled(512, 1)).has_value());
    ASSERT_TRUE(device.write_durable(kFirst, filled(512, 2)).has_value());
    // It says nothing of the write before it.
    EXPECT_EQ(outcomes(device, 2), (std::set<std::string>{"20", "21"}));
    EXPECT_EQ(outcomes(device, 1), (std::set<std::string>{"00", "01", "20", "21"}));
    ASSERT_TRUE(device.write_durable(kFirst, filled(1024, 3)).has_value());
    EXPECT_EQ(outcomes(device, 2),
              (std::set<std::string>{"20", "21", "23", "30", "31", "33"}));  // torn in flight
    EXPECT_EQ(outcomes(device, 3), std::set<std::string>{"33"});
}

TEST(CrashDevice, AVolatileWriteBeforeADurableOneDoesNotComeBack) {
    CrashDevice device = two_sectors();
    ASSERT_TRUE(device.write(kFirst, filled(1024, 1)).has_value());
    ASSERT_TRUE(device.write_durable(kFirst, filled(512, 2)).has_value());
    for (uint64_t seed = 0; seed < kSeeds; ++seed)
        ASSERT_EQ(device.image_after(2, seed)[4096], std::byte{2});
}

TEST(CrashDevice, AtomicWritesAreAllOrNothing) {
    CrashDevice device(filled(8192, 0));
    EXPECT_EQ(device.write_atomic(kFirst, filled(4096, 1)).error().code, EOPNOTSUPP);
    AtomicLimits limits;
    limits.unit_min = limits.unit_max = Bytes(4096);
    device.set_atomic_limits(limits);
    EXPECT_EQ(device.write_atomic(kFirst, filled(2048, 1)).error().code, EINVAL);
    EXPECT_EQ(device.events(), 0u);
    ASSERT_TRUE(device.write_atomic(kFirst, filled(4096, 1)).has_value());
    EXPECT_EQ(outcomes(device, 0), (std::set<std::string>{"00000000", "11111111"}));
    EXPECT_EQ(outcomes(device, 1), std::set<std::string>{"11111111"});
    EXPECT_EQ(device.describe(0), "atomic write of 4096 bytes at 4096");
}

TEST(CrashDevice, ZeroingTearsLikeAWrite) {
    CrashDevice device(filled(4096 + 1024, 7));
    ASSERT_TRUE(device.zero(kFirst, Bytes(1024)).has_value());
    EXPECT_EQ(outcomes(device, 1), (std::set<std::string>{"00", "07", "70", "77"}));
    EXPECT_EQ(device.describe(0), "zeroing of 1024 bytes at 4096");
}

TEST(CrashDevice, TheSuperblocksBlockIsOneUnit) {
    CrashDevice device(filled(8192, 0));
    ASSERT_TRUE(device.write(ByteOffset(1024), filled(4096, 1)).has_value());
    std::set<std::string> seen;
    for (uint64_t seed = 0; seed < kSeeds; ++seed) {
        const Image image = device.image_after(1, seed);
        std::set<std::byte> inside(image.begin() + 1024, image.begin() + 4096);
        ASSERT_EQ(inside.size(), 1u) << "torn with seed " << seed;
        ASSERT_EQ(image[1023], std::byte{0});
        ASSERT_EQ(image[5120], std::byte{0});
        seen.insert(fmt::format("{}{}{}", std::to_integer<int>(image[1024]),
                                std::to_integer<int>(image[4096]),
                                std::to_integer<int>(image[4608])));
    }
    EXPECT_EQ(seen.size(), 8u);
}

TEST(CrashDevice, SectorsAreTheDevicesAndNotTheWrites) {
    CrashDevice device(filled(8192, 0));
    ASSERT_TRUE(device.write(ByteOffset(4096 + 256), filled(512, 1)).has_value());
    for (uint64_t seed = 0; seed < kSeeds; ++seed) {
        const Image image = device.image_after(1, seed);
        EXPECT_EQ(image[4096 + 256], image[4096 + 511]);
        EXPECT_EQ(image[4096 + 512], image[4096 + 767]);
        EXPECT_EQ(image[4096 + 255], std::byte{0});
        EXPECT_EQ(image[4096 + 768], std::byte{0});
    }
}

TEST(CrashDevice, RefusesWhatIsBeyondItsEnd) {
    CrashDevice device(filled(4096, 0));
    EXPECT_EQ(device.write(ByteOffset(4096), filled(1, 1)).error().code, EINVAL);
    EXPECT_EQ(device.zero(ByteOffset(4095), Bytes(2)).error().code, EINVAL);
    auto data = filled(2, 0);
    EXPECT_EQ(device.read(ByteOffset(4095), data).error().code, EINVAL);
    EXPECT_EQ(device.events(), 0u);
}

// Every history of four events from a small set, cut at every moment: the images that the seeds
// give are exactly those that the rules allow, as another program text enumerates them.
enum class Step { WriteBoth1, WriteFirst2, DurableBoth3, AtomicFirst4, Flush };
constexpr int kSteps = 5;

void perform(CrashDevice& device, Step step) {
    switch (step) {
        case Step::WriteBoth1:
            ASSERT_TRUE(device.write(kFirst, filled(1024, 1)).has_value());
            break;
        case Step::WriteFirst2:
            ASSERT_TRUE(device.write(kFirst, filled(512, 2)).has_value());
            break;
        case Step::DurableBoth3:
            ASSERT_TRUE(device.write_durable(kFirst, filled(1024, 3)).has_value());
            break;
        case Step::AtomicFirst4:
            ASSERT_TRUE(device.write_atomic(kFirst, filled(512, 4)).has_value());
            break;
        case Step::Flush:
            ASSERT_TRUE(device.flush().has_value());
            break;
    }
}

std::string with(std::string state, size_t sector, char value) {
    state[sector] = value;
    return state;
}

// The states that one step may turn a set of states into. Steps that a later flush makes certain
// count as certain.
std::set<std::string> after(const std::set<std::string>& states, Step step, bool certain) {
    std::set<std::string> result;
    for (const std::string& state : states) {
        const char value = "12340"[static_cast<int>(step)];
        switch (step) {
            case Step::WriteBoth1:
            case Step::DurableBoth3:
                result.insert({value, value});
                if (!certain) result.insert({state, with(state, 0, value), with(state, 1, value)});
                break;
            case Step::WriteFirst2:
            case Step::AtomicFirst4:
                result.insert(with(state, 0, value));
                if (!certain) result.insert(state);
                break;
            case Step::Flush:
                result.insert(state);
        }
    }
    return result;
}

std::set<std::string> allowed(const std::vector<Step>& history, size_t done) {
    size_t flushed = 0;
    for (size_t i = 0; i < done; ++i)
        if (history[i] == Step::Flush) flushed = i;
    std::set<std::string> states{"00"};
    for (size_t i = 0; i < std::min(done + 1, history.size()); ++i) {
        const bool durable = history[i] == Step::DurableBoth3 || history[i] == Step::AtomicFirst4;
        states = after(states, history[i], i < flushed || (i < done && durable));
    }
    return states;
}

TEST(CrashDevice, ExhaustiveSmallHistories) {
    AtomicLimits limits;
    limits.unit_min = limits.unit_max = Bytes(512);
    constexpr size_t kLength = 4;
    for (int code = 0; code < kSteps * kSteps * kSteps * kSteps; ++code) {
        CrashDevice device = two_sectors();
        device.set_atomic_limits(limits);
        std::vector<Step> history;
        for (int rest = code; history.size() < kLength; rest /= kSteps) {
            history.push_back(static_cast<Step>(rest % kSteps));
            perform(device, history.back());
        }
        for (size_t done = 0; done <= kLength; ++done) {
            const auto possible = allowed(history, done);
            std::set<std::string> seen;
            for (uint64_t seed = 0; seed < kSeeds && seen.size() < possible.size(); ++seed)
                seen.insert(sectors(device.image_after(done, seed)));
            ASSERT_EQ(seen, possible) << "history " << code << ", cut after " << done;
        }
    }
}

// The rolling base must not show: any order of questions gives the same answers.
TEST(CrashDevice, AnswersDoNotDependOnTheOrderOfQuestions) {
    std::mt19937_64 random(3);
    CrashDevice device(random_bytes(64 * 1024, random));
    for (int i = 0; i < 60; ++i) {
        const ByteOffset offset(random() % 60'000);
        const auto data = random_bytes(random() % 4000, random);
        switch (random() % 4) {
            case 0:
                ASSERT_TRUE(device.write_durable(offset, data).has_value());
                break;
            case 1:
                ASSERT_TRUE(device.flush().has_value());
                break;
            default:
                ASSERT_TRUE(device.write(offset, data).has_value());
        }
    }
    std::map<std::pair<size_t, uint64_t>, Image> rising;
    for (size_t done = 0; done <= device.events(); ++done)
        for (uint64_t seed = 0; seed < 4; ++seed)
            rising[{done, seed}] = device.image_after(done, seed);
    for (int i = 0; i < 200; ++i) {
        const size_t done = random() % (device.events() + 1);
        const uint64_t seed = random() % 4;
        ASSERT_EQ(device.image_after(done, seed), (rising[{done, seed}]));
    }
}

}  // namespace
}  // namespace atomic4::test
