// The atomic writer's engines on an owned volume: native where it holds, and when not.
#include "support/fault_device.h"
#include "unit/writer_fixture.h"
#include "writer/atomic_writer.h"

namespace atomic4::test {
namespace {

using testing::HasSubstr;
using Kind = RecordingDevice::Kind;

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

}  // namespace
}  // namespace atomic4::test
