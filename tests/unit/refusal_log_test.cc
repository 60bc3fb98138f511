// Refusals in the log: all of a few, a count of many.
#include "daemon/refusal_log.h"

#include <gmock/gmock.h>

#include <vector>

namespace atomic4 {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using namespace std::chrono_literals;

class RefusalLogTest : public ::testing::Test {
  protected:
    void refuse(std::optional<uid_t> user, const std::string& what) {
        log_.refused(user, what, now_);
    }
    std::vector<std::string> told() { return std::exchange(told_, {}); }

    RefusalLog::Clock::time_point now_{std::chrono::hours(1)};
    std::vector<std::string> told_;
    RefusalLog log_{[this](const std::string& line) { told_.push_back(line); }};
};

TEST_F(RefusalLogTest, AFewAreToldAsTheyCome) {
    refuse(1000, "write by user 1000: no");
    refuse(1001, "read by user 1001: no");
    EXPECT_THAT(told(),
                ElementsAre("refused: write by user 1000: no", "refused: read by user 1001: no"));
    EXPECT_FALSE(log_.holds_back());
}

TEST_F(RefusalLogTest, ManyAreCounted) {
    for (int i = 0; i < 1000; ++i) refuse(1000, "number " + std::to_string(i));
    EXPECT_EQ(told().size(), RefusalLog::kBurst);
    EXPECT_TRUE(log_.holds_back());
    // Another user's are told meanwhile.
    refuse(1001, "another");
    EXPECT_THAT(told(), ElementsAre("refused: another"));
    log_.tell_rest(now_);
    EXPECT_TRUE(told().empty());

    now_ += RefusalLog::kPause;
    log_.tell_rest(now_);
    EXPECT_THAT(told(), ElementsAre("refused: 980 more of user 1000, the last: number 999"));
    EXPECT_FALSE(log_.holds_back());
    // That was what this pause allowed.
    refuse(1000, "again");
    EXPECT_TRUE(told().empty());
    // The next one brings the rest along, without anybody asking for it.
    now_ += RefusalLog::kPause;
    refuse(1000, "and again");
    EXPECT_THAT(told(), ElementsAre("refused: 2 more of user 1000, the last: and again"));
    EXPECT_FALSE(log_.holds_back());
}

TEST_F(RefusalLogTest, AQuietTimeGivesTheAllowanceBack) {
    for (uint32_t i = 0; i < RefusalLog::kBurst; ++i) refuse(1000, "x");
    now_ += RefusalLog::kBurst * RefusalLog::kPause;
    told();
    for (uint32_t i = 0; i < 2 * RefusalLog::kBurst; ++i) refuse(1000, "x");
    EXPECT_EQ(told().size(), RefusalLog::kBurst);
}

TEST_F(RefusalLogTest, TheEndTellsTheRest) {
    for (uint32_t i = 0; i < RefusalLog::kBurst + 3; ++i) refuse(1000, "x");
    told();
    log_.tell_rest(now_, true);
    EXPECT_THAT(told(), ElementsAre(HasSubstr("3 more of user 1000")));
    EXPECT_FALSE(log_.holds_back());
}

// A device's fault is everybody's at once, and no reason to hold back other refusals.
TEST_F(RefusalLogTest, WhatIsNobodysFaultIsCountedTogether) {
    for (int i = 0; i < 100; ++i) refuse(std::nullopt, "in doubt");
    EXPECT_EQ(told().size(), RefusalLog::kBurst);
    refuse(50, "no");
    EXPECT_THAT(told(), ElementsAre("refused: no"));
    now_ += RefusalLog::kPause;
    log_.tell_rest(now_);
    EXPECT_THAT(told(), ElementsAre(HasSubstr("80 more of various users, the last: in doubt")));
}

TEST_F(RefusalLogTest, ManyUsersAreForgottenAgain) {
    for (uid_t user = 0; user < 100'000; ++user) {
        refuse(user, "x");
        now_ += RefusalLog::kPause;
    }
    EXPECT_EQ(told().size(), 100'000u);
    EXPECT_FALSE(log_.holds_back());
}

TEST_F(RefusalLogTest, AClientWritesNoLinesOfItsOwn) {
    refuse(1000, "/a\nrefused: nothing\x1b[2J");
    EXPECT_THAT(told(), ElementsAre("refused: /a?refused: nothing?[2J"));
}

}  // namespace
}  // namespace atomic4
