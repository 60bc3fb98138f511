// The power is cut while clients write atomically to a mounted volume, and others write to the same
// files: at many moments, with many fates of what no flush had covered, and recovered in each way
// that an operator has.
//
// ATOMIC4_LONG=1: thousands of cuts instead of dozens.
#include <gmock/gmock.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <thread>

#include "support/bytes.h"
#include "support/mounted_scenario.h"
#include "support/power_cut.h"
#include "support/privileged.h"
#include "writer/open_volume.h"

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

    Image mounted_once(const Image& image) const {
        const FaultDisk disk(image, FaultDisk::Memory::Forgets);
        Mount(disk.device(), scenario_->dir(), {"-t", "ext4"}).unmount();
        return disk.contents();
    }
    bool says_replaying(const Image& image) const {
        FaultDisk disk(mounted_once(image), FaultDisk::Memory::Forgets);
        const Mount mount(disk.device(), scenario_->dir(), {"-t", "ext4"});
        const auto volume = MountedVolume::open(scenario_->dir()).value();
        const auto log = read_log(volume->log(), volume->attr().log_id).value();
        return (log.superblock.flags & kLogReplaying) != 0;
    }
    // What the operator decides where there is a conflict.
    Image forced(const Image& image) const {
        Image recovered = mounted_once(image);
        const auto report =
            atomic4::recover(std::make_unique<ImageDevice>(recovered), OnConflict::Force);
        EXPECT_TRUE(report && report->log_emptied);
        return recovered;
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
            Recovered twice = recover(again, Recovery::PrivateMount, cut);
            // The one exception: the first mount had finished a truncation and dated the file
            // (power_cut.h), but was cut before the log said that a replay has begun.
            if (has_orphans(image) && !says_replaying(again) &&
                twice.complaint.find("was changed by others") != std::string::npos) {
                twice = recover(forced(again), Recovery::PlainMount, cut);
            }
            EXPECT_EQ(twice.complaint, "")
                << "and again in event " << second << " of " << once.trace->events() << " ("
                << once.trace->describe(second) << "), fate " << luck;
            wrong += twice.complaint.empty() ? 0 : 1;
        }
    }
    EXPECT_GT(replayed, 0u);
}

// Somebody opens a file whose writes are live in the log, and writes over them.
TEST_F(MountedPowerCutTest, WhatASecondOpenerSyncedSurvives) {
    const TempDir temp;
    const auto data = MountedScenario::kData;
    for (uint64_t i = 0; i < 4; ++i) ASSERT_TRUE(scenario_->write({{data, 4 * i, 4}}));
    ASSERT_GT(scenario_->session().target().counts().live_records, 0u);
    const size_t before = scenario_->disk().events();
    const WriteHistory::Part part{data, 5, 3};
    const uint64_t number = scenario_->history().begin_by_others(part, before);
    const auto bytes = scenario_->history().bytes(number, part);
    std::ofstream(temp.file("bytes"), std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()),
               static_cast<std::streamsize>(bytes.size()));
    ASSERT_EQ(scenario_->session().by_others([&] {
        return run_command({"dd", "if=" + temp.file("bytes"),
                            "of=" + scenario_->session().path("data"), "bs=4096", "seek=5",
                            "conv=notrunc,fsync"})
            .status;
    }),
              0);
    scenario_->history().done(number, scenario_->disk().events());
    EXPECT_EQ(scenario_->session().target().counts().live_records, 0u);
    ASSERT_TRUE(scenario_->write({{data, 12, 4}}));
    const size_t after = scenario_->disk().events();
    end();
    wait_until_times_tell();
    for (size_t cut = before; cut <= after; ++cut) {
        const uint64_t luck = fate(cut);
        SCOPED_TRACE(where(cut, luck));
        const Image image = trace_->image_after(cut, luck);
        const Recovery way = cut % 2 == 0 ? Recovery::PrivateMount : kOtherWays[cut / 2 % 3];
        EXPECT_EQ(recover(image, way, cut).complaint, "") << to_text(way);
    }
}

// A client closes its file, or dies, while its write still waits: once nothing of it is live, the
// bytes must be on the disk; and until then others are held.
TEST_F(MountedPowerCutTest, AWriteWhoseFileIsClosedBeforeItBegins) {
    MountedSession& session = scenario_->session();
    const auto bytes = filled(64 << 10, 0xa7);
    ASSERT_EQ(session.by_others([path = session.path("closed")] {
        const UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
        return ::fallocate(fd.get(), 0, 0, 64 << 10) == 0 && ::fsync(fd.get()) == 0 ? 0 : -errno;
    }),
              0);
    auto file = session.open("closed");
    ASSERT_TRUE(file) << file.error().message;
    const auto written =
        session.driver().submit(WriteOp::Kind::Atomic, *file, 0, bytes, Engine::Logged);
    const size_t files = session.target().counts().files;
    session.target().close(std::move(*file));
    session.driver().run_until([&] { return written->has_value(); });
    ASSERT_TRUE(**written);
    EXPECT_EQ(session.target().counts().live_records, 1u);
    EXPECT_EQ(session.target().counts().files, files);  // watched
    session.driver().run_until([&] { return session.target().counts().files < files; });
    EXPECT_EQ(session.target().counts().live_records, 0u);
    const Image image = scenario_->disk().recorded()->image_after(scenario_->disk().events(), 0);

    const FaultDisk disk(image, FaultDisk::Memory::Forgets);
    const TempDir temp;
    ASSERT_EQ(run_command({"mkdir", temp.file("mnt")}).status, 0);
    const Mount mount(disk.device(), temp.file("mnt"), {"-t", "ext4"});
    EXPECT_TRUE(file_contents(temp.file("mnt") + "/closed") == bytes);
}

// truncate(2) opens nothing, so it isn't held, and records stay live over what it removed: until
// they retire, a replay may bring that back (RECOVERY.md), in its old places and no further.
TEST_F(MountedPowerCutTest, WhatATruncationByPathRemovedComesBackFromLiveRecordsOnly) {
    constexpr uint64_t kBlock = WriteHistory::kBlock;
    const auto& history = scenario_->history();
    const WriteHistory::Part in_data{MountedScenario::kData, 0, 4};
    const WriteHistory::Part cut_off{MountedScenario::kData, 128, 4};
    const WriteHistory::Part in_sparse{MountedScenario::kSparse, 0, 4};
    const WriteHistory::Part in_grow{MountedScenario::kGrow, 0, 4};
    for (const auto& part : {in_data, cut_off, in_sparse, in_grow})
        ASSERT_TRUE(scenario_->write({part}));
    const MountedSession& session = scenario_->session();
    ASSERT_EQ(scenario_->session().by_others([&] {
        constexpr off_t kSize = MountedScenario::kFileBlocks * kBlock;
        const UniqueFd root(::open(scenario_->dir().c_str(), O_RDONLY | O_CLOEXEC));
        const bool done = ::truncate(session.path("data").c_str(), 64 * kBlock) == 0 &&
                          ::truncate(session.path("sparse").c_str(), 0) == 0 &&
                          ::truncate(session.path("sparse").c_str(), kSize) == 0 &&
                          ::truncate(session.path("grow").c_str(), 0) == 0 &&
                          ::syncfs(root.get()) == 0;
        return done ? 0 : errno;
    }),
              0);
    const size_t live = scenario_->disk().events();
    scenario_->session().driver().run_until(
        [&] { return scenario_->session().target().counts().live_records == 0; });
    const size_t retired = scenario_->disk().events();
    end();
    wait_until_times_tell();
    for (const size_t cut : {live, retired}) {
        SCOPED_TRACE(where(cut, 0));
        const Image image = trace_->image_after(cut, 0);
        MountHistory known;
        known.before_private_mount = stamp_of(image);
        FaultDisk disk(image, FaultDisk::Memory::Forgets);
        const std::string& dir = scenario_->dir();
        Mount mount(disk.device(), dir, {"-t", "ext4"});
        const auto volume = MountedVolume::open(dir).value();
        const auto log = recover_mounted_log(*volume, known);
        ASSERT_TRUE(log) << log.error().message;
        // Shorter stays shorter.
        auto data = file_contents(dir + "/data");
        ASSERT_EQ(data.size(), 64 * kBlock);
        data.resize(4 * kBlock);
        EXPECT_TRUE(data == history.bytes(1, in_data));
        auto sparse = file_contents(dir + "/sparse");
        ASSERT_EQ(sparse.size(), MountedScenario::kFileBlocks * kBlock);
        const auto rest = std::vector(sparse.begin() + 4 * kBlock, sparse.end());
        EXPECT_TRUE(rest == filled(rest.size(), 0));
        sparse.resize(4 * kBlock);
        const bool sparse_back = sparse == history.bytes(3, in_sparse);
        EXPECT_TRUE(sparse_back || sparse == filled(4 * kBlock, 0));
        const auto grow = file_contents(dir + "/grow");
        const bool grow_back = grow == history.bytes(4, in_grow);
        EXPECT_TRUE(grow_back || grow.empty());
        if (cut == retired) {
            EXPECT_FALSE(sparse_back);
            EXPECT_FALSE(grow_back);
        }
    }
}

// After the crash somebody mounted the volume and went on without us.
TEST_F(MountedPowerCutTest, NewerBytesThanTheRecordsAreKept) {
    const auto data = MountedScenario::kData;
    const auto sparse = MountedScenario::kSparse;
    ASSERT_TRUE(scenario_->write({{sparse, 0, 1}}));
    ASSERT_TRUE(scenario_->write({{data, 0, 4}}));
    ASSERT_TRUE(scenario_->write({{sparse, 0, 1}}));
    const size_t cut = scenario_->disk().events();
    end();
    wait_until_times_tell();
    // Both records are live, and their placements lost.
    const std::string& dir = scenario_->dir();
    const auto newer = filled(4096, 9);
    FaultDisk disk(trace_->image_after(cut, 0), FaultDisk::Memory::Forgets);
    const auto contents = [&] {
        Mount mount(disk.device(), dir, {"-t", "ext4"});
        return file_contents(dir + "/data");
    };
    {
        Mount mount(disk.device(), dir, {"-t", "ext4"});
        const UniqueFd fd(::open((dir + "/data").c_str(), O_RDWR | O_CLOEXEC));
        ASSERT_EQ(::pwrite(fd.get(), newer.data(), newer.size(), 4096), 4096);
    }
    const auto before = contents();
    for (const bool privately : {false, true}) {
        MountHistory known;
        if (privately) known.before_private_mount = stamp_of(disk.contents());
        Mount mount(disk.device(), dir, {"-t", "ext4"});
        const auto volume = MountedVolume::open(dir).value();
        const auto log = recover_mounted_log(*volume, known);
        ASSERT_FALSE(log);
        EXPECT_EQ(log.error().code, EUCLEAN);
        EXPECT_THAT(log.error().message, HasSubstr("changed by others"));
        EXPECT_THAT(log.error().message, HasSubstr("--force or --discard"));
        EXPECT_FALSE(read_log(volume->log(), volume->attr().log_id).value().live.empty());
        // What is nobody's but ours is there.
        const auto& history = scenario_->history();
        const auto ours = history.bytes(3, {sparse, 0, 1});
        auto found = file_contents(dir + "/sparse");
        found.resize(ours.size());
        EXPECT_TRUE(found == ours);
    }
    EXPECT_TRUE(contents() == before);
    // The operator decides.
    Image discarded = disk.contents();
    const auto dropped =
        atomic4::recover(std::make_unique<ImageDevice>(discarded), OnConflict::Discard);
    ASSERT_TRUE(dropped) << dropped.error().message;
    EXPECT_TRUE(dropped->log_emptied);
    Image forced = disk.contents();
    const auto report = atomic4::recover(std::make_unique<ImageDevice>(forced), OnConflict::Force);
    ASSERT_TRUE(report) << report.error().message;
    EXPECT_TRUE(report->log_emptied);
    EXPECT_EQ(recover(discarded, Recovery::PlainMount, 0).records, 0u);
    EXPECT_EQ(recover(forced, Recovery::PlainMount, cut).complaint, "");
}

}  // namespace
}  // namespace atomic4::test
