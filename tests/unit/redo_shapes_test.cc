// One test for each shape in which a redo log can be found: whole, torn, stale, full, corrupt.
#include <algorithm>

#include "redo_fixture.h"

namespace atomic4::redo_test {
namespace {

using RedoShapes = ThreeRecords;

TEST(RedoShape, SessionWithoutRecords) {
    LogDisk disk(128 * 1024);
    ASSERT_TRUE(RedoLog::format(disk, kId, kStamp));
    ASSERT_NE(begin_ok(disk), nullptr);
    const LogContents contents = read_ok(disk);
    EXPECT_TRUE(contents.live.empty());
    EXPECT_EQ(contents.end, LogEnd::Clean);
    EXPECT_NE(contents.superblock.epoch, kNoEpoch);
    EXPECT_EQ(contents.next_sequence, 1u);
}

TEST(RedoShape, OneRecord) {
    LogDisk disk(128 * 1024);
    ASSERT_TRUE(RedoLog::format(disk, kId, kStamp));
    auto log = begin_ok(disk);
    ASSERT_TRUE(append(*log, {range(7, 1 << 20, 4096, 5 << 20)}, 3));
    const LogContents contents = read_ok(disk);
    ASSERT_EQ(contents.live.size(), 1u);
    const LoggedRecord& record = contents.live[0];
    EXPECT_EQ(record.sequence, 1u);
    EXPECT_EQ(record.position, kFirstRecord);
    EXPECT_EQ(record.total_length, Bytes(8192));
    EXPECT_EQ(record.payload, ByteOffset(20480));
    ASSERT_EQ(record.ranges.size(), 1u);
    EXPECT_EQ(record.ranges[0], range(7, 1 << 20, 4096, 5 << 20));
    EXPECT_EQ(read_payload(disk, record).value(), pattern(4096, 3));
    EXPECT_EQ(contents.next_sequence, 2u);
    EXPECT_EQ(contents.head, ByteOffset(24576));
    EXPECT_EQ(contents.end, LogEnd::Clean);
}

TEST_F(RedoShapes, Whole) {
    const LogContents contents = read_ok(disk);
    EXPECT_EQ(contents.end, LogEnd::Clean);
    EXPECT_EQ(sequences(contents), (Seqs{1, 2, 3}));
    EXPECT_EQ(contents.live[1].position, ByteOffset(kSecond));
    EXPECT_EQ(contents.live[2].position, ByteOffset(kThird));
    EXPECT_EQ(contents.head, ByteOffset(kHead));
    Image second = pattern(4096, 20);
    const Image rest = pattern(8192, 21);
    second.insert(second.end(), rest.begin(), rest.end());
    EXPECT_EQ(read_payload(disk, contents.live[1]).value(), second);
    EXPECT_EQ(read_payload(disk, contents.live[2]).value(), pattern(5000, 30));
}

// --- torn ---

TEST_F(RedoShapes, TornAfterEachSector) {
    const Image whole = disk.image;
    for (uint64_t cut = 0; cut < kHead - kThird; cut += kSector) {
        disk.image = before_third;
        std::memcpy(&disk.image[kThird], &whole[kThird], cut);
        const LogContents contents = read_ok(disk);
        // What is left out at the very end are the padding's zeros.
        const bool complete = disk.image == whole;
        EXPECT_EQ(complete, cut >= kLogBlock + 5000);
        EXPECT_EQ(sequences(contents), complete ? (Seqs{1, 2, 3}) : (Seqs{1, 2})) << cut;
        if (complete) continue;
        EXPECT_EQ(contents.end, cut == 0 ? LogEnd::Clean : LogEnd::TornTail) << cut;
        EXPECT_EQ(contents.head, ByteOffset(kThird));
        EXPECT_EQ(contents.next_sequence, 3u);
        EXPECT_FALSE(cut != 0 && contents.end_detail.empty());
    }
}

TEST_F(RedoShapes, TornHeader) {
    disk.clear(kThird, kSector);  // the device wrote the record's sectors in any order
    expect(LogEnd::Clean, {1, 2});
}

TEST_F(RedoShapes, TornLongHeaderAtEachSector) {
    // 200 ranges: two header blocks.
    std::vector<RangeRef> ranges;
    for (uint32_t i = 0; i < 200; ++i) ranges.push_back(range(20 + i, i * 4096ull, 16));
    const Image before = disk.image;
    ASSERT_TRUE(append(*log, ranges, 40));
    expect(LogEnd::Clean, {1, 2, 3, 4});
    EXPECT_EQ(read_ok(disk).live[3].ranges, ranges);
    const Image whole = disk.image;
    for (uint64_t sector = 0; sector < 6400 + 0x80; sector += kSector) {
        disk.image = whole;
        std::memcpy(&disk.image[kHead + sector], &before[kHead + sector], kSector);
        expect(sector == 0 ? LogEnd::Clean : LogEnd::TornTail, {1, 2, 3});
    }
}

TEST_F(RedoShapes, EachSectorOfThePayloadMissing) {
    const Image whole = disk.image;
    for (uint64_t sector = kThird + kLogBlock; sector < kThird + kLogBlock + 5000;
         sector += kSector) {
        disk.image = whole;
        std::memcpy(&disk.image[sector], &before_third[sector], kSector);
        expect(LogEnd::TornTail, {1, 2});
    }
}

TEST_F(RedoShapes, TornRecordOverOlderBytes) {
    const Image whole = disk.image;
    disk.image = before_third;
    const Image old = pattern(kHead - kThird, 99);
    std::memcpy(&disk.image[kThird], old.data(), old.size());
    std::memcpy(&disk.image[kThird], &whole[kThird], kLogBlock);
    expect(LogEnd::TornTail, {1, 2});
}

// --- something in the middle is missing ---

TEST_F(RedoShapes, MissingMiddleRecordIsCorruption) {
    disk.clear(kSecond, 16384);
    const LogContents contents = read_ok(disk);
    EXPECT_EQ(contents.end, LogEnd::Corrupt);
    EXPECT_EQ(sequences(contents), (Seqs{1}));
    EXPECT_EQ(contents.end_detail, "record 2 at 28672 is missing, but record 3 at 45056 is valid");
    EXPECT_EQ(contents.head, ByteOffset(kSecond));
    EXPECT_EQ(contents.next_sequence, 4u);
}

TEST_F(RedoShapes, DamagedMiddlePayloadIsCorruption) {
    disk.flip(kSecond + 4096 + 7000, 5);
    expect(LogEnd::Corrupt, {1});
}

TEST_F(RedoShapes, DamagedFirstRecordIsCorruption) {
    disk.flip(kFirst + 0x28);
    expect(LogEnd::Corrupt, {});
}

TEST_F(RedoShapes, AnInvalidLaterRecordIsNoEvidence) {
    disk.flip(kSecond + 0x60);
    disk.flip(kHead - kLogBlock);
    expect(LogEnd::TornTail, {1});
}

TEST_F(RedoShapes, ALaterRecordTooFarAheadIsNoEvidence) {
    disk.clear(kSecond, 16384);
    auto header = disk.get<RecordHeader>(kThird);
    for (const uint64_t ahead : {28u, 29u}) {  // the ring has 28 blocks
        header.sequence = 2 + ahead;
        disk.put(kThird, header);
        reseal(disk, kThird);
        const uint32_t seed = record_seed(header.epoch, header.sequence, ByteOffset(kThird));
        header.payload_crc = crc32c(seed, std::span(disk.image).subspan(kThird + 4096, 8192));
        disk.put(kThird, header);
        reseal(disk, kThird);
        expect(ahead == 28 ? LogEnd::Corrupt : LogEnd::Clean, {1});
    }
}

TEST_F(RedoShapes, ARecordBehindAGapStillRetires) {
    log->note_retired(1);
    ASSERT_TRUE(append(*log, {range(5, 0, 4096)}, 50));  // record 4 says that 1 is placed
    disk.flip(kSecond + 0x60);
    const LogContents contents = read_ok(disk);
    EXPECT_EQ(contents.end, LogEnd::Corrupt);
    EXPECT_TRUE(contents.live.empty()) << "record 1 was retired: newer bytes may be in its place";
    EXPECT_EQ(contents.retired, 1u);
}

TEST_F(RedoShapes, MissingRecordBeforeTheWrapIsCorruption) {
    log->note_retired(3);
    ASSERT_TRUE(log->persist_retired());
    ASSERT_TRUE(append(*log, {range(5, 0, 45056)}, 50));  // 57344 … 106496
    ASSERT_TRUE(append(*log, {range(6, 0, 32768)}, 60));  // pad 5 at 106496, record 6 at 16384
    expect(LogEnd::Clean, {4, 6});
    const Image whole = disk.image;
    disk.flip(106496 + 0x40);  // the pad
    expect(LogEnd::Corrupt, {4});
    disk.image = whole;
    disk.clear(kHead, kLogBlock);
    expect(LogEnd::Corrupt, {});
}

TEST_F(RedoShapes, RetiredBeyondTheEndIsCorruption) {
    for (const size_t slot : {0, 1}) {
        disk.put(kSuperblockPosition[slot].value() + offsetof(LogSuperblock, retired), le64{5});
        reseal_superblock(disk, slot);
    }
    const LogContents contents = read_ok(disk);
    EXPECT_EQ(contents.end, LogEnd::Corrupt);
    EXPECT_TRUE(contents.live.empty());
    EXPECT_EQ(contents.next_sequence, 6u);
}

// --- single bits ---

struct Field {
    const char* name;
    size_t offset, length;
    LogEnd end;  // if the last record has the damage
};

constexpr Field kHeaderFields[] = {
    {"magic", 0x00, 8, LogEnd::Clean},
    {"type", 0x08, 4, LogEnd::TornTail},
    {"header_crc", 0x0c, 4, LogEnd::TornTail},
    {"log_id", 0x10, 16, LogEnd::TornTail},
    {"epoch", 0x20, 8, LogEnd::Clean},
    {"sequence", 0x28, 8, LogEnd::Clean},
    {"retired", 0x30, 8, LogEnd::TornTail},
    {"position", 0x38, 8, LogEnd::TornTail},
    {"total_length", 0x40, 8, LogEnd::TornTail},
    {"header_length", 0x48, 4, LogEnd::TornTail},
    {"range_count", 0x4c, 4, LogEnd::TornTail},
    {"payload_crc", 0x50, 4, LogEnd::TornTail},
    {"flags", 0x54, 4, LogEnd::TornTail},
    {"payload_length", 0x58, 8, LogEnd::TornTail},
    {"time", 0x60, 8, LogEnd::TornTail},
    {"placed", 0x68, 8, LogEnd::TornTail},
    {"reserved", 0x70, 16, LogEnd::TornTail},
    {"range inode", 0x80, 4, LogEnd::TornTail},
    {"range generation", 0x84, 4, LogEnd::TornTail},
    {"range offset", 0x88, 8, LogEnd::TornTail},
    {"range length", 0x90, 8, LogEnd::TornTail},
    {"range new_size", 0x98, 8, LogEnd::TornTail},
    {"zeros behind the ranges", 0xa0, 8, LogEnd::TornTail},
    {"the header block's last word", 0xff8, 8, LogEnd::TornTail},
    {"payload", 0x1000, 8, LogEnd::TornTail},
    {"padding", 0x1000 + 5000, 8, LogEnd::TornTail},
};

class RedoBitFlip : public ThreeRecords, public testing::WithParamInterface<Field> {};

TEST_P(RedoBitFlip, InTheLastRecordEndsTheLog) {
    for (uint64_t bit = 0; bit < GetParam().length * 8; ++bit) {
        SCOPED_TRACE(fmt::format("{} bit {}", GetParam().name, bit));
        const uint64_t at = kThird + GetParam().offset + bit / 8;
        disk.flip(at, bit % 8);
        expect(GetParam().end, {1, 2});
        disk.flip(at, bit % 8);
    }
}

TEST_P(RedoBitFlip, InTheMiddleIsCorruption) {
    for (uint64_t bit = 0; bit < GetParam().length * 8; ++bit) {
        SCOPED_TRACE(fmt::format("{} bit {}", GetParam().name, bit));
        const uint64_t at = kSecond + GetParam().offset + bit / 8;
        disk.flip(at, bit % 8);
        expect(LogEnd::Corrupt, {1});
        disk.flip(at, bit % 8);
    }
}

INSTANTIATE_TEST_SUITE_P(Fields, RedoBitFlip, testing::ValuesIn(kHeaderFields),
                         [](const testing::TestParamInfo<Field>& info) {
                             std::string name = info.param.name;
                             std::erase_if(name, [](char c) { return !std::isalnum(c); });
                             return name;
                         });

TEST_F(RedoShapes, BitFlipInAPad) {
    log->note_retired(3);
    ASSERT_TRUE(log->persist_retired());
    ASSERT_TRUE(append(*log, {range(5, 0, 45056)}, 50));
    ASSERT_TRUE(append(*log, {range(6, 0, 32768)}, 60));
    const Image whole = disk.image;
    for (const uint64_t offset : {0x00, 0x08, 0x0c, 0x10, 0x20, 0x28, 0x30, 0x38, 0x40, 0x48, 0x4c,
                                  0x50, 0x54, 0x58, 0x60, 0xfff}) {
        SCOPED_TRACE(offset);
        disk.image = whole;
        disk.flip(106496 + offset);
        expect(LogEnd::Corrupt, {4});
    }
    // What stands in the padded space beyond the header block doesn't matter.
    disk.image = whole;
    disk.flip(106496 + 4096);
    expect(LogEnd::Clean, {4, 6});
}

// --- stale ---

TEST_F(RedoShapes, StaleRecordsOfAnOlderEpoch) {
    // A new session at the same place with the same numbers: only the epoch tells them apart.
    LogContents contents = read_ok(disk);
    contents.head = kFirstRecord;
    contents.next_sequence = 1;
    contents.live.clear();
    auto next = RedoLog::begin(disk, contents, kStamp);
    ASSERT_TRUE(next.has_value());
    expect(LogEnd::Clean, {});
    ASSERT_TRUE(append(**next, {range(11, 0, 8192)}, 70));  // exactly over record 1
    expect(LogEnd::Clean, {1});
    EXPECT_EQ(read_payload(disk, read_ok(disk).live[0]).value(), pattern(8192, 70));
}

TEST_F(RedoShapes, StaleRecordsOfThePreviousLap) {
    // Records of one size, so that each lap's headers stand where the last lap's did.
    log->note_retired(3);
    ASSERT_TRUE(log->close());
    auto session = begin_ok(disk);
    for (uint64_t i = 0; i < 100; ++i) {
        const auto appended = append(*session, {range(9, i * 4096, 4096)}, i);
        ASSERT_TRUE(appended.has_value()) << i;
        EXPECT_EQ(appended->sequence, 4 + i);
        expect(LogEnd::Clean, {4 + i});
        session->note_retired(4 + i);
        ASSERT_TRUE(session->persist_retired());
        expect(LogEnd::Clean, {});
    }
}

// --- the end of the ring ---

TEST_F(RedoShapes, WrapExactlyAtTheEnd) {
    log->note_retired(3);
    ASSERT_TRUE(log->persist_retired());
    ASSERT_TRUE(append(*log, {range(5, 0, 45056)}, 50));
    ASSERT_TRUE(append(*log, {range(6, 0, 20480)}, 60));  // 106496 … 131072
    EXPECT_EQ(read_ok(disk).head, kFirstRecord);
    ASSERT_TRUE(append(*log, {range(7, 0, 4096)}, 70));
    const LogContents contents = read_ok(disk);
    EXPECT_EQ(sequences(contents), (Seqs{4, 5, 6}));
    EXPECT_EQ(contents.live[2].position, kFirstRecord);
}

TEST_F(RedoShapes, PadOfOneBlock) {
    log->note_retired(3);
    ASSERT_TRUE(log->persist_retired());
    ASSERT_TRUE(append(*log, {range(5, 0, 45056)}, 50));
    ASSERT_TRUE(append(*log, {range(6, 0, 16384)}, 60));  // 106496 … 126976
    ASSERT_TRUE(append(*log, {range(7, 0, 4096)}, 70));
    const LogContents contents = read_ok(disk);
    EXPECT_EQ(sequences(contents), (Seqs{4, 5, 7}));
    EXPECT_EQ(contents.live[2].position, kFirstRecord);
    EXPECT_EQ(uint32_t{disk.get<RecordHeader>(126976).type}, kRecordPad);
}

TEST_F(RedoShapes, PadWithoutTheRecordThatNeededIt) {
    log->note_retired(3);
    ASSERT_TRUE(log->persist_retired());
    ASSERT_TRUE(append(*log, {range(5, 0, 45056)}, 50));
    disk.fail_after = disk.writes.size() + 1;
    ASSERT_FALSE(append(*log, {range(6, 0, 32768)}, 60).has_value());
    const LogContents contents = read_ok(disk);
    EXPECT_EQ(contents.end, LogEnd::Clean);
    EXPECT_EQ(sequences(contents), (Seqs{4}));
    EXPECT_EQ(contents.next_sequence, 6u);
    EXPECT_EQ(contents.head, kFirstRecord);
}

TEST_F(RedoShapes, ExactlyFull) {
    log->note_retired(3);
    ASSERT_TRUE(log->persist_retired());
    ASSERT_TRUE(append(*log, {range(5, 0, 45056)}, 50));  // 57344 … 106496
    ASSERT_TRUE(append(*log, {range(6, 0, 20480)}, 60));  // … 131072
    ASSERT_TRUE(append(*log, {range(7, 0, 36864)}, 70));  // 16384 … 57344
    EXPECT_EQ(log->used(), log->capacity());
    EXPECT_EQ(append(*log, {range(8, 0, 16)}, 80).error().code, EAGAIN);
    const LogContents contents = read_ok(disk);
    EXPECT_EQ(contents.end, LogEnd::Clean);
    EXPECT_EQ(sequences(contents), (Seqs{4, 5, 6}));
    EXPECT_EQ(contents.head, ByteOffset(kHead));
}

// --- superblocks and records together ---

TEST_F(RedoShapes, OlderSuperblockStartsEarlier) {
    log->note_retired(2);
    const Image before = disk.image;
    ASSERT_TRUE(log->persist_retired());
    expect(LogEnd::Clean, {3});
    // Only the first of the two writes reached the disk, and then it rotted.
    const auto& first = disk.writes[disk.writes.size() - 2];
    disk.image = before;
    std::memcpy(&disk.image[first.offset], first.data.data(), kLogBlock);
    expect(LogEnd::Clean, {3});
    disk.flip(first.offset + 0x40);
    expect(LogEnd::Clean, {1, 2, 3});
}

TEST_F(RedoShapes, EitherSuperblockDamagedFindsTheSameRecords) {
    log->note_retired(1);
    ASSERT_TRUE(log->persist_retired());
    for (const size_t slot : {0, 1}) {
        LogDisk copy(disk.image);
        copy.flip(kSuperblockPosition[slot].value() + 0x10);
        const LogContents contents = read_ok(copy);
        EXPECT_EQ(sequences(contents), (Seqs{2, 3}));
        EXPECT_NE(contents.superblock_damage, "");
    }
}

TEST_F(RedoShapes, RetiredInALaterRecord) {
    log->note_retired(2);
    expect(LogEnd::Clean, {1, 2, 3});  // noted only
    ASSERT_TRUE(append(*log, {range(5, 0, 4096)}, 50));
    expect(LogEnd::Clean, {3, 4});
    EXPECT_EQ(read_ok(disk).retired, 2u);
}

// --- headers that say the impossible, with a correct checksum ---

TEST_F(RedoShapes, ImpossibleHeadersAreCorruption) {
    struct Case {
        const char* what;
        size_t field;
        size_t width;
        uint64_t value;
    };
    for (const Case& c : {
             Case{"total_length overflows", 0x40, 8, ~0ull << 12},
             Case{"total_length beyond the log's end", 0x40, 8, kSize - kThird + 4096},
             Case{"total_length zero", 0x40, 8, 0},
             Case{"total_length not a multiple", 0x40, 8, 12289},
             Case{"total_length longer than its parts", 0x40, 8, 16384},
             Case{"header_length longer than its ranges", 0x48, 4, 8192},
             Case{"range_count zero", 0x4c, 4, 0},
             Case{"range_count huge", 0x4c, 4, ~0u},
             Case{"range_count one more", 0x4c, 4, 2},
             Case{"payload_length overflows", 0x58, 8, ~0ull},
             Case{"payload_length wraps to 8192", 0x58, 8, 0ull - 4095},
             Case{"payload_length zero", 0x58, 8, 0},
             Case{"payload_length not the ranges'", 0x58, 8, 5001},
             Case{"range length zero", 0x90, 8, 0},
             Case{"range length overflows", 0x90, 8, ~0ull},
             Case{"range offset overflows", 0x88, 8, ~0ull - 100},
             Case{"unknown type", 0x08, 4, 3},
             Case{"type zero", 0x08, 4, 0},
             Case{"a pad with ranges", 0x08, 4, kRecordPad},
             Case{"unknown flags", 0x54, 4, 1},
             Case{"placed not before itself", 0x68, 8, 3},
             Case{"another position", 0x38, 8, kSecond},
             Case{"another log's id", 0x10, 8, 42},
             Case{"retires itself", 0x30, 8, 3},
             Case{"retires the future", 0x30, 8, ~0ull},
         }) {
        SCOPED_TRACE(c.what);
        const Image saved = disk.image;
        const le64 value = c.value;
        std::memcpy(&disk.image[kThird + c.field], &value, c.width);
        reseal(disk, kThird);
        expect(LogEnd::Corrupt, {1, 2});
        disk.image = saved;
    }
}

// Rounded up, this payload length is 0 again, and one range alone adds up to it.
TEST_F(RedoShapes, APayloadLengthThatWrapsIsCorruption) {
    auto header = disk.get<RecordHeader>(kThird);
    header.total_length = kLogBlock;
    header.payload_length = ~0ull;
    header.payload_crc = record_seed(header.epoch, 3, ByteOffset(kThird));
    disk.put(kThird, header);
    disk.put(kThird + 0x68, le64{0});
    disk.put(kThird + 0x70, le64{~0ull});
    reseal(disk, kThird);
    expect(LogEnd::Corrupt, {1, 2});
}

TEST_F(RedoShapes, AHeaderLengthThatCannotBeCheckedIsTorn) {
    for (const uint32_t length : {0u, 4095u, 4097u, 0xfffff000u, ~0u, uint32_t{kSize}}) {
        SCOPED_TRACE(length);
        disk.put(kThird + 0x48, le32{length});
        expect(LogEnd::TornTail, {1, 2});
    }
}

TEST_F(RedoShapes, ARecordOverTheTailIsCorruption) {
    // The tail at record 2; a forged record 1 lap later reaches into it.
    log->note_retired(1);
    ASSERT_TRUE(log->persist_retired());
    ASSERT_TRUE(append(*log, {range(5, 0, 45056)}, 50));
    ASSERT_TRUE(append(*log, {range(6, 0, 20480)}, 60));
    ASSERT_TRUE(append(*log, {range(7, 0, 8192)}, 70));  // 16384 … 28672: full
    auto header = disk.get<RecordHeader>(kFirst);
    header.total_length = 16384;
    header.payload_length = 12288;
    disk.put(kFirst, header);
    disk.put(kFirst + 0x70, le64{12288});
    reseal(disk, kFirst);
    expect(LogEnd::Corrupt, {2, 3, 4, 5});
}

// --- read errors ---

TEST_F(RedoShapes, AReadErrorIsNeverTheEnd) {
    for (const uint64_t at : {kFirst, kSecond + 0x800, kSecond + 8192, kThird, kHead - 1, kHead,
                              kHead + 40960, kSize - 1}) {
        disk.bad_sector = at;
        const auto contents = read_log(disk, kId);
        ASSERT_FALSE(contents.has_value()) << at;
        EXPECT_EQ(contents.error().code, EIO);
        EXPECT_NE(contents.error().message.find(fmt::format("block at {}", at / 4096 * 4096)),
                  std::string::npos)
            << contents.error().message;
    }
}

TEST_F(RedoShapes, AReadErrorNamesTheRecord) {
    disk.bad_sector = kSecond + 8192;
    EXPECT_EQ(read_log(disk, kId).error().message,
              "redo log: record 2 at 28672: block at 36864: memory: read error at 36864");
}

TEST_F(RedoShapes, PayloadsAreCheckedAgainWhenRead) {
    const LogContents contents = read_ok(disk);
    disk.flip(kSecond + 5000);
    EXPECT_EQ(read_payload(disk, contents.live[1]).error().code, EUCLEAN);
    disk.bad_sector = kSecond + 5000;
    EXPECT_EQ(read_payload(disk, contents.live[1]).error().code, EIO);
    EXPECT_TRUE(read_payload(disk, contents.live[0]).has_value());
}

// --- payloads that look like records ---

// Old payload in the ring holds copies of everything this session wrote, at every block, and the
// reader comes upon it both at the end and in the search for later records.
TEST_F(RedoShapes, HeadersInsidePayloadsDontPass) {
    log->note_retired(3);
    ASSERT_TRUE(log->persist_retired());
    const Image copy(disk.image.begin() + kFirst,
                     disk.image.begin() + kHead);  // three whole records
    const RangeRef all = range(66, 0, copy.size());
    const std::span<const std::byte> bytes(copy);
    ASSERT_TRUE(log->append(std::span(&all, 1), std::span(&bytes, 1)));  // 4: 57344 … 102400
    expect(LogEnd::Clean, {4});
    ASSERT_TRUE(append(*log, {range(5, 0, 24576)}, 50));  // 5: up to the end
    ASSERT_TRUE(append(*log, {range(6, 0, 36864)}, 60));  // 6: 16384 … 57344
    log->note_retired(6);
    ASSERT_TRUE(log->persist_retired());
    // Record 4's header block is overwritten; its payload, beginning with a copy of record 1, is
    // where the next record would go.
    ASSERT_TRUE(append(*log, {range(7, 0, 16)}, 70));
    disk.flip(65536 - 4096 + 16);
    const LogContents contents = read_ok(disk);
    EXPECT_EQ(contents.end, LogEnd::TornTail) << contents.end_detail;
    EXPECT_TRUE(contents.live.empty());
}

// The same where the next record would stand exactly on a copied header.
TEST_F(RedoShapes, TheEndOnAHeaderInsideAPayload) {
    log->note_retired(3);
    ASSERT_TRUE(log->persist_retired());
    const Image copy(disk.image.begin() + kFirst, disk.image.begin() + kHead);
    const RangeRef all = range(66, 0, copy.size());
    const std::span<const std::byte> bytes(copy);
    ASSERT_TRUE(log->append(std::span(&all, 1), std::span(&bytes, 1)));
    ASSERT_TRUE(append(*log, {range(5, 0, 24576)}, 50));
    ASSERT_TRUE(append(*log, {range(6, 0, 36864)}, 60));
    log->note_retired(6);
    ASSERT_TRUE(log->persist_retired());
    ASSERT_TRUE(append(*log, {range(7, 0, 12288)}, 70));  // 57344 … 73728
    ASSERT_EQ(disk.get<RecordHeader>(73728).magic, kRecordMagic);
    expect(LogEnd::Clean, {7});
}

// Even whoever knew the epoch could not use it: a sound later record, which is proof of corruption
// where it was made for, proves nothing one block further.
TEST_F(RedoShapes, ASoundRecordShiftedDoesntPass) {
    const Image whole = disk.image;
    for (const uint64_t shift : {0, 4096, 8192}) {
        disk.image = whole;
        auto header = disk.get<RecordHeader>(kThird);
        header.sequence = 6;
        header.position = kHead + 4096;
        disk.put(kThird, header);
        Image record(disk.image.begin() + kThird, disk.image.begin() + kHead);
        disk.image = whole;
        std::memcpy(&disk.image[kHead + 4096], record.data(), record.size());
        header.payload_crc = crc32c(record_seed(header.epoch, 6, ByteOffset(kHead + 4096)),
                                    std::span(record).subspan(4096));
        disk.put(kHead + 4096, header);
        reseal(disk, kHead + 4096);
        std::memcpy(record.data(), &disk.image[kHead + 4096], record.size());
        disk.image = whole;
        std::memcpy(&disk.image[kHead + 4096 + shift], record.data(), record.size());
        expect(shift == 0 ? LogEnd::Corrupt : LogEnd::Clean, {1, 2, 3});
    }
}

// The same, with the sequence and position that a record there would have, and plain checksums: all
// that a client could compute, were it told the epoch's header but not the seeding.
TEST_F(RedoShapes, NearlyValidHeadersDontPass) {
    disk.image = before_third;
    for (const bool next : {true, false}) {
        const uint64_t at = next ? kThird : kHead;
        auto header = disk.get<RecordHeader>(kSecond);
        header.sequence = next ? 3 : 4;
        header.position = at;
        Image block(disk.image.begin() + kSecond, disk.image.begin() + kSecond + 16384);
        header.payload_crc = crc32c(~0u, std::span(block).subspan(4096));
        std::memcpy(block.data(), &header, sizeof header);
        header.header_crc = record_header_crc(std::span(block).first(4096), ~0u);
        std::memcpy(block.data(), &header, sizeof header);
        std::memcpy(&disk.image[at], block.data(), block.size());
        expect(LogEnd::TornTail, {1, 2});
    }
}

// What the checksums of a record are, computed without the library's help.
TEST_F(RedoShapes, ChecksumsAreSeededWithEpochSequenceAndPosition) {
    const auto header = disk.get<RecordHeader>(kSecond);
    Image seed_bytes(24);
    for (size_t i = 0; i < 8; ++i) {
        seed_bytes[i] = std::byte(uint64_t{header.epoch} >> (8 * i));
        seed_bytes[8 + i] = std::byte(uint64_t{2} >> (8 * i));
        seed_bytes[16 + i] = std::byte(kSecond >> (8 * i));
    }
    const uint32_t seed = crc32c(~0u, seed_bytes);
    Image block(disk.image.begin() + kSecond, disk.image.begin() + kThird);
    EXPECT_EQ(uint32_t{header.payload_crc}, crc32c(seed, std::span(block).subspan(4096)));
    std::memset(&block[0x0c], 0, 4);
    EXPECT_EQ(uint32_t{header.header_crc}, crc32c(seed, std::span(block).first(4096)));
}

TEST_F(RedoShapes, ARecordMovedElsewhereDoesntPass) {
    disk.image = before_third;
    // Record 2 as it was, where record 3 belongs; then renumbered, header checksum right, payload
    // checksum as copied.
    std::memcpy(&disk.image[kThird], &disk.image[kSecond], 16384);
    expect(LogEnd::Clean, {1, 2});
    auto header = disk.get<RecordHeader>(kThird);
    header.sequence = 3;
    header.position = kThird;
    disk.put(kThird, header);
    reseal(disk, kThird);
    expect(LogEnd::TornTail, {1, 2});
}

// --- no session ---

TEST_F(RedoShapes, AClosedLogIsReadWithoutSearchingIt) {
    log->note_retired(3);
    ASSERT_TRUE(log->close());
    disk.bytes_read = 0;
    const LogContents contents = read_ok(disk);
    EXPECT_EQ(contents.end, LogEnd::Clean);
    EXPECT_TRUE(contents.live.empty());
    EXPECT_EQ(contents.next_sequence, 4u);
    EXPECT_EQ(disk.bytes_read, 2 * kLogBlock);
}

}  // namespace
}  // namespace atomic4::redo_test
