// The atomic writer on an owned volume: engines, order, durability, doubt, recovery.
#include "writer/atomic_writer.h"

#include <random>

#include "device/file_device.h"
#include "support/fault_device.h"
#include "unit/writer_fixture.h"

namespace atomic4::test {
namespace {

using testing::HasSubstr;
using Kind = RecordingDevice::Kind;

class Writer : public WriterTest {};

// --- Engines -------------------------------------------------------------------------------------

TEST_F(Writer, AutoGoesNativeWhereItHolds) {
    start_default("1024");
    memory->set_atomic_limits(native_limits(4096, 16384));
    open();
    const auto number = create("/f", 65536, 16384);
    const auto data = filled(16384, 1);
    recorder->events.clear();
    EXPECT_EQ(must(write(number, 16384, data)).engine, Engine::Native);
    // One untorn write at the unit's place, nothing else: no log, no needs-replay bit.
    ASSERT_EQ(recorder->events.size(), 1u);
    EXPECT_EQ(recorder->events[0].kind, Kind::AtomicWrite);
    EXPECT_TRUE(recorder->events[0].data == data);
    EXPECT_EQ(recorder->events[0].offset,
              must(locate_range(writer->volume(), must(writer->file(number)), ByteOffset(16384),
                                Bytes(16384)))[0]
                  .device_offset);
    EXPECT_FALSE(needs_replay());
    // Smaller than the device can, larger than the device can, beyond EOF: logged, and why.
    WriteOutcome outcome = must(write(number, 0, filled(1024, 2)));
    EXPECT_EQ(outcome.engine, Engine::Logged);
    EXPECT_THAT(outcome.why_not_native, HasSubstr("limits 4096..16384"));
    outcome = must(write(number, 0, filled(32768, 2)));
    EXPECT_EQ(outcome.engine, Engine::Logged);
    outcome = must(write(number, 65536, data));
    EXPECT_EQ(outcome.engine, Engine::Logged);
    EXPECT_THAT(outcome.why_not_native, HasSubstr("beyond EOF"));
    EXPECT_TRUE(needs_replay());
    // Longer than the log takes, but not native: the native reason.
    memory->set_atomic_limits(native_limits(4096, 1 << 20));
    EXPECT_EQ(code_of(write(number, 1 << 20, filled(65536, 1))), EIO);
    EXPECT_EQ(code_of(write(number, 1 << 20, filled(65536, 1), Engine::Logged)), EINVAL);
    close();
    EXPECT_FALSE(needs_replay());
    EXPECT_EQ(fsck_complaints(memory->contents()), "");
}

TEST_F(Writer, NativeOverHolesAndUnwritten) {
    start_default("1024");
    memory->set_atomic_limits(native_limits(4096, 65536));
    open();
    const auto number = create("/f", 0, 4096);
    const auto plain = create_plain("/p");
    // A hole before EOF: the last KiB is there, the rest is not.
    must(write(number, 255 * 1024, filled(1024, 1)));
    must(write(plain, 255 * 1024, filled(1024, 1)));
    for (const ext2_ino_t inode : {number, plain}) {
        EXPECT_EQ(must(write(inode, 65536, filled(65536, 3), Engine::Native)).engine,
                  Engine::Native);
        EXPECT_EQ(must(write(inode, 0, filled(4096, 3))).engine, Engine::Native);
    }
    Image want(256 * 1024);
    std::fill_n(want.begin(), 4096, std::byte{3});
    std::fill_n(want.begin() + 65536, 65536, std::byte{3});
    std::fill_n(want.end() - 1024, 1024, std::byte{1});
    EXPECT_TRUE(content(number) == want);
    EXPECT_TRUE(content(plain) == want);
    // A refusal that is known beforehand allocates nothing.
    const Image before = memory->contents();
    EXPECT_EQ(code_of(write(number, 32768, filled(1024, 3), Engine::Native)), EINVAL);
    EXPECT_TRUE(memory->contents() == before);
    close();
    EXPECT_EQ(fsck_complaints(memory->contents()), "");
    EXPECT_TRUE(dump_file(memory->contents(), "/p") == want);
}

TEST_F(Writer, ForcedNativeErrors) {
    start_default("1024");
    memory->set_atomic_limits(native_limits(4096, 65536, 32768));
    open();
    // Units of 4 KiB, each in a place of its own.
    const auto number = create("/f", 0, 4096);
    const auto other = create("/g", 0, 4096);
    {
        Transaction transaction(writer->volume());
        ext2_inode inode = must(writer->file(number)).inode;
        const PblkRun area = must(writer->volume().allocator().allocate(7, Pblk(0)));
        for (uint64_t i = 0; i < 4; ++i) {
            must(set_mapping(writer->volume(), number, &inode, Lblk(4 * i),
                             {area.start + Blocks(8 * i), Blocks(4)}, MapState::Written));
        }
        // And one that is contiguous, but not where 16 KiB could be written at once.
        must(set_mapping(writer->volume(), number, &inode, Lblk(16),
                         {area.start + Blocks(36), Blocks(16)}, MapState::Written));
        ext2fs_iblk_add_blocks(writer->volume().fs(), &inode, 32);
        ext2fs_inode_size_set(writer->volume().fs(), &inode, 32 * 1024);
        ext2fs_write_inode(writer->volume().fs(), number, &inode);
        must(transaction.commit());
    }
    close();
    open();
    ASSERT_EQ(size_of(number), 32768u);
    // "4 KiB first, then 16 KiB over it" (RFC thread): forced native says no, loudly.
    const auto broken = write(number, 0, filled(16384, 1), Engine::Native);
    EXPECT_EQ(code_of(broken), EIO);
    EXPECT_THAT(message_of(broken), HasSubstr("not one contiguous run"));
    const auto misaligned = write(number, 16384, filled(16384, 1), Engine::Native);
    EXPECT_EQ(code_of(misaligned), EIO);
    EXPECT_THAT(message_of(misaligned), HasSubstr("not a multiple of 16384"));
    EXPECT_EQ(code_of(write(number, 32768, filled(4096, 1), Engine::Native)), EIO);
    EXPECT_EQ(code_of(write(number, 0, filled(1024, 1), Engine::Native)), EINVAL);
    EXPECT_EQ(code_of(write(number, 0, filled(131072, 1), Engine::Native)), EINVAL);
    EXPECT_EQ(must(write(number, 4096, filled(4096, 1), Engine::Native)).engine, Engine::Native);
    // Auto and logged do all of it.
    EXPECT_EQ(must(write(number, 0, filled(16384, 5))).engine, Engine::Logged);
    EXPECT_EQ(must(write(number, 16384, filled(16384, 6), Engine::Logged)).engine, Engine::Logged);
    EXPECT_EQ(content(number)[100], std::byte{5});
    EXPECT_EQ(content(number)[20'000], std::byte{6});
    // The boundary: 64 KiB would cross a multiple of 32 KiB.
    must(write(other, 0, filled(32768, 0)));
    must(write(other, 32768, filled(32768, 0)));
    const auto crossing = write(other, 0, filled(65536, 1), Engine::Native);
    EXPECT_TRUE(code_of(crossing) == EINVAL || code_of(crossing) == EIO) << message_of(crossing);
}

// A failed native write may be old or new, never mixed, and says so; the writer goes on.
TEST_F(Writer, NativeWriteFails) {
    start_default("1024");
    memory->set_atomic_limits(native_limits(4096, 16384));
    FaultDevice faults(*recorder);
    auto opened = must(open_for_writing(borrowed(faults)));
    writer = must(AtomicWriter::open(std::move(opened)));
    const auto number = create("/f", 65536, 16384);
    faults.reset();
    faults.count_only({false, true, false, false});
    faults.fail_at(0, EIO, false);
    const auto failed = write(number, 0, filled(16384, 1));
    EXPECT_EQ(code_of(failed), EIO);
    EXPECT_THAT(message_of(failed), HasSubstr("native write"));
    EXPECT_THAT(message_of(failed), HasSubstr("in doubt"));
    EXPECT_TRUE(content(number) == Image(65536));
    // It contained a flush: nothing is sure any more.
    EXPECT_TRUE(writer->poisoned());
    EXPECT_EQ(code_of(write(number, 0, filled(16384, 2))), EIO);
}

TEST_F(Writer, NativeWriteRefused) {
    start_default("1024");
    memory->set_atomic_limits(native_limits(4096, 16384));
    FaultDevice faults(*recorder);
    writer = must(AtomicWriter::open(must(open_for_writing(borrowed(faults)))));
    const auto number = create("/f", 65536, 16384);
    faults.reset();
    faults.count_only({false, true, false, false});
    faults.fail_at(0, ENOSPC, false);
    EXPECT_EQ(code_of(write(number, 0, filled(16384, 1))), ENOSPC);
    EXPECT_FALSE(writer->poisoned());
    must(write(number, 0, filled(16384, 2)));
}

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

// --- ENOSPC --------------------------------------------------------------------------------------

TEST_F(Writer, NoSpaceChangesNothing) {
    start_default("1024");
    open();
    const auto number = create("/f", 65536, 16384);
    must(write(number, 0, filled(4096, 1)));
    fill_up(writer->volume(), 3);
    const Image before = memory->contents();
    for (const Engine engine : {Engine::Auto, Engine::Logged})
        EXPECT_EQ(code_of(write(number, 65536, filled(16384, 2), engine)), ENOSPC);
    EXPECT_EQ(code_of(writer->write_plain(range(number, 100'000, filled(10, 2)))), ENOSPC);
    EXPECT_TRUE(memory->contents() == before);
    EXPECT_EQ(size_of(number), 65536u);
    // The writer goes on with what has its blocks.
    must(write(number, 16384, filled(16384, 3)));
    close();
    EXPECT_EQ(fsck_complaints(memory->contents()), "");
}

// Growing converts blocks, which may take a tree block more. When there is none, that must be said
// before the record is durable: afterwards neither the writer nor replay could go on.
TEST_F(Writer, NoSpaceToGrowIsSaidBeforeTheRecord) {
    start_default("1024");
    open();
    const auto number = create("/f", 0, 4096);
    {
        // Four extents, as many as the inode takes; the last unit beyond EOF is unwritten.
        Volume& volume = writer->volume();
        Transaction transaction(volume);
        ext2_inode inode = must(writer->file(number)).inode;
        const PblkRun area = must(volume.allocator().allocate(6, Pblk(0)));
        for (uint64_t i = 0; i < 4; ++i) {
            must(set_mapping(volume, number, &inode, Lblk(4 * i),
                             {area.start + Blocks(8 * i), Blocks(4)},
                             i < 3 ? MapState::Written : MapState::Unwritten));
        }
        for (uint64_t i = 0; i < 64; ++i) {
            if (i / 4 % 2 != 0 || i >= 32)
                must(volume.allocator().free({area.start + Blocks(i), Blocks(1)}));
        }
        ext2fs_iblk_add_blocks(volume.fs(), &inode, 16);
        ext2fs_inode_size_set(volume.fs(), &inode, 12 * 1024);
        ext2fs_write_inode(volume.fs(), number, &inode);
        must(transaction.commit());
        fill_up(volume, 0);
    }
    close();
    open();
    const auto data = filled(1024, 1);
    EXPECT_EQ(code_of(write(number, 12 * 1024, data)), ENOSPC);
    const WriteRange one = range(number, 12 * 1024, data);
    EXPECT_EQ(code_of(writer->write_batch(std::span(&one, 1))), ENOSPC);
    EXPECT_EQ(code_of(writer->write_plain(range(number, 12 * 1024, filled(10, 1)))), ENOSPC);
    EXPECT_FALSE(writer->poisoned());
    EXPECT_EQ(size_of(number), 12u * 1024);
    EXPECT_EQ(writer->live_records(), 0u);
    // What needs no block goes on.
    must(write(number, 8192, filled(4096, 2)));
    die();
    open();
    EXPECT_EQ(size_of(number), 12u * 1024);
    EXPECT_EQ(content(number)[8192], std::byte{2});
    close();
    EXPECT_EQ(fsck_complaints(memory->contents()), "");
}

// Windows that other files hold in memory are no reason for ENOSPC, in a tree block's case either.
TEST_F(Writer, WindowsGiveWayToTreeBlocks) {
    start_default("1024");
    open();
    const auto sparse = create_plain("/sparse");
    // Four extents far apart: the fifth takes a tree block.
    for (uint64_t i = 0; i < 4; ++i) must(write(sparse, i * 65536, filled(1024, 1)));
    close();
    open();
    fill_up(writer->volume(), 6);
    // All but one of what is free is in windows of one block each.
    for (int i = 0; i < 5; ++i) must(writer->volume().allocator().reserve(0, Pblk(0)));
    must(write(sparse, 1 << 20, filled(1024, 2)));
    close();
    EXPECT_EQ(fsck_complaints(memory->contents()), "");
}

// --- Doubt ---------------------------------------------------------------------------------------

struct Step {
    uint64_t offset;
    uint64_t length;
    unsigned value;
};

// Each device call of a session fails once, or from there on. Acknowledged atomic writes are there
// after reopening, the one that failed is all old or all new, and nothing is accepted in between.
TEST_F(Writer, FailingWritesAndFlushes) {
    start_default("1024", 65536);
    open();
    const auto number = create("/f", 32768, 4096);
    close();
    const Image image = memory->contents();
    const std::vector<Step> steps{
        {0, 4096, 1},    {4096, 4096, 2},   {0, 4096, 3},     {32768, 4096, 4},
        {8192, 8192, 5}, {0, 8192, 6},      {16384, 8192, 7}, {24576, 8192, 8},
        {0, 8192, 9},    {40960, 2048, 10}, {0, 8192, 11},    {8192, 4096, 12},
    };
    // Runs the session on a device that fails its nth call; returns how many calls there were.
    const auto run = [&](std::optional<uint64_t> nth, bool persistent, bool torn) -> uint64_t {
        start(image);
        FaultDevice faults(*recorder);
        faults.count_only({false, true, true, true});
        faults.set_torn(torn);
        writer = must(AtomicWriter::open(must(open_for_writing(borrowed(faults)))));
        if (nth) faults.fail_at(*nth, ENXIO, persistent);
        Image model(32768);
        std::optional<Image> maybe;
        for (const Step& step : steps) {
            const auto data = filled(step.length, step.value);
            const auto done = write(number, step.offset, data, Engine::Logged);
            Image next = model;
            next.resize(std::max<size_t>(next.size(), step.offset + step.length));
            std::copy(data.begin(), data.end(),
                      next.begin() + static_cast<std::ptrdiff_t>(step.offset));
            if (done) {
                EXPECT_FALSE(maybe) << "accepted after a failure";
                model = next;
                continue;
            }
            // A failure before anything was written (blocks that can't be zeroed) leaves the writer
            // as it was; all others end it.
            const bool over = writer->poisoned() || !writer->volume().usable();
            if (!maybe) maybe = next;
            if (!over) break;
            EXPECT_EQ(code_of(done), EIO) << message_of(done);
            EXPECT_THAT(message_of(done), HasSubstr("in doubt"));
        }
        if (writer->poisoned() || !writer->volume().usable()) {
            const auto later = range(number, 0, std::span(image).first(10));
            EXPECT_EQ(code_of(writer->write_plain(later)), EIO);
            EXPECT_EQ(code_of(writer->flush()), EIO);
            EXPECT_EQ(code_of(writer->retire_all()), EIO);
            EXPECT_EQ(code_of(writer->close()), EIO);
        } else if (!maybe) {
            const auto closed = writer->close();
            EXPECT_EQ(closed.has_value(), !faults.fired()) << message_of(closed);
        }
        const uint64_t calls = faults.calls();
        die();
        if (const auto reopened = open_for_writing(borrowed(*recorder)); !reopened) {
            // A metadata commit was cut in the middle: e2fsck first (RECOVERY.md).
            EXPECT_EQ(code_of(reopened), EUCLEAN) << message_of(reopened);
            return calls;
        }
        open();
        const Image got = content(number);
        EXPECT_TRUE(got == model || got == maybe);
        must(write(number, 0, filled(4096, 99)));
        close();
        return calls;
    };
    const uint64_t calls = run(std::nullopt, false, false);
    ASSERT_GT(calls, 30u);
    for (uint64_t n = 0; n < calls; ++n) {
        SCOPED_TRACE(testing::Message() << "call " << n);
        run(n, false, false);
        run(n, true, false);
        run(n, true, true);
    }
}

// A flush that fails is final for plain writes too.
TEST_F(Writer, FailedFlushIsFinal) {
    for (const bool growing : {false, true}) {
        SCOPED_TRACE(growing);
        start_default("1024");
        open();
        const auto number = create("/f", 65536, 16384);
        close();
        FaultDevice faults(*recorder);
        writer = must(AtomicWriter::open(must(open_for_writing(borrowed(faults)))));
        faults.reset();
        faults.count_only({false, false, false, true});
        Result<> failed;
        if (growing) {
            must(write(number, 0, filled(4096, 1)));
            // In its blocks, so that the only flushes are those of the growth.
            must(writer->write_plain(range(number, 65536, filled(100, 1))));
            faults.reset();
            faults.fail_at(0, EIO, false);
            failed = writer->write_plain(range(number, 65700, filled(100, 1)));
        } else {
            must(writer->write_plain(range(number, 0, filled(100, 1))));
            faults.fail_at(0, EIO, false);
            failed = writer->flush();
        }
        EXPECT_EQ(code_of(failed), EIO);
        EXPECT_THAT(message_of(failed), HasSubstr("in doubt"));
        EXPECT_TRUE(writer->poisoned());
        for (const auto& later : {writer->flush(), writer->close(),
                                  writer->write_plain(range(number, 0, filled(1, 1)))}) {
            EXPECT_EQ(code_of(later), EIO);
            EXPECT_THAT(message_of(later), HasSubstr("in doubt"));
        }
        const auto logged = write(number, 0, filled(4096, 1));
        EXPECT_EQ(code_of(logged), EIO);
        EXPECT_THAT(message_of(logged), HasSubstr("in doubt"));
    }
}

// The first I/O error of the metadata, whatever its number, is EIO from then on.
TEST_F(Writer, NeedsReplayBitCannotBeWritten) {
    start_default("1024");
    open();
    const auto number = create("/f", 65536, 16384);
    close();
    FaultDevice faults(*recorder);
    writer = must(AtomicWriter::open(must(open_for_writing(borrowed(faults)))));
    faults.reset();
    faults.count_only({false, true, false, true});
    faults.fail_at(0, ENXIO, false);
    EXPECT_FALSE(write(number, 0, filled(4096, 1)));
    const auto later = write(number, 0, filled(4096, 1));
    EXPECT_EQ(code_of(later), EIO);
    EXPECT_THAT(message_of(later), HasSubstr("in doubt"));
}

}  // namespace
}  // namespace atomic4::test
