// The redo log's superblocks: each way in which they can be damaged, foreign or torn.
#include "redo/log_superblock.h"
#include "redo_fixture.h"

namespace atomic4::redo_test {
namespace {

class RedoSuperblock : public testing::Test {
  protected:
    RedoSuperblock() : disk(128 * 1024) { EXPECT_TRUE(RedoLog::format(disk, kId, kStamp)); }

    int error() {
        const auto contents = read_log(disk, kId);
        if (contents) return 0;
        message = contents.error().message;
        return contents.error().code;
    }
    template <class T>
    void set(size_t slot, size_t field, T value) {
        disk.put(kSuperblockPosition[slot].value() + field, value);
        reseal_superblock(disk, slot);
    }

    LogDisk disk;
    std::string message;
};

TEST_F(RedoSuperblock, EncodesAndDecodes) {
    LogState state;
    state.log_id = kId;
    state.update = 5;
    state.epoch = 0x1122334455667788;
    state.log_size = Bytes(1 << 20);
    state.tail = ByteOffset(20480);
    state.tail_sequence = 9;
    state.retired = 8;
    state.stamp = kStamp;
    state.flags = kLogInDoubt | kLogUnguarded;
    const LogSuperblock raw = encode_superblock(state);
    const auto decoded = decode_superblock(raw, Bytes(1 << 20));
    ASSERT_TRUE(decoded.has_value());
    EXPECT_EQ(*decoded, state);
    std::array<uint8_t, 12> head;
    std::memcpy(head.data(), &raw, head.size());
    EXPECT_EQ(head, (std::array<uint8_t, 12>{'A', '4', 'R', 'E', 'D', 'O', 'S', 'B', 2, 0, 0, 0}));
}

TEST_F(RedoSuperblock, AFreshLogIsEmpty) {
    const LogContents contents = read_ok(disk);
    EXPECT_TRUE(contents.live.empty());
    EXPECT_EQ(contents.end, LogEnd::Clean);
    EXPECT_EQ(contents.next_sequence, 1u);
    EXPECT_EQ(contents.retired, 0u);
    EXPECT_EQ(contents.head, kFirstRecord);
    EXPECT_EQ(contents.superblock.epoch, kNoEpoch);
    EXPECT_EQ(contents.superblock.stamp, kStamp);
    EXPECT_EQ(contents.superblock.log_id, kId);
    EXPECT_EQ(contents.superblock_damage, "");
}

TEST_F(RedoSuperblock, EitherOneDamagedLeavesTheOther) {
    for (const size_t slot : {0, 1}) {
        LogDisk copy(disk.image);
        copy.flip(kSuperblockPosition[slot].value() + 0x20);
        const LogContents contents = read_ok(copy);
        EXPECT_EQ(contents.slot, 1 - slot);
        EXPECT_EQ(contents.superblock_damage,
                  fmt::format("superblock at {}: wrong checksum", kSuperblockPosition[slot]));
        // The next session repairs it, before it touches the one that is left.
        ASSERT_NE(begin_ok(copy), nullptr);
        EXPECT_EQ(copy.writes.at(0).offset, kSuperblockPosition[slot].value());
        EXPECT_EQ(copy.writes.at(1).offset, kSuperblockPosition[1 - slot].value());
        EXPECT_EQ(read_ok(copy).superblock_damage, "");
    }
}

TEST_F(RedoSuperblock, EveryBitCounts) {
    for (uint64_t offset = 0; offset < kLogBlock; offset += offset < 0x80 ? 1 : 61)
        for (unsigned bit = 0; bit < 8; ++bit) {
            disk.flip(8192 + offset, bit);
            ASSERT_EQ(read_ok(disk).slot, 0u) << offset;
            disk.flip(8192 + offset, bit);
        }
}

TEST_F(RedoSuperblock, BothDamagedIsAnError) {
    disk.flip(0x30);
    disk.flip(8192);
    EXPECT_EQ(error(), EUCLEAN);
    EXPECT_NE(message.find("superblock at 0: wrong checksum"), std::string::npos) << message;
    EXPECT_NE(message.find("superblock at 8192: no magic number"), std::string::npos) << message;
}

TEST_F(RedoSuperblock, NewerOneTornAtEachSectorLeavesTheOlder) {
    const Image old = disk.image;
    ASSERT_NE(begin_ok(disk), nullptr);
    const size_t slot = read_ok(disk).slot;
    const uint64_t at = kSuperblockPosition[slot].value();
    for (uint64_t cut = 0; cut < kLogBlock; cut += kSector) {
        LogDisk torn(disk.image);
        std::memcpy(&torn.image[at + cut], &old[at + cut], kLogBlock - cut);
        const LogContents contents = read_ok(torn);
        // All that differs is in the first sector: with that, it is complete.
        EXPECT_EQ(contents.slot, cut == 0 ? 1 - slot : slot);
        EXPECT_TRUE(contents.live.empty());
    }
    LogDisk torn(disk.image);
    torn.flip(at + 0x2f, 7);  // old and new epoch mixed
    EXPECT_EQ(read_ok(torn).slot, 1 - slot);
}

TEST_F(RedoSuperblock, HigherUpdateCountsInEitherSlot) {
    for (const size_t slot : {0, 1}) {
        set(slot, offsetof(LogSuperblock, update), le64{100 + slot});
        EXPECT_EQ(read_ok(disk).slot, slot);
    }
}

TEST_F(RedoSuperblock, UnknownVersionIsRefused) {
    for (const size_t slot : {0, 1}) {
        const Image saved = disk.image;
        set(slot, offsetof(LogSuperblock, version), le32{3});
        EXPECT_EQ(error(), EOPNOTSUPP);
        EXPECT_NE(message.find("version 3"), std::string::npos) << message;
        disk.image = saved;
    }
}

TEST_F(RedoSuperblock, UnknownFlagsAreRefused) {
    set(1, offsetof(LogSuperblock, flags), le32{0x80});
    EXPECT_EQ(error(), EOPNOTSUPP);
}

TEST_F(RedoSuperblock, AFlippedVersionBitIsDamage) {
    disk.flip(8, 3);
    EXPECT_EQ(read_ok(disk).slot, 1u);
}

TEST_F(RedoSuperblock, AnotherLogsIdIsRefused) {
    const auto contents = read_log(disk, kOtherId);
    ASSERT_FALSE(contents.has_value());
    EXPECT_EQ(contents.error().code, EUCLEAN);
    EXPECT_NE(contents.error().message.find("belongs to another log"), std::string::npos);
}

TEST_F(RedoSuperblock, TwoThatDisagreeAreRefused) {
    const Image saved = disk.image;
    set(0, offsetof(LogSuperblock, log_id), kOtherId);
    EXPECT_EQ(error(), EUCLEAN);
    disk.image = saved;
    set(0, offsetof(LogSuperblock, log_size), le64{65536});
    EXPECT_EQ(error(), EUCLEAN);
    disk.image = saved;
    set(0, offsetof(LogSuperblock, update), disk.get<le64>(8192 + 0x20));
    EXPECT_EQ(error(), 0);  // the same twice: no contradiction
    set(0, offsetof(LogSuperblock, epoch), le64{5});
    EXPECT_EQ(error(), EUCLEAN);
}

TEST_F(RedoSuperblock, ImpossibleValuesAreDamage) {
    struct Case {
        size_t field;
        uint64_t value;
    };
    for (const auto& [field, value] :
         {Case{offsetof(LogSuperblock, log_size), 128 * 1024 + 4096},
          Case{offsetof(LogSuperblock, log_size), 128 * 1024 - 1},
          Case{offsetof(LogSuperblock, log_size), 32768},
          Case{offsetof(LogSuperblock, log_size), 0},
          Case{offsetof(LogSuperblock, log_size), ~0ull << 12},
          Case{offsetof(LogSuperblock, tail), 12288}, Case{offsetof(LogSuperblock, tail), 16385},
          Case{offsetof(LogSuperblock, tail), 128 * 1024},
          Case{offsetof(LogSuperblock, tail), ~0ull << 12},
          Case{offsetof(LogSuperblock, tail_sequence), 0},
          Case{offsetof(LogSuperblock, tail_sequence), 2},
          Case{offsetof(LogSuperblock, tail_sequence), ~0ull},
          Case{offsetof(LogSuperblock, retired), ~0ull}}) {
        const Image saved = disk.image;
        set(1, field, le64{value});
        const LogContents contents = read_ok(disk);
        EXPECT_EQ(contents.slot, 0u) << field << " = " << value;
        EXPECT_NE(contents.superblock_damage.find("impossible values"), std::string::npos);
        disk.image = saved;
    }
}

TEST_F(RedoSuperblock, AReadErrorIsNotDamage) {
    for (const size_t slot : {0, 1}) {
        disk.bad_sector = kSuperblockPosition[slot].value() + 512;
        EXPECT_EQ(error(), EIO);
        EXPECT_NE(message.find(fmt::format("superblock at {}", kSuperblockPosition[slot])),
                  std::string::npos)
            << message;
    }
}

TEST_F(RedoSuperblock, TooSmallToBeALog) {
    LogDisk small(60 * 1024);
    EXPECT_EQ(RedoLog::format(small, kId, kStamp).error().code, EINVAL);
    EXPECT_EQ(read_log(small, kId).error().code, EUCLEAN);
    EXPECT_TRUE(small.writes.empty());
    LogDisk nothing(uint64_t{0});
    EXPECT_EQ(read_log(nothing, kId).error().code, EUCLEAN);
}

TEST_F(RedoSuperblock, FormatForgetsWhatWasThere) {
    auto log = begin_ok(disk);
    ASSERT_TRUE(append(*log, {range(1, 0, 4096)}, 1));
    ASSERT_TRUE(RedoLog::format(disk, kOtherId, kStamp));
    const auto contents = read_log(disk, kOtherId);
    ASSERT_TRUE(contents.has_value());
    EXPECT_TRUE(contents->live.empty());
    EXPECT_EQ(contents->end, LogEnd::Clean);
}

TEST_F(RedoSuperblock, AnOddSizeIsRoundedDown) {
    LogDisk odd(70 * 1024 + 100);
    ASSERT_TRUE(RedoLog::format(odd, kId, kStamp));
    EXPECT_EQ(read_ok(odd).superblock.log_size, Bytes(68 * 1024));
}

}  // namespace
}  // namespace atomic4::redo_test
