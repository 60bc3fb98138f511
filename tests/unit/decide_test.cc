// What fsck does about a finding in each of its modes.
#include "check/decide.h"

#include <gtest/gtest.h>

#include <set>

namespace atomic4 {
namespace {

constexpr FindingId kAll[] = {
#define A4_FINDING(number, name, severity, handling, meaning, question) FindingId::name,
#include "check/findings.def"
#undef A4_FINDING
};

// Whether it asks, and what comes of yes and no.
struct Asked {
    int times = 0;
    Verdict yes{};
    Verdict no{};
};
Asked ask(FindingId id) {
    Asked asked;
    asked.yes = decide(id, FsckMode::Ask, [&] { return ++asked.times > 0; });
    asked.no = decide(id, FsckMode::Ask, [] { return false; });
    return asked;
}
Verdict by(FindingId id, FsckMode mode) {
    return decide(id, mode, [] {
        ADD_FAILURE() << "nobody is to be asked";
        return true;
    });
}

TEST(Decide, ByHandlingAndMode) {
    for (const FindingId id : kAll) {
        SCOPED_TRACE(number_of(id));
        const Asked asked = ask(id);
        switch (handling_of(id)) {
            case Handling::Note:
                for (const FsckMode mode : {FsckMode::Preen, FsckMode::No, FsckMode::Yes})
                    EXPECT_EQ(by(id, mode), Verdict::Note);
                EXPECT_EQ(asked.yes, Verdict::Note);
                EXPECT_EQ(asked.times, 0);
                EXPECT_EQ(severity_of(id), Severity::Information);
                break;
            case Handling::ByE2fsck:
                for (const FsckMode mode : {FsckMode::Preen, FsckMode::Yes})
                    EXPECT_EQ(by(id, mode), Verdict::Later);
                EXPECT_EQ(by(id, FsckMode::No), Verdict::Leave);
                EXPECT_EQ(asked.yes, Verdict::Later);
                EXPECT_EQ(asked.times, 0);
                break;
            case Handling::Safe:
            case Handling::Asked:
                EXPECT_EQ(by(id, FsckMode::Preen),
                          handling_of(id) == Handling::Safe ? Verdict::Fix : Verdict::Stop);
                EXPECT_EQ(by(id, FsckMode::No), Verdict::Leave);
                EXPECT_EQ(by(id, FsckMode::Yes), Verdict::Fix);
                EXPECT_EQ(asked.times, 1);
                EXPECT_EQ(asked.yes, Verdict::Fix);
                EXPECT_EQ(asked.no, Verdict::Leave);
                EXPECT_NE(std::string(question_of(id)), "");
                break;
        }
    }
}

// The numbers stand in the manual and in people's scripts.
TEST(Decide, NumbersArePermanent) {
    std::set<int> numbers;
    for (const FindingId id : kAll) EXPECT_TRUE(numbers.insert(number_of(id)).second);
    EXPECT_EQ(*numbers.begin(), 1);
    EXPECT_EQ(*numbers.rbegin(), static_cast<int>(numbers.size()));
    EXPECT_EQ(number_of(FindingId::GateMissing), 1);
    EXPECT_EQ(number_of(FindingId::InodeUnreadable), 18);
    EXPECT_EQ(number_of(FindingId::BlocksShared), 19);
    EXPECT_EQ(number_of(FindingId::LogUnknown), 32);
}

// What could lose something is never done unasked at boot.
TEST(Decide, PreenDoesNothingLossy) {
    for (const FindingId id :
         {FindingId::LogDamaged, FindingId::LogCorrupt, FindingId::BlocksShared,
          FindingId::AtomicGivesWay, FindingId::BlocksAreMetadata, FindingId::RecordConflict,
          FindingId::WrongType, FindingId::NoLinks})
        EXPECT_EQ(by(id, FsckMode::Preen), Verdict::Stop) << number_of(id);
}

}  // namespace
}  // namespace atomic4
