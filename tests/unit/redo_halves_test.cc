// The halves of append and persist_retired, for callers who do their own I/O; and the marks.
#include "redo_fixture.h"

namespace atomic4::redo_test {
namespace {

class RedoHalves : public ThreeRecords {
  protected:
    RedoLog::Staged stage(const RangeRef& where, uint64_t tag) {
        const Image bytes = pattern(where.length.value(), tag);
        const std::span<const std::byte> data(bytes);
        auto staged = log->stage_append(std::span(&where, 1), std::span(&data, 1));
        EXPECT_TRUE(staged.has_value()) << (staged ? "" : staged.error().message);
        return staged ? *std::move(staged) : RedoLog::Staged{};
    }
    Result<> perform(const RedoLog::LogWrite& write) {
        return disk.write_durable(write.position, write.bytes);
    }
};

TEST_F(RedoHalves, NothingIsWrittenOrLiveBeforeItIsFinished) {
    disk.writes.clear();
    const auto staged = stage(range(20, 0, 4096), 40);
    ASSERT_EQ(staged.writes.size(), 1u);
    EXPECT_TRUE(disk.writes.empty());
    EXPECT_FALSE(log->overlaps_live(20, ByteOffset(0), Bytes(1)));
    const RangeRef other = range(21, 0, 4096);
    const Image bytes = pattern(4096, 1);
    const std::span<const std::byte> data(bytes);
    const auto second = log->stage_append(std::span(&other, 1), std::span(&data, 1));
    ASSERT_FALSE(second.has_value());
    EXPECT_EQ(second.error().code, EBUSY);

    ASSERT_TRUE(perform(staged.writes[0]));
    ASSERT_TRUE(log->finish_append({}));
    EXPECT_TRUE(log->overlaps_live(20, ByteOffset(0), Bytes(1)));
    EXPECT_EQ(staged.appended.sequence, 4u);
    expect(LogEnd::Clean, {1, 2, 3, 4});
}

TEST_F(RedoHalves, AFailedWritePoisons) {
    stage(range(20, 0, 4096), 40);
    EXPECT_EQ(log->finish_append(fail(EIO, "the disk is gone")).error().code, EIO);
    EXPECT_TRUE(log->poisoned());
    EXPECT_FALSE(log->stage_retired().has_value());
    EXPECT_EQ(append(*log, {range(1, 0, 512)}, 1).error().code, EIO);
}

TEST_F(RedoHalves, OneSuperblockMakesARetirementDurableTwoFreeItsSpace) {
    log->note_retired(2);
    const Bytes used = log->used();
    const auto first = log->stage_retired();
    ASSERT_TRUE(first.has_value());
    EXPECT_FALSE(log->stage_retired().has_value()) << "one at a time";
    ASSERT_TRUE(perform(*first));
    EXPECT_TRUE(log->overlaps_live(11, ByteOffset(0), Bytes(1)));
    ASSERT_TRUE(log->finish_retired({}));
    EXPECT_FALSE(log->overlaps_live(11, ByteOffset(0), Bytes(1)));
    EXPECT_EQ(log->durable_retired(), 2u);
    EXPECT_EQ(log->used(), used);
    expect(LogEnd::Clean, {3});

    const auto second = log->stage_retired();
    ASSERT_TRUE(second.has_value());
    EXPECT_NE(second->position, first->position);
    ASSERT_TRUE(perform(*second));
    ASSERT_TRUE(log->finish_retired({}));
    EXPECT_EQ(log->used(), Bytes(12288));
    EXPECT_FALSE(log->stage_retired().has_value());
    expect(LogEnd::Clean, {3});
}

// Whatever is torn meanwhile: the slot that isn't being written has a state that holds.
TEST_F(RedoHalves, EitherSuperblockAloneIsEnoughBetweenTheTwo) {
    log->note_retired(2);
    const auto first = log->stage_retired();
    ASSERT_TRUE(perform(*first));
    ASSERT_TRUE(log->finish_retired({}));
    for (const ByteOffset slot : kSuperblockPosition) {
        const Image saved = disk.image;
        disk.flip(slot.value() + 0x40);
        const LogContents contents = read_ok(disk);
        EXPECT_NE(contents.superblock_damage, "");
        EXPECT_EQ(sequences(contents), slot == first->position ? Seqs({1, 2, 3}) : Seqs({3}));
        disk.image = saved;
    }
}

// With fewer superblock writes than records, space and sequence stay right around the ring.
TEST_F(RedoHalves, ManyTurnsWithOneSuperblockEach) {
    for (uint64_t i = 0; i < 200; ++i) {
        log->note_retired(log->last_sequence());
        if (const auto write = log->stage_retired()) {
            ASSERT_TRUE(perform(*write));
            ASSERT_TRUE(log->finish_retired({}));
        }
        ASSERT_TRUE(append(*log, {range(30, 0, 4096 * (1 + i % 4))}, i)) << i;
        expect(LogEnd::Clean, {log->last_sequence()});
    }
    log->note_retired(log->last_sequence());
    ASSERT_TRUE(log->close());
}

TEST_F(RedoHalves, RecordsSayWhatIsPlacedAndWhenTheyWereMade) {
    log->note_placed(2);
    const auto before = static_cast<uint64_t>(std::time(nullptr)) * 1'000'000'000u;
    ASSERT_TRUE(append(*log, {range(20, 0, 512)}, 40));
    const LogContents contents = read_ok(disk);
    EXPECT_EQ(contents.placed, 2u);
    EXPECT_EQ(contents.retired, 0u);
    EXPECT_GE(contents.live.back().time, before);
    log->note_placed(100);  // never more than there is
    ASSERT_TRUE(append(*log, {range(20, 0, 512)}, 41));
    EXPECT_EQ(read_ok(disk).placed, 4u);
}

TEST_F(RedoHalves, MarksAreInBothSuperblocksUntilTheLogIsEmptied) {
    ASSERT_TRUE(log->mark(kLogUnguarded));
    const auto writes = disk.writes.size();
    ASSERT_TRUE(log->mark(kLogUnguarded));
    EXPECT_EQ(disk.writes.size(), writes) << "it is there already";
    for (const ByteOffset slot : kSuperblockPosition) {
        const Image saved = disk.image;
        disk.flip(slot.value() + 0x40);
        EXPECT_EQ(read_ok(disk).superblock.flags, kLogUnguarded);
        expect(LogEnd::Clean, {1, 2, 3});
        disk.image = saved;
    }
    ASSERT_TRUE(append(*log, {range(20, 0, 512)}, 40));
    log->note_retired(log->last_sequence());
    ASSERT_TRUE(log->persist_retired());
    EXPECT_EQ(read_ok(disk).superblock.flags, kLogUnguarded);
    ASSERT_TRUE(log->close());
    EXPECT_EQ(read_ok(disk).superblock.flags, 0u);
    EXPECT_EQ(begin_ok(disk)->last_sequence(), 4u);
}

TEST_F(RedoHalves, ALogWhoseWriterIsGoneIsMarked) {
    log.reset();
    ASSERT_TRUE(mark_log(disk, kId, kLogUnguarded));
    EXPECT_EQ(read_ok(disk).superblock.flags, kLogUnguarded);
    expect(LogEnd::Clean, {1, 2, 3});
    const auto writes = disk.writes.size();
    ASSERT_TRUE(mark_log(disk, kId, kLogUnguarded));
    EXPECT_EQ(disk.writes.size(), writes);
    ASSERT_TRUE(reset_log(disk, read_ok(disk), kStamp));
    ASSERT_TRUE(mark_log(disk, kId, kLogUnguarded)) << "no session, nothing to mark";
    EXPECT_EQ(read_ok(disk).superblock.flags, 0u);
}

TEST_F(RedoHalves, APoisonedLogTakesItsMark) {
    stage(range(20, 0, 4096), 40);
    ASSERT_FALSE(log->finish_append(fail(EIO, "the disk is gone")));
    ASSERT_TRUE(log->mark(kLogInDoubt));
    EXPECT_EQ(read_ok(disk).superblock.flags, kLogInDoubt);
    expect(LogEnd::Clean, {1, 2, 3});
}

}  // namespace
}  // namespace atomic4::redo_test
