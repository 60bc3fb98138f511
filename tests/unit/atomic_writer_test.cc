// The atomic writer on an owned volume: order against live records, the log's ring, batches, and
// what a fragmented volume takes.
#include "writer/atomic_writer.h"

#include <random>

#include "device/file_device.h"
#include "unit/writer_fixture.h"

namespace atomic4::test {
namespace {

using Kind = RecordingDevice::Kind;

// --- Order against live records ------------------------------------------------------------------

TEST_F(Writer, RetiresBeforeOverwriting) {
    start_default("1024");
    memory->set_atomic_limits(native_limits(4096, 16384));
    open();
    const auto number = create("/f", 65536, 16384);
    const uint64_t log = log_start();
    const auto superblock_writes = [&] {
        // Index of each write to one of the log's two superblocks.
        std::vector<size_t> found;
        for (size_t i = 0; i < recorder->events.size(); ++i) {
            const auto& event = recorder->events[i];
            if (event.kind == Kind::DurableWrite &&
                (event.offset.value() == log || event.offset.value() == log + 8192))
                found.push_back(i);
        }
        return found;
    };
    const auto first = [&](Kind kind) {
        const auto all = kinds();
        return static_cast<size_t>(std::find(all.begin(), all.end(), kind) - all.begin());
    };
    for (const bool plain : {false, true}) {
        SCOPED_TRACE(plain ? "plain" : "native");
        const auto overwrite = [&](uint64_t offset, uint64_t length) {
            if (plain)
                must(writer->write_plain(range(number, offset, filled(length, 9))));
            else
                must(write(number, offset, filled(length, 9), Engine::Native));
        };
        must(write(number, 16384, filled(4096, 1), Engine::Logged));
        must(write(number, 20480, filled(4096, 1), Engine::Logged));
        ASSERT_EQ(writer->live_records(), 2u);
        // Elsewhere: nothing to wait for.
        recorder->events.clear();
        overwrite(0, 16384);
        overwrite(24576, 4096);
        EXPECT_EQ(writer->live_records(), 2u);
        EXPECT_TRUE(superblock_writes().empty());
        EXPECT_EQ(first(Kind::Flush), recorder->events.size());
        // Overlapping by a part: flush, both superblocks, and only then the write.
        recorder->events.clear();
        overwrite(16384, 16384);
        EXPECT_EQ(writer->live_records(), 0u);
        const auto superblocks = superblock_writes();
        ASSERT_EQ(superblocks.size(), 2u);
        EXPECT_LT(first(Kind::Flush), superblocks[0]);
        EXPECT_LT(superblocks[1], first(plain ? Kind::Write : Kind::AtomicWrite));
    }
    // A plain write of one byte counts, and its neighbours don't.
    must(write(number, 4096, filled(4096, 1), Engine::Logged));
    must(writer->write_plain(range(number, 4095, filled(1, 7))));
    must(writer->write_plain(range(number, 8192, filled(1, 7))));
    EXPECT_EQ(writer->live_records(), 1u);
    must(writer->write_plain(range(number, 8191, filled(1, 7))));
    EXPECT_EQ(writer->live_records(), 0u);
    // After a crash nothing old comes back.
    const Image now = content(number);
    die();
    open();
    EXPECT_TRUE(content(number) == now);
}

// The order of one logged write: bit, session, record, then the data in place.
TEST_F(Writer, OrderOfALoggedWrite) {
    start_default("1024");
    open();
    const auto number = create("/f", 65536, 16384);
    const uint64_t log = log_start();
    const auto place = must(locate_range(writer->volume(), must(writer->file(number)),
                                         ByteOffset(16384), Bytes(4096)))[0]
                           .device_offset;
    recorder->events.clear();
    must(write(number, 16384, filled(4096, 1)));
    const auto& events = recorder->events;
    ASSERT_EQ(events.size(), 6u);
    EXPECT_EQ(events[0].offset, ByteOffset(0));  // the superblock with the needs-replay bit
    EXPECT_EQ(events[1].kind, Kind::Flush);
    EXPECT_EQ(events[2].kind, Kind::DurableWrite);  // both log superblocks with the new epoch
    EXPECT_EQ(events[3].kind, Kind::DurableWrite);
    EXPECT_EQ(events[4].kind, Kind::DurableWrite);  // the record
    EXPECT_EQ(events[4].offset, ByteOffset(log + 16384));
    EXPECT_EQ(events[5].kind, Kind::Write);  // in place
    EXPECT_EQ(events[5].offset, place);
    // The next one is a record and a placement.
    recorder->events.clear();
    must(write(number, 16384, filled(4096, 2)));
    EXPECT_EQ(kinds(), (std::vector{Kind::DurableWrite, Kind::Write}));
    // Growth: flushed before i_size shows it.
    recorder->events.clear();
    must(write(number, 65536, filled(16384, 3)));
    const auto all = kinds();
    const auto record = std::find(all.begin(), all.end(), Kind::DurableWrite);
    ASSERT_NE(record, all.end());
    EXPECT_EQ(*(record + 1), Kind::Write);
    EXPECT_EQ(*(record + 2), Kind::Flush);
    EXPECT_EQ(all.back(), Kind::Flush);
    EXPECT_TRUE(needs_replay());
    must(writer->retire_all());
    EXPECT_TRUE(needs_replay());  // only close clears it
    recorder->events.clear();
    must(writer->close());
    EXPECT_FALSE(needs_replay());
    // The bit goes last, behind the log's superblocks.
    const auto& end = recorder->events;
    ASSERT_GE(end.size(), 4u);
    EXPECT_EQ(end.back().kind, Kind::Flush);
    EXPECT_EQ(end[end.size() - 2].offset, ByteOffset(0));
    EXPECT_EQ(end[end.size() - 3].kind, Kind::DurableWrite);
}

TEST_F(Writer, SessionsWithoutLoggedWritesLeaveTheLogAlone) {
    start_default("1024");
    open();
    const auto number = create("/f", 65536, 16384);
    const uint64_t log = log_start();
    const Image before(memory->contents().begin() + static_cast<std::ptrdiff_t>(log),
                       memory->contents().begin() + static_cast<std::ptrdiff_t>(log + 65536));
    must(writer->write_plain(range(number, 100, filled(5000, 1))));
    must(writer->flush());
    close();
    EXPECT_TRUE(std::equal(before.begin(), before.end(),
                           memory->contents().begin() + static_cast<std::ptrdiff_t>(log)));
    EXPECT_FALSE(needs_replay());
}

TEST_F(Writer, Closing) {
    start_default("1024");
    open();
    const auto number = create("/f", 65536, 16384);
    must(write(number, 0, filled(4096, 1)));
    must(writer->close());
    must(writer->close());
    EXPECT_EQ(code_of(write(number, 0, filled(4096, 1))), EBADF);
    EXPECT_EQ(code_of(writer->write_plain({number, 1, ByteOffset(0), {}})), EBADF);
    EXPECT_EQ(code_of(writer->flush()), EBADF);
    // Times: of the close.
    const auto volume = open_volume(*memory, OpenFor::Read, true);
    const ext2_inode inode = must(read_file(*volume, number)).inode;
    EXPECT_GE(inode.i_mtime + 5, static_cast<uint32_t>(time(nullptr)));
    EXPECT_EQ(fsck_complaints(memory->contents()), "");
}

// --- The log's ring ------------------------------------------------------------------------------

TEST_F(Writer, WrapAround) {
    for (const uint64_t log_size : {uint64_t{65536}, uint64_t{192} << 10}) {
        SCOPED_TRACE(log_size);
        start_default("1024", log_size);
        open();
        const uint64_t max = writer->log_unit_max().value();
        EXPECT_EQ(max, log_size == 65536 ? 8192u : 32768u);
        const auto number = create("/f", 256 << 10, 4096);
        Image model(256 << 10);
        std::mt19937_64 random(log_size);
        for (int i = 0; i < 3000; ++i) {
            const uint64_t length = uint64_t{1024} << (random() % std::bit_width(max / 1024));
            const uint64_t offset = random() % (model.size() / length) * length;
            const auto data = random_bytes(length, random);
            const auto done = write(number, offset, data);
            ASSERT_TRUE(done) << i << ": " << message_of(done);
            std::copy(data.begin(), data.end(),
                      model.begin() + static_cast<std::ptrdiff_t>(offset));
            if (i % 500 == 250) {
                // Killed: what is in the log comes back whatever happened to the placements.
                const uint64_t live = writer->live_records();
                die();
                const auto report = open();
                ASSERT_TRUE(report);
                ASSERT_EQ(report->records, live);
                ASSERT_TRUE(content(number) == model) << i;
            }
        }
        EXPECT_TRUE(content(number) == model);
        close();
        EXPECT_TRUE(dump_file(memory->contents(), "/f") == model);
        EXPECT_EQ(fsck_complaints(memory->contents()), "");
    }
}

// --- Batches -------------------------------------------------------------------------------------

TEST_F(Writer, BatchAcrossFiles) {
    start_default("1024");
    open();
    const auto a = create("/a", 65536, 4096);
    const auto b = create_plain("/b");
    const auto c = create("/c", 1000, 16384);
    const auto one = filled(3072, 1);
    const auto two = filled(5 * 1024, 2);
    const auto three = filled(1024, 3);
    recorder->events.clear();
    must(writer->write_batch(std::vector{range(a, 1024, one), range(b, 10 * 1024, two),
                                         range(c, 20 * 1024, three), range(c, 2048, three)}));
    EXPECT_EQ(writer->live_records(), 1u);
    Image want_a(65536);
    std::copy(one.begin(), one.end(), want_a.begin() + 1024);
    Image want_b(15 * 1024);
    std::copy(two.begin(), two.end(), want_b.begin() + 10 * 1024);
    Image want_c(21 * 1024);
    std::copy(three.begin(), three.end(), want_c.begin() + 20 * 1024);
    std::copy(three.begin(), three.end(), want_c.begin() + 2048);
    const auto check = [&] {
        EXPECT_TRUE(content(a) == want_a);
        EXPECT_TRUE(content(b) == want_b);
        EXPECT_TRUE(content(c) == want_c);
    };
    check();
    // Placements lost: all of it comes back.
    die();
    spoil(a, 1024, 3072);
    spoil(b, 10 * 1024, 5 * 1024);
    spoil(c, 2048, 1024);
    const auto report = open();
    ASSERT_TRUE(report);
    EXPECT_EQ(report->records, 1u);
    EXPECT_EQ(report->bytes, Bytes(3072 + 5 * 1024 + 2048));
    check();
    close();
    EXPECT_EQ(fsck_complaints(memory->contents()), "");
    EXPECT_TRUE(dump_file(memory->contents(), "/c") == want_c);
}

// Several ranges that grow one file, in any order.
TEST_F(Writer, BatchThatGrows) {
    std::mt19937_64 random(5);
    for (int round = 0; round < 40; ++round) {
        SCOPED_TRACE(round);
        if (round % 20 == 0) {
            start_default(round == 0 ? "1024" : "4096");
            open();
        }
        const bool plain = round % 2 == 0;
        const std::string path = fmt::format("/f{}", round);
        const auto number = plain ? create_plain(path)
                                  : create(path, random() % 6000, uint64_t{4096} << random() % 3);
        Image model = content(number);
        const uint64_t block = writer->volume().block_size().value();
        std::vector<std::vector<std::byte>> data;
        std::vector<uint64_t> offsets;
        uint64_t at = 0;
        for (uint64_t n = 2 + random() % 3; n > 0; --n) {
            at += random() % 4 * block;
            offsets.push_back(at);
            data.push_back(random_bytes(block * (1 + random() % 3), random));
            at += data.back().size();
        }
        std::vector<WriteRange> ranges;
        for (size_t i = 0; i < data.size(); ++i)
            ranges.push_back(range(number, offsets[i], data[i]));
        std::shuffle(ranges.begin(), ranges.end(), random);
        must(writer->write_batch(ranges));
        for (size_t i = 0; i < data.size(); ++i) {
            model.resize(std::max<size_t>(model.size(), offsets[i] + data[i].size()));
            std::copy(data[i].begin(), data[i].end(),
                      model.begin() + static_cast<std::ptrdiff_t>(offsets[i]));
        }
        ASSERT_TRUE(content(number) == model);
        const auto file = must(writer->file(number));
        if (!plain) {
            EXPECT_EQ(must(check_layout(writer->volume(), file, *file.unit)).problems, 0u);
        }
    }
    close();
    EXPECT_EQ(fsck_complaints(memory->contents()), "");
}

// --- generic/770 ---------------------------------------------------------------------------------

// On a file system that is full but for every other block of one file, 64 KiB over its holes is
// written as one.
TEST_F(Writer, FragmentedVolume) {
    start_default("4096", 512 << 10);
    open();
    const auto number = create_plain("/f");
    {
        Volume& volume = writer->volume();
        Transaction transaction(volume);
        ext2_inode inode = must(writer->file(number)).inode;
        std::vector<Pblk> blocks;
        for (int i = 0; i < 64; ++i)
            blocks.push_back(must(volume.allocator().allocate(0, Pblk(0))).start);
        for (uint64_t i = 0; i < 64; ++i) {
            if (i % 2 == 0) {
                must(set_mapping(volume, number, &inode, Lblk(i), {blocks[i], Blocks(1)},
                                 MapState::Written));
                must(volume.device().zero(ByteOffset(blocks[i].value() * 4096), Bytes(4096)));
            }
        }
        ext2fs_iblk_add_blocks(volume.fs(), &inode, 32);
        ext2fs_inode_size_set(volume.fs(), &inode, 64 * 4096);
        ext2fs_write_inode(volume.fs(), number, &inode);
        must(transaction.commit());
        fill_up(volume, 2);
        Transaction punch(volume);
        for (uint64_t i = 1; i < 64; i += 2) must(volume.allocator().free({blocks[i], Blocks(1)}));
        must(punch.commit(Transaction::Order::Freeing));
    }
    close();
    open();
    const auto data = filled(65536, 0x5a);
    for (const uint64_t offset : {uint64_t{65536}, uint64_t{0}}) must(write(number, offset, data));
    Image want(64 * 4096);
    std::fill_n(want.begin(), 2 * 65536, std::byte{0x5a});
    EXPECT_TRUE(content(number) == want);
    die();
    spoil(number, 0, 2 * 65536);
    open();
    EXPECT_TRUE(content(number) == want);
    close();
    EXPECT_EQ(fsck_complaints(memory->contents()), "");
}

}  // namespace
}  // namespace atomic4::test
