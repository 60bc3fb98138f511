// Replay through a mounted volume: what of a log is placed, and what is left to its newer writers.
#include "redo/mounted_replay.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstring>
#include <random>

#include "ext4/atomic_file.h"
#include "ext4/handle_files.h"
#include "redo/redo_log.h"
#include "support/bytes.h"
#include "support/mounted_image.h"
#include "support/privileged.h"

namespace atomic4::test {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr uint64_t kUnit = 16384;
constexpr uint64_t kFileSize = 4 * kUnit;
constexpr uint64_t kAge = 10'000'000'000;  // well beyond the slack

struct Write {
    std::string file;
    uint64_t offset;
    std::vector<std::byte> data;
    uint64_t new_size = 0;
    uint32_t operation = 0;
};

class MountedReplayTest : public ::testing::Test {
  protected:
    void SetUp() override {
        if (const auto why = why_no_mounts()) A4_SKIP(*why);
        EnableOptions options;
        options.log_size = Bytes(8 << 20);
        Image bytes = make_atomic4(64 << 20, {}, options);
        {
            auto opened = open_for_writing(std::make_unique<ImageDevice>(bytes)).value();
            NewFile file;
            file.size = Bytes(kFileSize);
            file.unit = Bytes(kUnit);
            for (const char* name : {"/a", "/b"})
                create_atomic_file(*opened.volume, name, file).value();
        }
        image.emplace(bytes);
        mount();
    }

    void mount() {
        image->mount();
        volume = MountedVolume::open(image->dir()).value();
    }
    // A mount that nobody is told of, unless the test tells.
    void mount_again() {
        close();
        image->unmount();
        mount();
    }
    void close() {
        log.reset();
        volume.reset();
    }

    UniqueFd open(const std::string& name) {
        return UniqueFd(::open(image->file(name).c_str(), O_RDWR | O_CREAT, 0600));
    }
    MountedFile stat(const std::string& name) {
        return read_mounted_file(*volume, open(name).get()).value();
    }
    void put(const std::string& name, uint64_t offset, const std::vector<std::byte>& data) {
        ASSERT_TRUE(write_all(open(name).get(), data, ByteOffset(offset)));
    }
    std::vector<std::byte> get(const std::string& name, uint64_t offset, uint64_t length) {
        std::vector<std::byte> bytes(length);
        const auto read = read_all(open(name).get(), bytes, ByteOffset(offset));
        EXPECT_TRUE(read) << read.error().message;
        return bytes;
    }
    void expect(const std::string& name, uint64_t offset, const std::vector<std::byte>& want) {
        EXPECT_TRUE(get(name, offset, want.size()) == want) << name << " at " << offset;
    }

    // One record; begins a session if there is none.
    void append(const std::vector<Write>& writes) {
        if (!log) {
            const auto contents = read_log(volume->log(), volume->attr().log_id).value();
            log = RedoLog::begin(volume->log(), contents, session_stamp(*volume).value()).value();
        }
        std::vector<RangeRef> ranges;
        std::vector<std::span<const std::byte>> data;
        for (const Write& write : writes) {
            const MountedFile file = stat(write.file);
            ranges.push_back({file.inode, file.generation, ByteOffset(write.offset),
                              Bytes(write.data.size()), Bytes(write.new_size), write.operation});
            data.emplace_back(write.data);
        }
        const auto done = log->append(ranges, data);
        ASSERT_TRUE(done) << done.error().message;
    }
    void place_all_so_far() { log->note_placed(log->last_sequence()); }

    LogContents contents() { return read_log(volume->log(), volume->attr().log_id).value(); }

    // Makes the records older, instead of waiting for the files to become newer.
    void age_records() {
        const LogContents now = contents();
        for (const LoggedRecord& record : now.live) {
            std::vector<std::byte> head((record.payload - record.position).value());
            ASSERT_TRUE(volume->log().read(record.position, head));
            RecordHeader header;
            std::memcpy(&header, head.data(), sizeof header);
            header.time = header.time - kAge;
            std::memcpy(head.data(), &header, sizeof header);
            header.header_crc = record_header_crc(
                head, record_seed(header.epoch, header.sequence, record.position));
            std::memcpy(head.data(), &header, sizeof header);
            ASSERT_TRUE(volume->log().write_durable(record.position, head));
        }
    }

    ReplayReport replay(const MountHistory& history, OnConflict policy = OnConflict::Keep) {
        log.reset();
        const auto report = replay_mounted(*volume, contents(), policy, history);
        EXPECT_TRUE(report) << report.error().message;
        return report ? *report : ReplayReport{};
    }
    static MountHistory guarded() {
        MountHistory history;
        history.guard_unbroken = true;
        return history;
    }
    // Only one mount since: ours.
    MountHistory private_mount() {
        MountHistory history;
        history.before_private_mount = contents().superblock.stamp;
        return history;
    }
    void expect_emptied(const ReplayReport& report) {
        EXPECT_TRUE(report.log_emptied);
        EXPECT_THAT(report.conflicts, IsEmpty());
        EXPECT_THAT(report.failed, IsEmpty());
        EXPECT_THAT(contents().live, IsEmpty());
    }

    std::optional<MountedImage> image;
    std::unique_ptr<MountedVolume> volume;
    std::unique_ptr<RedoLog> log;
};

// The daemon died, the kernel went on.

TEST_F(MountedReplayTest, WhatIsPlacedStaysToItsNewerWriters) {
    append({{"a", 0, filled(kUnit, 1)}});
    put("a", 0, filled(kUnit, 1));
    place_all_so_far();
    append({{"b", 0, filled(kUnit, 2)}});
    put("a", 4096, filled(4096, 9));  // newer, and part of the record only
    const ReplayReport report = replay({});
    expect_emptied(report);
    EXPECT_EQ(report.records, 0u);
    expect("a", 0, filled(4096, 1));
    expect("a", 4096, filled(4096, 9));
    expect("b", 0, filled(kUnit, 0));  // never placed, so never acknowledged
}

// The kernel doesn't tear a single write because a daemon dies: part of one is somebody else's
// doing.
TEST_F(MountedReplayTest, PartOfASingleWriteIsOthersUnlessTheyWereHeld) {
    append({{"a", 0, filled(kUnit, 1)}});
    put("a", 0, filled(kUnit, 1));
    put("a", 4096, filled(4096, 9));
    expect_emptied(replay({}));
    expect("a", 4096, filled(4096, 9));

    append({{"b", 0, filled(kUnit, 2)}});
    put("b", 0, filled(4096, 2));
    expect_emptied(replay(guarded()));
    expect("b", 0, filled(kUnit, 2));
}

TEST_F(MountedReplayTest, HalfABatchIsFinished) {
    append({{"a", 0, filled(kUnit, 1)}, {"b", kUnit, filled(kUnit, 2)}});
    put("b", kUnit, filled(kUnit, 2));
    const ReplayReport report = replay({});
    expect_emptied(report);
    EXPECT_EQ(report.records, 1u);
    expect("a", 0, filled(kUnit, 1));
    expect("b", kUnit, filled(kUnit, 2));
}

// What an earlier record had of it is placed, and that record is retired.
TEST_F(MountedReplayTest, TheRestOfABatchIsFinished) {
    append({{"a", 0, filled(kUnit, 1), 0, 0 | kOperationBegun}, {"b", 0, filled(kUnit, 2), 0, 1}});
    const ReplayReport report = replay(guarded());
    expect_emptied(report);
    expect("a", 0, filled(kUnit, 1));
    expect("b", 0, filled(kUnit, 0));  // nothing of it was there
}

TEST_F(MountedReplayTest, TheRestOfABatchAndNewerBytesAreAConflict) {
    append({{"a", 0, filled(kUnit, 1), 0, 0 | kOperationBegun}});
    put("a", 0, filled(kUnit, 9));
    age_records();
    const ReplayReport report = replay({});
    EXPECT_FALSE(report.log_emptied);
    EXPECT_FALSE(report.conflicts.empty());
    expect("a", 0, filled(kUnit, 9));
}

TEST_F(MountedReplayTest, ATornOperationIsFinished) {
    append({{"a", 0, filled(kUnit, 1)}});
    put("a", 8192, filled(4096, 1));
    expect_emptied(replay(guarded()));
    expect("a", 0, filled(kUnit, 1));
}

TEST_F(MountedReplayTest, OperationsOfAGroupAreJudgedEachForItself) {
    append({{"a", 0, filled(kUnit, 1), 0, 0},
            {"a", kUnit, filled(kUnit, 2), 0, 1},
            {"b", 0, filled(kUnit, 3), 0, 2}});
    put("a", 0, filled(kUnit, 1));
    put("a", kUnit, filled(kUnit, 9));  // placed, then overwritten by somebody
    const ReplayReport report = replay({});
    expect_emptied(report);
    EXPECT_EQ(report.records, 0u);
    expect("a", 0, filled(kUnit, 1));
    expect("a", kUnit, filled(kUnit, 9));
    expect("b", 0, filled(kUnit, 0));
}

TEST_F(MountedReplayTest, ALaterRecordHasTheLastWord) {
    append({{"a", 0, filled(kUnit, 1)}, {"b", 0, filled(kUnit, 1)}});
    append({{"a", 0, filled(kUnit, 2)}, {"a", kUnit, filled(kUnit, 2)}});
    // The second is half placed, over the first, of which a part is missing.
    put("a", 0, filled(kUnit, 2));
    put("b", 0, filled(4096, 1));
    expect_emptied(replay({}));
    expect("a", 0, filled(2 * kUnit, 2));
    expect("b", 0, filled(kUnit, 1));
}

TEST_F(MountedReplayTest, WithABrokenGuardTimesDecide) {
    append({{"a", 0, filled(kUnit, 1)}});
    put("a", 0, filled(kUnit, 1));
    age_records();
    put("a", 4096, filled(4096, 9));
    const ReplayReport kept = replay({});
    EXPECT_FALSE(kept.log_emptied);
    ASSERT_THAT(kept.conflicts, SizeIs(1));
    EXPECT_THAT(kept.conflicts[0], HasSubstr("changed by others"));
    EXPECT_THAT(contents().live, SizeIs(1));
    expect("a", 4096, filled(4096, 9));
    const auto opened = recover_mounted_log(*volume, {});
    ASSERT_FALSE(opened);
    EXPECT_EQ(opened.error().code, EUCLEAN);
    EXPECT_THAT(opened.error().message, HasSubstr("--force or --discard"));
    // Nobody can have come while the guard held.
    expect_emptied(replay(guarded()));
    expect("a", 0, filled(kUnit, 1));
}

TEST_F(MountedReplayTest, ForceAndDiscard) {
    append({{"a", 0, filled(kUnit, 1)}});
    age_records();
    put("a", 0, filled(4096, 1));
    EXPECT_FALSE(replay({}).log_emptied);
    const ReplayReport forced = replay({}, OnConflict::Force);
    expect_emptied(forced);
    EXPECT_EQ(forced.records, 1u);
    expect("a", 0, filled(kUnit, 1));
    append({{"a", 0, filled(kUnit, 2)}});
    const ReplayReport discarded = replay({}, OnConflict::Discard);
    expect_emptied(discarded);
    EXPECT_EQ(discarded.discarded, 1u);
    expect("a", 0, filled(kUnit, 1));
}

TEST_F(MountedReplayTest, AnUnguardedLogTrustsNoGuard) {
    append({{"a", 0, filled(kUnit, 1)}, {"b", 0, filled(kUnit, 1), 0, 1}});
    ASSERT_TRUE(log->mark(kLogUnguarded));
    age_records();
    put("a", 0, filled(8192, 1));
    put("b", 0, filled(kUnit, 1));
    const ReplayReport report = replay(guarded());
    EXPECT_FALSE(report.log_emptied);
    EXPECT_THAT(report.conflicts, SizeIs(1));  // b is as it should be
    expect("a", 8192, filled(8192, 0));
}

TEST_F(MountedReplayTest, InDoubtEverythingIsPlacedAgain) {
    append({{"a", 0, filled(kUnit, 1)}});
    put("a", 0, filled(kUnit, 1));
    place_all_so_far();
    append({{"a", 8192, filled(kUnit, 2)}, {"b", 0, filled(kUnit, 2)}});
    ASSERT_TRUE(log->mark(kLogInDoubt));
    const ReplayReport report = replay(guarded());
    expect_emptied(report);
    EXPECT_EQ(report.records, 2u);
    EXPECT_EQ(report.bytes, Bytes(2 * kUnit + 8192));
    expect("a", 0, filled(8192, 1));
    expect("a", 8192, filled(kUnit, 2));
    expect("b", 0, filled(kUnit, 2));
    EXPECT_EQ(contents().superblock.flags, 0u);
}

TEST_F(MountedReplayTest, InDoubtNewerBytesAreAConflict) {
    append({{"a", 0, filled(kUnit, 1)}, {"b", 0, filled(kUnit, 1), 0, 1}});
    ASSERT_TRUE(log->mark(kLogInDoubt));
    age_records();
    put("a", 0, filled(kUnit, 9));
    put("b", 0, filled(kUnit, 1));
    const ReplayReport report = replay(guarded());
    EXPECT_FALSE(report.log_emptied);
    EXPECT_THAT(report.conflicts, SizeIs(1));
    expect("a", 0, filled(kUnit, 9));
}

// After a crash: the volume was mounted again.

TEST_F(MountedReplayTest, AllLiveRecordsArePlacedInOrder) {
    append({{"a", 0, filled(kUnit, 1)}, {"b", 0, filled(kUnit, 1)}});
    append({{"a", 4096, filled(4096, 2)}});
    append({{"a", 8192, filled(4096, 3)}, {"a", 2 * kUnit, filled(kUnit, 3)}});
    mount_again();
    const ReplayReport report = replay({});
    expect_emptied(report);
    EXPECT_EQ(report.records, 3u);
    EXPECT_EQ(report.bytes, Bytes(3 * kUnit));
    expect("a", 0, filled(4096, 1));
    expect("a", 4096, filled(4096, 2));
    expect("a", 8192, filled(4096, 3));
    expect("a", 12288, filled(4096, 1));
    expect("a", 2 * kUnit, filled(kUnit, 3));
    expect("b", 0, filled(kUnit, 1));
}

TEST_F(MountedReplayTest, GrowthClippingAndWhatIsGone) {
    put("gone", 0, filled(kUnit, 9));
    append({{"gone", 0, filled(kUnit, 1), 0, 0},
            {"a", kFileSize, filled(kUnit, 1), kFileSize + kUnit, 1},
            {"b", 3 * kUnit, filled(kUnit, 2), 0, 2},
            {"b", 0, filled(kUnit, 2), 0, 3}});
    // Not in the first record's way: it lies in what that one grows.
    append({{"a", kFileSize, filled(4096, 3)}});
    ASSERT_EQ(::unlink(image->file("gone").c_str()), 0);
    ASSERT_EQ(::truncate(image->file("b").c_str(), 3 * kUnit + 100), 0);
    mount_again();
    const ReplayReport report = replay(private_mount());
    expect_emptied(report);
    EXPECT_THAT(report.skipped, SizeIs(2));
    EXPECT_EQ(stat("a").size, Bytes(kFileSize + kUnit));
    expect("a", kFileSize, filled(4096, 3));
    expect("a", kFileSize + 4096, filled(kUnit - 4096, 1));
    EXPECT_EQ(stat("b").size, Bytes(3 * kUnit + 100));
    expect("b", 3 * kUnit, filled(100, 2));
    expect("b", 0, filled(kUnit, 2));
    EXPECT_NE(::access(image->file("gone").c_str(), F_OK), 0);
}

TEST_F(MountedReplayTest, ANewSizeBeyondTheBytes) {
    append({{"a", 0, filled(4096, 1), kFileSize + 12345}});
    mount_again();
    expect_emptied(replay(private_mount()));
    EXPECT_EQ(stat("a").size, Bytes(kFileSize + 12345));
    expect("a", kFileSize, filled(12345, 0));
}

TEST_F(MountedReplayTest, SomebodyElsesMountAndNewerBytes) {
    append({{"a", 0, filled(kUnit, 1), 0, 0}, {"b", 0, filled(kUnit, 2), 0, 1}});
    append({{"b", kUnit, filled(kUnit, 3)}});
    age_records();
    mount_again();
    put("a", 100, filled(1, 9));
    put("b", 0, filled(2 * kUnit, 7));
    put("b", kUnit, filled(kUnit, 3));  // equal: nothing to decide
    const ReplayReport report = replay({});
    EXPECT_FALSE(report.log_emptied);
    EXPECT_THAT(report.conflicts, SizeIs(2));
    expect("a", 100, filled(1, 9));
    expect("b", 0, filled(kUnit, 7));
    expect("b", kUnit, filled(kUnit, 3));
    expect_emptied(replay({}, OnConflict::Force));
    expect("a", 0, filled(kUnit, 1));
    expect("b", 0, filled(kUnit, 2));
}

TEST_F(MountedReplayTest, OneFilesConflictHoldsUpNoOther) {
    append({{"a", 0, filled(kUnit, 1), 0, 0},
            {"b", 0, filled(kUnit, 2), 0, 1},
            // A batch: all or nothing.
            {"a", kUnit, filled(kUnit, 3), 0, 2},
            {"b", kUnit, filled(kUnit, 3), 0, 2}});
    close();
    image->unmount();
    // b is not changed after its record.
    const std::string later =
        std::to_string(::time(nullptr) + 2 * static_cast<int64_t>(kClockSlackSeconds));
    const auto set =
        run_command({"debugfs", "-w", "-R", "set_inode_field /a ctime @" + later, image->device()});
    ASSERT_EQ(set.status, 0) << set.output;
    mount();
    const ReplayReport report = replay({});
    EXPECT_FALSE(report.log_emptied);
    expect("a", 0, filled(2 * kUnit, 0));
    expect("b", 0, filled(kUnit, 2));
    expect("b", kUnit, filled(kUnit, 0));
    // Again, the same.
    const ReplayReport again = replay({});
    EXPECT_FALSE(again.log_emptied);
    expect("b", 0, filled(kUnit, 2));
}

TEST_F(MountedReplayTest, OurOwnMountIsNobodysChange) {
    append({{"a", 0, filled(kUnit, 1)}});
    age_records();
    mount_again();
    // As ext4 does at a mount, when it finishes what the crash interrupted.
    ASSERT_EQ(::truncate(image->file("a").c_str(), kFileSize - 1), 0);
    expect_emptied(replay(private_mount()));
    expect("a", 0, filled(kUnit, 1));
}

TEST_F(MountedReplayTest, NewerBytesOfBeforeTheCrash) {
    append({{"a", 0, filled(kUnit, 1)}});
    put("a", 0, filled(kUnit, 9));
    age_records();
    close();
    image->unmount();
    // The daemon was dead, and somebody wrote, before the power went.
    const std::string then = std::to_string(::time(nullptr) - 5);
    const auto set =
        run_command({"debugfs", "-w", "-R", "set_inode_field /a ctime @" + then, image->device()});
    ASSERT_EQ(set.status, 0) << set.output;
    mount();
    const ReplayReport report = replay(private_mount());
    EXPECT_FALSE(report.log_emptied);
    EXPECT_THAT(report.conflicts, SizeIs(1));
    expect("a", 0, filled(kUnit, 9));
}

// A read-only mount or e2fsck may have recovered the journal after a crash: what looks cleanly
// unmounted need not have what was placed.
TEST_F(MountedReplayTest, ACleanUnmountProvesNothing) {
    append({{"a", 0, filled(kUnit, 1)}});
    place_all_so_far();
    append({{"b", 0, filled(kUnit, 2), 0, 0}, {"b", kUnit, filled(kUnit, 2), 0, 0}});
    mount_again();
    expect_emptied(replay(private_mount()));
    expect("a", 0, filled(kUnit, 1));
    expect("b", 0, filled(2 * kUnit, 2));
}

TEST_F(MountedReplayTest, AReplayThatWasCutDoesNotSuspectItself) {
    append({{"a", 0, filled(kUnit, 1)}});
    append({{"b", 0, filled(kUnit, 2)}});
    age_records();
    mount_again();
    // As a replay leaves it that was cut after it had placed one.
    LogContents cut = contents();
    cut.superblock.flags |= kLogReplaying;
    cut.superblock.stamp = session_stamp(*volume).value();
    ASSERT_TRUE(store_superblocks(volume->log(), cut.superblock, cut.slot));
    put("a", 0, filled(4096, 1));
    mount_again();
    expect_emptied(replay(private_mount()));
    expect("a", 0, filled(kUnit, 1));
    expect("b", 0, filled(kUnit, 2));
    EXPECT_EQ(contents().superblock.flags, 0u);
}

TEST_F(MountedReplayTest, AReplayThatWasCutAndThenOthers) {
    append({{"a", 0, filled(kUnit, 1)}});
    age_records();
    mount_again();
    LogContents cut = contents();
    cut.superblock.flags |= kLogReplaying;
    cut.superblock.stamp = session_stamp(*volume).value();
    ASSERT_TRUE(store_superblocks(volume->log(), cut.superblock, cut.slot));
    mount_again();  // somebody's
    put("a", 0, filled(kUnit, 9));
    const MountHistory before = {MountHistory{session_stamp(*volume).value(), false}};
    mount_again();
    const ReplayReport report = replay(before);
    EXPECT_THAT(report.conflicts, SizeIs(1));
    expect("a", 0, filled(kUnit, 9));
}

// The log.

TEST_F(MountedReplayTest, ACorruptLogIsKept) {
    append({{"a", 0, filled(kUnit, 1)}});
    append({{"a", kUnit, filled(kUnit, 2)}});
    append({{"a", 2 * kUnit, filled(kUnit, 3)}});
    const LogContents before = contents();
    mount_again();
    ASSERT_TRUE(volume->log().write_durable(before.live[1].payload, filled(4096, 0xff)));
    const ReplayReport report = replay(private_mount());
    EXPECT_EQ(report.end, LogEnd::Corrupt);
    EXPECT_FALSE(report.log_emptied);
    expect("a", 0, filled(kUnit, 1));
    expect("a", kUnit, filled(2 * kUnit, 0));
    const auto opened = recover_mounted_log(*volume, {});
    ASSERT_FALSE(opened);
    EXPECT_EQ(opened.error().code, EUCLEAN);
    EXPECT_THAT(opened.error().message, HasSubstr("corrupt"));
}

TEST_F(MountedReplayTest, AFileThatCantBeWritten) {
    append({{"a", 0, filled(kUnit, 1)}, {"b", 0, filled(kUnit, 2), 0, 1}});
    mount_again();
    ASSERT_EQ(run_command({"chattr", "+i", image->file("a")}).status, 0);
    const ReplayReport report = replay(private_mount());
    EXPECT_FALSE(report.log_emptied);
    EXPECT_THAT(report.failed, SizeIs(1));
    expect("b", 0, filled(kUnit, 2));
    ASSERT_EQ(run_command({"chattr", "-i", image->file("a")}).status, 0);
    expect_emptied(replay(private_mount()));
    expect("a", 0, filled(kUnit, 1));
}

TEST_F(MountedReplayTest, TheLogItselfIsNoFile) {
    append({{".atomic4/log", 0, filled(kUnit, 1)}});
    mount_again();
    const ReplayReport report = replay(private_mount());
    expect_emptied(report);
    EXPECT_THAT(report.skipped, SizeIs(1));
}

TEST_F(MountedReplayTest, AnEmptyLogTakesASession) {
    append({{"a", 0, filled(kUnit, 1)}});
    mount_again();
    const auto recovered = recover_mounted_log(*volume, private_mount());
    ASSERT_TRUE(recovered) << recovered.error().message;
    EXPECT_TRUE(recovered->replayed);
    append({{"a", 0, filled(kUnit, 2)}});
    expect("a", 0, filled(kUnit, 1));
    EXPECT_FALSE(MountedVolume::open(image->dir()));  // locked
}

// More files than are held open, records over records: the same as one after the other.
TEST_F(MountedReplayTest, ManyFilesManyRecords) {
    std::mt19937_64 random(20261126);
    constexpr size_t kFiles = 300;
    std::vector<std::string> names;
    std::vector<std::vector<std::byte>> model;
    for (size_t i = 0; i < kFiles; ++i) {
        names.push_back("f" + std::to_string(i));
        model.push_back(filled(8192, 0));
        put(names.back(), 0, model.back());
    }
    for (int record = 0; record < 60; ++record) {
        std::vector<Write> writes;
        for (uint32_t i = 0; i < 10; ++i) {
            const size_t file = random() % kFiles;
            const uint64_t size = model[file].size();
            const uint64_t offset = random() % (size / 4096 + 1) * 4096;
            const uint64_t length = 4096 * (1 + random() % 2);
            const bool grows = offset + length > size;
            auto data = random_bytes(length, random);
            if (grows) model[file].resize(offset + length);
            std::memcpy(model[file].data() + offset, data.data(), length);
            writes.push_back(
                {names[file], offset, std::move(data), grows ? offset + length : 0, i});
        }
        append(writes);
    }
    mount_again();
    expect_emptied(replay(private_mount()));
    for (size_t i = 0; i < kFiles; ++i) {
        ASSERT_EQ(stat(names[i]).size, Bytes(model[i].size())) << names[i];
        expect(names[i], 0, model[i]);
    }
}

}  // namespace
}  // namespace atomic4::test
