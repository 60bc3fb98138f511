// The power is cut while clients write atomically to a mounted volume, and others write to the same
// files: at many moments, with many fates of what no flush had covered, and recovered in each way
// that an operator has.
//
// ATOMIC4_LONG=1: thousands of cuts instead of dozens.
#include <gmock/gmock.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <thread>

#include "support/mounted_scenario.h"
#include "support/power_cut.h"
#include "support/privileged.h"

namespace atomic4::test {
namespace {

using ::testing::HasSubstr;

constexpr std::array kOtherWays{Recovery::PlainMount, Recovery::Offline,
                                Recovery::OfflineAfterMount};

bool long_form() {
    return std::getenv("ATOMIC4_LONG") != nullptr;
}

class MountedPowerCutTest : public ::testing::Test {
  protected:
    void SetUp() override {
        if (const auto why = FaultDisk::why_not()) A4_SKIP(*why);
        scenario_.emplace(kSeed);
        first_ = scenario_->disk().events();
    }
    // All goes down; what was recorded stays.
    void end() {
        EXPECT_TRUE(scenario_->errors.empty()) << scenario_->errors.front().message;
        EXPECT_TRUE(scenario_->others_errors.empty());
        scenario_->unmount();
        trace_ = scenario_->disk().recorded();
    }
    // Recoveries come later than the slack within which times say nothing.
    static void wait_until_times_tell() {
        std::this_thread::sleep_for(std::chrono::seconds(kClockSlackSeconds) +
                                    std::chrono::milliseconds(500));
    }
    uint64_t fate(size_t i) { return i % 4 < 2 ? i % 4 : scenario_->random()() | 2; }
    std::string where(size_t cut, uint64_t fate) const {
        return fmt::format("cut in event {} of {} ({}), fate {}, seed {}", cut, trace_->events(),
                           trace_->describe(cut), fate, kSeed);
    }
    Recovered recover(const Image& image, Recovery way, size_t cut,
                      FaultDisk::Memory memory = FaultDisk::Memory::Forgets) const {
        return recover_after_cut(image, way, scenario_->dir(), scenario_->history(), cut, memory);
    }

    static constexpr uint64_t kSeed = 1;
    mutable std::optional<MountedScenario> scenario_;
    size_t first_ = 0;
    std::unique_ptr<CrashDevice> trace_;
};

TEST_F(MountedPowerCutTest, NothingAcknowledgedIsLostAndNothingIsTorn) {
    scenario_->run(long_form() ? 600 : 200);
    EXPECT_GT(scenario_->session().target().counts().acks_exclusive, 20u);
    EXPECT_GT(scenario_->session().target().counts().acks_strict, 20u);
    end();
    wait_until_times_tell();
    const size_t cuts = long_form() ? 2000 : 60;
    const size_t span = trace_->events() - first_;
    uint64_t replayed = 0;
    size_t forced = 0;
    size_t wrong = 0;
    for (size_t i = 0; i < cuts && wrong < 5; ++i) {
        const size_t cut = first_ + span * i / cuts + scenario_->below(span / cuts + 1);
        const uint64_t luck = fate(i);
        SCOPED_TRACE(where(cut, luck));
        const Image image = trace_->image_after(cut, luck);
        // The others take turns; each has its share of all fates.
        for (const Recovery way : {Recovery::PrivateMount, kOtherWays[i / 4 % 3]}) {
            const Recovered once = recover(image, way, cut);
            EXPECT_EQ(once.complaint, "") << to_text(way);
            wrong += once.complaint.empty() ? 0 : 1;
            replayed += once.records;
            forced += once.forced ? 1 : 0;
            if (!once.complaint.empty() || i % 5 != 0) continue;
            // Once more: nothing is left to do.
            const Recovered again = recover(once.image, way, cut);
            EXPECT_EQ(again.complaint, "") << to_text(way) << ", again";
            EXPECT_EQ(again.records, 0u);
        }
    }
    EXPECT_GT(replayed, 0u);
    // The exception, not the rule.
    EXPECT_LT(forced, cuts / 4);
}

// mount.atomic4 is at it, and the power goes again.
TEST_F(MountedPowerCutTest, RecoveryItselfIsCut) {
    scenario_->run(60);
    end();
    wait_until_times_tell();
    const size_t cuts = long_form() ? 200 : 8;
    const size_t span = trace_->events() - first_;
    size_t wrong = 0;
    uint64_t replayed = 0;
    for (size_t i = 0; i < cuts && wrong < 5; ++i) {
        const size_t cut = first_ + span * i / cuts + scenario_->below(span / cuts + 1);
        SCOPED_TRACE(where(cut, 0));
        const Image image = trace_->image_after(cut, 0);
        const Recovered once =
            recover(image, Recovery::PrivateMount, cut, FaultDisk::Memory::Records);
        ASSERT_EQ(once.complaint, "");
        replayed += once.records;
        if (once.records == 0) continue;
        for (size_t j = 1; j < 3; ++j) {
            const size_t second = once.trace->events() * j / 3;
            const uint64_t luck = fate(2 + i + j);
            const Image again = once.trace->image_after(second, luck);
            const Recovered twice = recover(again, Recovery::PrivateMount, cut);
            EXPECT_EQ(twice.complaint, "")
                << "and again in event " << second << " of " << once.trace->events() << " ("
                << once.trace->describe(second) << "), fate " << luck;
            wrong += twice.complaint.empty() ? 0 : 1;
        }
    }
    EXPECT_GT(replayed, 0u);
}

}  // namespace
}  // namespace atomic4::test
