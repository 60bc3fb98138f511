// The redo log's writer: room, order of writes, what it refuses, and what poisons it.
#include "redo_fixture.h"

namespace atomic4::redo_test {
namespace {

using RedoWriter = ThreeRecords;

std::unique_ptr<RedoLog> fresh(LogDisk& disk) {
    EXPECT_TRUE(RedoLog::format(disk, kId, kStamp));
    auto log = begin_ok(disk);
    disk.writes.clear();
    return log;
}

TEST(RedoLog, UnitMaxFollowsTheCapacity) {
    for (const auto& [size, unit] : {std::pair<uint64_t, uint64_t>{64 << 10, 8 << 10},
                                     {80 << 10, 16 << 10},
                                     {128 << 10, 16 << 10},
                                     {16400 << 10, 4 << 20},
                                     {64 << 20, 4 << 20}}) {
        LogDisk disk(size);
        auto log = fresh(disk);
        EXPECT_EQ(log->unit_max(), Bytes(unit)) << size;
        EXPECT_EQ(log->capacity(), Bytes(size - 16384));
        // Whatever the head's place, a record of that size fits an empty log.
        for (uint64_t i = 0; i < 8; ++i) {
            ASSERT_TRUE(append(*log, {range(1, 0, unit)}, i)) << size;
            log->note_retired(log->last_sequence());
            ASSERT_TRUE(log->persist_retired());
            ASSERT_TRUE(append(*log, {range(1, 0, 4096)}, i));
            log->note_retired(log->last_sequence());
            ASSERT_TRUE(log->persist_retired());
        }
    }
}

TEST(RedoLog, OneAlignedWriteARecord) {
    LogDisk disk(128 * 1024);
    auto log = fresh(disk);
    ASSERT_TRUE(append(*log, {range(1, 0, 100), range(2, 0, 9000), range(3, 7, 1)}, 1));
    ASSERT_EQ(disk.writes.size(), 1u);
    EXPECT_EQ(disk.writes[0].offset, 16384u);
    EXPECT_EQ(disk.writes[0].data.size(), 4096u + 12288u);
    EXPECT_TRUE(disk.writes[0].aligned);
}

TEST(RedoLog, ViewsAreCopiesAndOutliveTheNextAppend) {
    LogDisk disk(128 * 1024);
    auto log = fresh(disk);
    Image mine = pattern(4096, 1);
    const RangeRef where = range(1, 0, 4096);
    const std::span<const std::byte> data(mine);
    const auto first = log->append(std::span(&where, 1), std::span(&data, 1));
    ASSERT_TRUE(first.has_value());
    std::fill(mine.begin(), mine.end(), std::byte{0xff});
    const auto second = append(*log, {range(2, 0, 4096), range(3, 0, 512)}, 2);
    ASSERT_TRUE(second.has_value());
    const auto is = [](std::span<const std::byte> view, const Image& image) {
        return std::equal(view.begin(), view.end(), image.begin(), image.end());
    };
    ASSERT_EQ(first->payloads.size(), 1u);
    EXPECT_TRUE(is(first->payloads[0], pattern(4096, 1)));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(first->payloads[0].data()) % kLogBlock, 0u);
    ASSERT_EQ(second->payloads.size(), 2u);
    EXPECT_TRUE(is(second->payloads[0], pattern(4096, 2)));
    EXPECT_TRUE(is(second->payloads[1], pattern(512, 3)));
}

TEST(RedoLog, RefusesWhatARecordCantSay) {
    LogDisk disk(128 * 1024);
    auto log = fresh(disk);
    EXPECT_EQ(append(*log, {}, 1).error().code, EINVAL);
    EXPECT_EQ(append(*log, {range(1, 0, 0)}, 1).error().code, EINVAL);
    EXPECT_EQ(append(*log, {range(1, ~0ull - 10, 16)}, 1).error().code, EINVAL);
    const RangeRef where = range(1, 0, 4096);
    const Image shorter(4095);
    const std::span<const std::byte> data(shorter);
    EXPECT_EQ(log->append(std::span(&where, 1), std::span(&data, 1)).error().code, EINVAL);
    EXPECT_EQ(log->append(std::span(&where, 1), {}).error().code, EINVAL);
    EXPECT_TRUE(disk.writes.empty());
    EXPECT_FALSE(log->poisoned());
}

TEST(RedoLog, TooLongForAnyLog) {
    LogDisk disk(128 * 1024);
    auto log = fresh(disk);
    EXPECT_EQ(log->record_max(), Bytes(57344));
    EXPECT_EQ(append(*log, {range(1, 0, 57344 - 4095)}, 1).error().code, EMSGSIZE);
    EXPECT_FALSE(log->has_room(std::vector{range(1, 0, 57344 - 4095)}));
    EXPECT_FALSE(log->has_room(
        std::vector{range(1, 0, ~0ull >> 1), range(1, 0, ~0ull >> 1), range(1, 0, 2)}));
    EXPECT_TRUE(log->has_room(std::vector{range(1, 0, 57344 - 4096)}));
    EXPECT_TRUE(append(*log, {range(1, 0, 57344 - 4096)}, 1));
}

TEST(RedoLog, NoRoomUntilPersisted) {
    LogDisk disk(64 * 1024);  // 48 KiB: six records of 8 KiB
    auto log = fresh(disk);
    const std::vector ranges{range(1, 0, 4096)};
    for (uint64_t i = 1; i <= 6; ++i) {
        EXPECT_TRUE(log->has_room(ranges));
        ASSERT_TRUE(append(*log, ranges, i));
    }
    EXPECT_FALSE(log->has_room(ranges));
    EXPECT_EQ(append(*log, ranges, 7).error().code, EAGAIN);
    log->note_retired(2);
    EXPECT_EQ(append(*log, ranges, 7).error().code, EAGAIN) << "noting frees nothing";
    ASSERT_TRUE(log->persist_retired());
    EXPECT_TRUE(append(*log, ranges, 7));
    EXPECT_TRUE(append(*log, ranges, 8));
    EXPECT_EQ(append(*log, ranges, 9).error().code, EAGAIN);
    EXPECT_FALSE(log->poisoned());
    EXPECT_EQ(sequences(read_ok(disk)), (Seqs{3, 4, 5, 6, 7, 8}));
}

TEST(RedoLog, PadIsDurableBeforeItsRecord) {
    LogDisk disk(64 * 1024);
    auto log = fresh(disk);
    ASSERT_TRUE(append(*log, {range(1, 0, 20480)}, 1));  // 16384 … 40960
    ASSERT_TRUE(append(*log, {range(1, 0, 4096)}, 2));   // … 49152
    log->note_retired(2);
    ASSERT_TRUE(log->persist_retired());
    disk.writes.clear();
    ASSERT_TRUE(append(*log, {range(1, 0, 16384)}, 3));
    ASSERT_EQ(disk.writes.size(), 2u);
    EXPECT_EQ(disk.writes[0].offset, 49152u);
    EXPECT_EQ(disk.writes[0].data.size(), kLogBlock);
    EXPECT_EQ(disk.writes[1].offset, 16384u);
    EXPECT_EQ(log->last_sequence(), 4u);
    EXPECT_EQ(log->live_count(), 1u);
}

TEST(RedoLog, PadCountsAsUsedSpace) {
    LogDisk disk(64 * 1024);
    auto log = fresh(disk);
    ASSERT_TRUE(append(*log, {range(1, 0, 16384)}, 1));  // 16384 … 36864
    ASSERT_TRUE(append(*log, {range(1, 0, 16384)}, 2));  // … 57344
    log->note_retired(1);
    ASSERT_TRUE(log->persist_retired());
    // 28 KiB are free, but 8 of them at the end.
    EXPECT_EQ(append(*log, {range(1, 0, 20480)}, 3).error().code, EAGAIN);
    EXPECT_TRUE(append(*log, {range(1, 0, 16384)}, 3));
    EXPECT_EQ(log->used(), log->capacity());
    // The pad retires with the record before it.
    log->note_retired(2);
    ASSERT_TRUE(log->persist_retired());
    EXPECT_EQ(log->used(), Bytes(20480));
    EXPECT_EQ(read_ok(disk).superblock.tail, kFirstRecord);
}

TEST_F(RedoWriter, PersistWritesBothSuperblocksTheOlderFirst) {
    disk.writes.clear();
    log->note_retired(2);
    EXPECT_TRUE(disk.writes.empty());
    const size_t in_force = read_ok(disk).slot;
    ASSERT_TRUE(log->persist_retired());
    ASSERT_EQ(disk.writes.size(), 2u);
    EXPECT_EQ(disk.writes[0].offset, kSuperblockPosition[1 - in_force].value());
    EXPECT_EQ(disk.writes[1].offset, kSuperblockPosition[in_force].value());
    ASSERT_TRUE(log->persist_retired());
    EXPECT_EQ(disk.writes.size(), 2u) << "nothing new, nothing written";
}

TEST_F(RedoWriter, ARecordIsLiveUntilItsRetirementIsDurable) {
    EXPECT_EQ(log->live_count(), 3u);
    EXPECT_TRUE(log->overlaps_live(11, ByteOffset(4096), Bytes(1)));
    log->note_retired(1);
    EXPECT_TRUE(log->overlaps_live(11, ByteOffset(4096), Bytes(1))) << "only noted";
    ASSERT_TRUE(append(*log, {range(5, 0, 4096)}, 50));
    EXPECT_FALSE(log->overlaps_live(11, ByteOffset(4096), Bytes(1))) << "record 4 says so";
    EXPECT_EQ(log->live_count(), 3u);
    log->note_retired(4);
    EXPECT_FALSE(log->empty());
    ASSERT_TRUE(log->persist_retired());
    EXPECT_TRUE(log->empty());
    EXPECT_EQ(log->live_count(), 0u);
    EXPECT_EQ(log->used(), Bytes(0));
}

TEST_F(RedoWriter, OverlapsAreExact) {
    const auto overlaps = [&](uint32_t inode, uint64_t offset, uint64_t length) {
        return log->overlaps_live(inode, ByteOffset(offset), Bytes(length));
    };
    EXPECT_FALSE(overlaps(12, 0, 4096));
    EXPECT_TRUE(overlaps(12, 0, 4097));
    EXPECT_TRUE(overlaps(12, 8191, 1));
    EXPECT_FALSE(overlaps(12, 8192, 4096));
    EXPECT_FALSE(overlaps(12, 5000, 0));
    EXPECT_FALSE(overlaps(14, 4096, 4096));
    EXPECT_TRUE(overlaps(13, 0, ~0ull));
    EXPECT_FALSE(overlaps(13, ~0ull, ~0ull));
}

TEST_F(RedoWriter, NotingTooMuchOrTooLittleIsHarmless) {
    log->note_retired(2);
    log->note_retired(1);
    log->note_retired(0);
    ASSERT_TRUE(log->persist_retired());
    EXPECT_EQ(read_ok(disk).retired, 2u);
    log->note_retired(~0ull);
    ASSERT_TRUE(log->persist_retired());
    EXPECT_EQ(read_ok(disk).retired, 3u);
    EXPECT_EQ(append(*log, {range(5, 0, 4096)}, 50)->sequence, 4u);
}

TEST_F(RedoWriter, BeginIsRefusedWhileAnythingIsLive) {
    const auto begun = RedoLog::begin(disk, read_ok(disk), kStamp);
    ASSERT_FALSE(begun.has_value());
    EXPECT_EQ(begun.error().code, EBUSY);
    disk.clear(kFirst, kLogBlock);
    const LogContents contents = read_ok(disk);
    ASSERT_TRUE(contents.live.empty());
    EXPECT_EQ(RedoLog::begin(disk, contents, kStamp).error().code, EBUSY) << "corrupt";
}

TEST_F(RedoWriter, SessionsContinueTheSequence) {
    log->note_retired(3);
    ASSERT_TRUE(log->close());
    auto next = begin_ok(disk);
    EXPECT_EQ(next->last_sequence(), 3u);
    EXPECT_EQ(append(*next, {range(5, 0, 4096)}, 50)->sequence, 4u);
    EXPECT_EQ(disk.writes.back().offset, kHead);
}

TEST_F(RedoWriter, ASessionAfterATornTail) {
    disk.flip(kHead - kLogBlock);
    ASSERT_EQ(read_ok(disk).end, LogEnd::TornTail);
    ASSERT_TRUE(reset_log(disk, read_ok(disk), kStamp));
    auto next = begin_ok(disk);
    EXPECT_EQ(append(*next, {range(5, 0, 4096)}, 50)->sequence, 3u);
    EXPECT_EQ(disk.writes.back().offset, kThird);
    expect(LogEnd::Clean, {3});
}

TEST_F(RedoWriter, BeginMakesTheEpochDurableTwice) {
    log->note_retired(3);
    ASSERT_TRUE(log->close());
    disk.writes.clear();
    const SessionStamp stamp{5, 6};
    auto begun = RedoLog::begin(disk, read_ok(disk), stamp);
    ASSERT_TRUE(begun.has_value());
    ASSERT_EQ(disk.writes.size(), 2u);
    const auto epoch = [&](size_t slot) {
        return uint64_t{disk.get<LogSuperblock>(kSuperblockPosition[slot].value()).epoch};
    };
    EXPECT_EQ(epoch(0), epoch(1));
    EXPECT_NE(epoch(0), kNoEpoch);
    EXPECT_EQ(read_ok(disk).superblock.stamp, stamp);
}

TEST_F(RedoWriter, CloseNeedsEverythingRetired) {
    log->note_retired(2);
    EXPECT_EQ(log->close().error().code, EBUSY);
    log->note_retired(3);
    ASSERT_TRUE(log->close());
    EXPECT_EQ(append(*log, {range(5, 0, 4096)}, 50).error().code, EBADF);
    EXPECT_EQ(log->close().error().code, EBADF);
    EXPECT_FALSE(log->poisoned());
}

TEST_F(RedoWriter, ResetEmptiesTheLog) {
    ASSERT_TRUE(reset_log(disk, read_ok(disk), kStamp));
    const LogContents contents = read_ok(disk);
    EXPECT_TRUE(contents.live.empty());
    EXPECT_EQ(contents.retired, 3u);
    EXPECT_EQ(contents.next_sequence, 4u);
    EXPECT_NE(begin_ok(disk), nullptr);
}

TEST_F(RedoWriter, ResetEmptiesACorruptLog) {
    disk.clear(kSecond, kLogBlock);
    ASSERT_TRUE(reset_log(disk, read_ok(disk), kStamp));
    expect(LogEnd::Clean, {});
    auto next = begin_ok(disk);
    EXPECT_EQ(append(*next, {range(5, 0, 4096)}, 50)->sequence, 4u) << "no number is used twice";
    expect(LogEnd::Clean, {4});
}

TEST_F(RedoWriter, AFailedAppendPoisons) {
    disk.fail_after = disk.writes.size();
    const auto failed = append(*log, {range(5, 0, 4096)}, 50);
    ASSERT_FALSE(failed.has_value());
    EXPECT_EQ(failed.error().code, EIO);
    EXPECT_NE(failed.error().message.find("in doubt"), std::string::npos);
    EXPECT_TRUE(log->poisoned());
    EXPECT_EQ(log->why(), "record 4 at 57344: memory: write error");
    // Final, even if the device works again.
    disk.fail_after.reset();
    const size_t writes = disk.writes.size();
    log->note_retired(3);
    EXPECT_EQ(append(*log, {range(5, 0, 4096)}, 50).error().code, EIO);
    EXPECT_EQ(log->persist_retired().error().code, EIO);
    EXPECT_EQ(log->close().error().code, EIO);
    EXPECT_EQ(disk.writes.size(), writes);
    EXPECT_EQ(log->live_count(), 3u);
}

TEST_F(RedoWriter, AFailedSuperblockWritePoisons) {
    for (const size_t survive : {0, 1}) {
        LogDisk copy(uint64_t{128 * 1024});
        auto writer = fresh(copy);
        ASSERT_TRUE(append(*writer, {range(5, 0, 4096)}, 50));
        writer->note_retired(1);
        copy.fail_after = copy.writes.size() + survive;
        EXPECT_EQ(writer->persist_retired().error().code, EIO);
        EXPECT_TRUE(writer->poisoned());
        copy.fail_after.reset();
        EXPECT_EQ(append(*writer, {range(5, 0, 4096)}, 50).error().code, EIO);
        EXPECT_EQ(sequences(read_ok(copy)), survive ? Seqs{} : Seqs{1});
    }
}

TEST_F(RedoWriter, AFailedPadPoisons) {
    log->note_retired(3);
    ASSERT_TRUE(log->persist_retired());
    ASSERT_TRUE(append(*log, {range(5, 0, 45056)}, 50));
    disk.fail_after = disk.writes.size();
    EXPECT_EQ(append(*log, {range(6, 0, 32768)}, 60).error().code, EIO);
    EXPECT_TRUE(log->poisoned());
}

TEST_F(RedoWriter, ABeginOrResetThatFailsLeavesOneOfTheStates) {
    log->note_retired(3);
    ASSERT_TRUE(log->persist_retired());
    for (const size_t survive : {0, 1}) {
        disk.fail_after = disk.writes.size() + survive;
        const LogContents contents = read_ok(disk);
        EXPECT_EQ(RedoLog::begin(disk, contents, kStamp).error().code, EIO);
        expect(LogEnd::Clean, {});
        EXPECT_EQ(reset_log(disk, contents, kStamp).error().code, EIO);
        expect(LogEnd::Clean, {});
    }
    disk.fail_after.reset();
    EXPECT_NE(begin_ok(disk), nullptr);
}

}  // namespace
}  // namespace atomic4::redo_test
