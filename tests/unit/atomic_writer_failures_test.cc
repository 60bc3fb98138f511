// The atomic writer on an owned volume that has no space, or whose device fails: what is refused
// changes nothing, and what is in doubt is said and recovered.
#include "support/fault_device.h"
#include "unit/writer_fixture.h"
#include "writer/atomic_writer.h"

namespace atomic4::test {
namespace {

using testing::HasSubstr;

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
