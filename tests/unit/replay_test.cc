// Replay on an owned volume: what a crash left in the log, and what has become of its files.
#include "redo/replay.h"

#include <random>

#include "support/fault_device.h"
#include "unit/writer_fixture.h"

namespace atomic4::test {
namespace {

using testing::HasSubstr;
using Kind = RecordingDevice::Kind;

class Replay : public WriterTest {
  protected:
    // A file of 64 KiB with one live record of 8 KiB at 8192, whose placement is lost.
    ext2_ino_t crashed(const char* block_size = "1024") {
        start_default(block_size);
        open();
        const auto number = create("/f", 65536, 16384);
        must(write(number, 8192, filled(8192, 1)));
        die();
        spoil(number, 8192, 8192);
        return number;
    }
    // As it is stored, whatever is live.
    std::byte byte_of(ext2_ino_t inode, uint64_t offset) {
        const auto volume = open_volume(*memory, OpenFor::Read, true);
        const auto place = must(locate_range(*volume, must(read_file(*volume, inode)),
                                             ByteOffset(offset), Bytes(1)))[0];
        Image got(1);
        must(memory->read(place.device_offset, got));
        return got[0];
    }
    Image with_record() {
        Image want(65536);
        std::fill_n(want.begin() + 8192, 8192, std::byte{1});
        return want;
    }
    static Result<> check_ok(errcode_t code) {
        if (code != 0) return fail(EIO, "libext2fs: {}", code);
        return {};
    }
    static Result<ReplayReport> recover_now(Device& device, OnConflict policy) {
        return recover(borrowed(device), policy);
    }
};

TEST_F(Replay, PlacesWhatWasLost) {
    const auto number = crashed();
    EXPECT_TRUE(needs_replay());
    // Readers are told.
    const auto reading = open_for_reading(borrowed(*recorder));
    EXPECT_EQ(code_of(reading), EBUSY);
    EXPECT_THAT(message_of(reading), HasSubstr("atomic4ctl recover"));
    const auto report = open();
    ASSERT_TRUE(report);
    EXPECT_EQ(report->records, 1u);
    EXPECT_EQ(report->bytes, Bytes(8192));
    EXPECT_TRUE(report->skipped.empty());
    EXPECT_TRUE(report->log_emptied);
    EXPECT_FALSE(needs_replay());
    EXPECT_TRUE(content(number) == with_record());
    EXPECT_EQ(fsck_complaints(memory->contents()), "");
    // Nothing is left to do.
    writer.reset();
    recorder->events.clear();
    const auto again = must(recover_now(*recorder, OnConflict::Keep));
    EXPECT_EQ(again.records, 0u);
    EXPECT_TRUE(again.log_emptied);
    EXPECT_TRUE(recorder->events.empty());
    EXPECT_TRUE(open_for_reading(borrowed(*recorder)));
}

TEST_F(Replay, InOrder) {
    start_default();
    open();
    const auto number = create("/f", 65536, 16384);
    must(write(number, 0, filled(8192, 1)));
    must(write(number, 4096, filled(4096, 2)));
    must(write(number, 0, filled(1024, 3)));
    const Image want = content(number);
    die();
    spoil(number, 0, 8192);
    EXPECT_EQ(open()->records, 3u);
    EXPECT_TRUE(content(number) == want);
}

TEST_F(Replay, GoneIsSkipped) {
    const auto number = crashed();
    {
        const auto volume = open_volume(*memory, OpenFor::Write, true);
        Transaction transaction(*volume);
        must(unlink_name(*volume, {EXT2_ROOT_INO, "f"}, number));
        must(stage_delete(*volume, number));
        must(transaction.commit(Transaction::Order::Freeing));
    }
    const auto report = open();
    ASSERT_TRUE(report);
    EXPECT_EQ(report->records, 1u);
    EXPECT_EQ(report->bytes, Bytes(0));
    ASSERT_EQ(report->skipped.size(), 1u);
    EXPECT_THAT(report->skipped[0], HasSubstr("gone"));
    EXPECT_EQ(fsck_complaints(memory->contents()), "");
}

TEST_F(Replay, OtherGenerationIsSkipped) {
    const auto number = crashed();
    edit_inode(number, [](ext2_inode& inode) { ++inode.i_generation; });
    // The tree is in the inode; nothing else depends on the generation.
    const auto report = open();
    ASSERT_TRUE(report);
    ASSERT_EQ(report->skipped.size(), 1u);
    EXPECT_THAT(report->skipped[0], HasSubstr("generation"));
    EXPECT_EQ(content(number)[8192], std::byte{0xdd});
}

TEST_F(Replay, ClipsToEof) {
    for (const uint64_t size : {uint64_t{12'000}, uint64_t{8193}, uint64_t{8192}, uint64_t{100}}) {
        SCOPED_TRACE(size);
        const auto number = crashed();
        {
            const auto volume = open_volume(*memory, OpenFor::Write, true);
            Transaction transaction(*volume);
            FileState file = must(read_file(*volume, number));
            // As truncate leaves it: no blocks beyond EOF.
            must(check_ok(
                ext2fs_inode_size_set(volume->fs(), &file.inode, static_cast<ext2_off64_t>(size))));
            must(check_ok(ext2fs_write_inode(volume->fs(), number, &file.inode)));
            must(transaction.commit());
        }
        const auto report = open();
        ASSERT_TRUE(report);
        EXPECT_EQ(size_of(number), size);
        EXPECT_EQ(report->bytes, Bytes(size > 8192 ? size - 8192 : 0));
        EXPECT_EQ(report->skipped.size(), size > 8192 ? 0u : 1u);
        Image want = with_record();
        want.resize(size);
        EXPECT_TRUE(content(number) == want);
    }
}

// A record that grew the file grows it again; nothing of the blocks' earlier life shows.
TEST_F(Replay, Growth) {
    for (const bool atomic : {true, false}) {
        SCOPED_TRACE(atomic);
        start_default();
        open();
        const auto number = atomic ? create("/f", 3000, 16384) : create_plain("/f");
        must(writer->write_plain(range(number, 0, filled(3000, 8))));
        must(writer->flush());
        const Image initial = memory->contents();
        recorder->events.clear();
        must(write(number, 40'960, filled(8192, 1)));
        const Image want = content(number);
        ASSERT_EQ(want.size(), 49'152u);
        die();
        // Only what was done up to the record's being durable.
        Image cut = initial;
        size_t record = recorder->events.size();
        for (size_t i = 0; i < recorder->events.size(); ++i) {
            if (recorder->events[i].kind == Kind::DurableWrite) record = i;
        }
        ASSERT_LT(record, recorder->events.size());
        MemoryDevice replayed(cut);
        for (size_t i = 0; i <= record; ++i) {
            const auto& event = recorder->events[i];
            if (event.kind == Kind::Zero)
                must(replayed.zero(event.offset, event.length));
            else if (event.kind != Kind::Flush)
                must(replayed.write(event.offset, event.data));
        }
        start(replayed.contents());
        const auto report = open();
        ASSERT_TRUE(report);
        EXPECT_EQ(report->records, 1u);
        EXPECT_EQ(size_of(number), want.size());
        EXPECT_TRUE(content(number) == want);
        EXPECT_EQ(fsck_complaints(memory->contents()), "");
        EXPECT_TRUE(dump_file(memory->contents(), "/f") == want);
    }
}

TEST_F(Replay, Conflicts) {
    const auto mounted_later = [](uint32_t when) {
        return [when](ext2_super_block& super) {
            super.s_mtime = when;
            ++super.s_mnt_count;
        };
    };
    const auto now = static_cast<uint32_t>(time(nullptr));
    const auto number = crashed();
    const Image crash = memory->contents();
    // Mounted since, but the file not touched: replayed.
    edit_super(memory->contents(), mounted_later(now + 1000));
    EXPECT_EQ(open()->records, 1u);
    EXPECT_TRUE(content(number) == with_record());

    // Changed after that mount: kept, and nothing is opened for writing.
    start(crash);
    edit_super(memory->contents(), mounted_later(now - 1000));
    const Image conflict = memory->contents();
    for (int i = 0; i < 2; ++i) {
        const auto refused = open_for_writing(borrowed(*recorder));
        EXPECT_EQ(code_of(refused), EUCLEAN);
        EXPECT_THAT(message_of(refused), HasSubstr("changed after the volume was mounted again"));
        EXPECT_THAT(message_of(refused), HasSubstr("atomic4ctl recover"));
        EXPECT_TRUE(needs_replay());
    }
    const auto kept = must(recover_now(*recorder, OnConflict::Keep));
    EXPECT_EQ(kept.records, 0u);
    EXPECT_EQ(kept.conflicts.size(), 1u);
    EXPECT_FALSE(kept.log_emptied);
    EXPECT_TRUE(memory->contents() == conflict);

    const auto forced = must(recover_now(*recorder, OnConflict::Force));
    EXPECT_EQ(forced.records, 1u);
    EXPECT_EQ(forced.conflicts.size(), 1u);
    EXPECT_TRUE(forced.log_emptied);
    EXPECT_FALSE(open());
    EXPECT_TRUE(content(number) == with_record());

    start(conflict);
    const auto discarded = must(recover_now(*recorder, OnConflict::Discard));
    EXPECT_EQ(discarded.records, 0u);
    EXPECT_EQ(discarded.discarded, 1u);
    EXPECT_TRUE(discarded.log_emptied);
    EXPECT_FALSE(needs_replay());
    EXPECT_FALSE(open());
    EXPECT_EQ(content(number)[8192], std::byte{0xdd});
    EXPECT_EQ(fsck_complaints(memory->contents()), "");
}

// A record about two files of which one changed is kept whole; others are replayed.
TEST_F(Replay, ConflictKeepsOnlyItsRecord) {
    start_default();
    open();
    const auto a = create("/a", 65536, 16384);
    const auto b = create("/b", 65536, 16384);
    const auto data = filled(1024, 1);
    must(write(a, 0, data));
    must(writer->write_batch(std::vector{range(a, 4096, data), range(b, 4096, data)}));
    must(write(b, 0, data));
    die();
    spoil(a, 0, 8192);
    spoil(b, 0, 8192);
    const auto now = static_cast<uint32_t>(time(nullptr));
    edit_super(memory->contents(), [&](auto& super) {
        super.s_mtime = now + 1000;
        ++super.s_mnt_count;
    });
    edit_inode(b, [&](ext2_inode& inode) { inode.i_ctime = now + 2000; });
    const auto report = must(recover_now(*recorder, OnConflict::Keep));
    EXPECT_EQ(report.records, 1u);
    EXPECT_EQ(report.conflicts.size(), 2u);
    for (const auto& [inode, offset, want] :
         {std::tuple{a, 0u, 1u}, {a, 4096u, 0xddu}, {b, 0u, 0xddu}, {b, 4096u, 0xddu}})
        EXPECT_EQ(byte_of(inode, offset), static_cast<std::byte>(want))
            << inode << " at " << offset;
}

// A file that is damaged keeps the record, which is placed as far as it can be: a group of writes
// may be several files'.
TEST_F(Replay, ADamagedFileKeepsItsRecordAndHoldsNobodyUp) {
    start_default();
    open();
    const auto a = create("/a", 65536, 16384);
    const auto b = create("/b", 65536, 16384);
    const auto data = filled(1024, 1);
    must(writer->write_batch(std::vector{range(a, 4096, data), range(b, 4096, data)}));
    must(write(b, 0, data));
    die();
    spoil(b, 0, 8192);
    edit_inode(a, [&](ext2_inode& inode) {
        inode.i_flags &= ~static_cast<uint32_t>(EXT4_EXTENTS_FL);
        std::ranges::fill(inode.i_block, 0);
    });
    for (int i = 0; i < 2; ++i) {
        const auto report = must(recover_now(*recorder, OnConflict::Keep));
        EXPECT_EQ(report.records, 1u);
        EXPECT_EQ(report.failed.size(), 1u);
        EXPECT_EQ(report.damaged, report.failed);
        EXPECT_FALSE(report.log_emptied);
        EXPECT_TRUE(needs_replay());
    }
    for (const uint64_t offset : {0, 4096}) EXPECT_EQ(byte_of(b, offset), std::byte{1}) << offset;
}

// As a daemon leaves it that died on the mounted volume: no needs-replay bit.
class ReplayOfMounted : public Replay {
  protected:
    void as_if_mounted() {
        edit_super(memory->contents(), [](ext2_super_block& super) {
            super.s_feature_incompat &= ~kFeatureIncompatNeedsReplay;
        });
    }
};

TEST_F(ReplayOfMounted, NewerBytesOfOthersAreAConflict) {
    const auto number = crashed();
    as_if_mounted();
    const Image crash = memory->contents();
    EXPECT_EQ(must(recover_now(*recorder, OnConflict::Keep)).records, 1u);
    start(crash);
    const auto now = static_cast<uint32_t>(time(nullptr));
    edit_inode(number, [&](ext2_inode& inode) { inode.i_ctime = now + 60; });
    const auto kept = must(recover_now(*recorder, OnConflict::Keep));
    EXPECT_FALSE(kept.log_emptied);
    ASSERT_EQ(kept.conflicts.size(), 1u);
    EXPECT_THAT(kept.conflicts[0], HasSubstr("mount -t atomic4"));
    EXPECT_EQ(code_of(open_for_writing(borrowed(*recorder))), EUCLEAN);
    EXPECT_EQ(must(recover_now(*recorder, OnConflict::Force)).records, 1u);
    open();
    EXPECT_TRUE(content(number) == with_record());
}

// A read-only mount or e2fsck may have recovered the journal after a crash.
TEST_F(ReplayOfMounted, WhatWasPlacedIsPlacedAgain) {
    start_default();
    open();
    const auto number = create("/f", 65536, 16384);
    must(write(number, 0, filled(8192, 1)));
    must(write(number, 8192, filled(8192, 2)));  // says that the first is placed
    die();
    spoil(number, 0, 16384);
    as_if_mounted();
    EXPECT_EQ(open()->records, 2u);
    Image want(65536);
    std::fill_n(want.begin(), 8192, std::byte{1});
    std::fill_n(want.begin() + 8192, 8192, std::byte{2});
    EXPECT_TRUE(content(number) == want);
}

// Damage in the middle of the log: what stands before it is replayed, the log stays as evidence.
TEST_F(Replay, CorruptLog) {
    start_default();
    open();
    const auto number = create("/f", 65536, 16384);
    for (unsigned i = 0; i < 3; ++i) must(write(number, i * 4096, filled(4096, i + 1)));
    die();
    const uint64_t log = log_start();
    spoil(number, 0, 12288);
    // The second record: each takes 8 KiB.
    memory->contents()[log + 16384 + 8192 + 5000] ^= std::byte{1};
    const Image damaged = memory->contents();
    const auto refused = open_for_writing(borrowed(*recorder));
    EXPECT_EQ(code_of(refused), EUCLEAN);
    EXPECT_THAT(message_of(refused), HasSubstr("the redo log is corrupt"));
    EXPECT_EQ(code_of(open_for_reading(borrowed(*recorder))), EBUSY);
    const auto report = must(recover_now(*recorder, OnConflict::Keep));
    EXPECT_EQ(report.end, LogEnd::Corrupt);
    EXPECT_EQ(report.records, 1u);
    EXPECT_FALSE(report.log_emptied);
    EXPECT_TRUE(needs_replay());
    // Twice is the same as once, and the log is untouched.
    const Image once = memory->contents();
    must(recover_now(*recorder, OnConflict::Keep));
    EXPECT_TRUE(memory->contents() == once);
    EXPECT_TRUE(std::equal(once.begin() + static_cast<std::ptrdiff_t>(log),
                           once.begin() + static_cast<std::ptrdiff_t>(log + (256 << 10)),
                           damaged.begin() + static_cast<std::ptrdiff_t>(log)));
    const auto forced = must(recover_now(*recorder, OnConflict::Force));
    EXPECT_TRUE(forced.log_emptied);
    EXPECT_FALSE(open());
    Image want(65536);
    std::fill_n(want.begin(), 4096, std::byte{1});
    std::fill_n(want.begin() + 4096, 8192, std::byte{0xdd});
    EXPECT_TRUE(content(number) == want);
    // Both superblocks gone: nothing is believed, nothing written (LostLog has --discard).
    start(damaged);
    std::fill_n(memory->contents().begin() + static_cast<std::ptrdiff_t>(log), 16384,
                std::byte{0x11});
    const Image blind = memory->contents();
    for (const OnConflict policy : {OnConflict::Keep, OnConflict::Force})
        EXPECT_EQ(code_of(recover_now(*recorder, policy)), EUCLEAN);
    EXPECT_TRUE(memory->contents() == blind);
}

// The torn last record was never acknowledged.
TEST_F(Replay, TornTail) {
    start_default();
    open();
    const auto number = create("/f", 65536, 16384);
    must(write(number, 0, filled(4096, 1)));
    must(write(number, 4096, filled(4096, 2)));
    die();
    const uint64_t log = log_start();
    spoil(number, 0, 4096);
    // Its data had not been placed either.
    spoil(number, 4096, 4096, 0);
    memory->contents()[log + 16384 + 8192 + 4096 + 77] ^= std::byte{1};
    const auto report = open();
    ASSERT_TRUE(report);
    EXPECT_EQ(report->end, LogEnd::TornTail);
    EXPECT_EQ(report->records, 1u);
    Image want(65536);
    std::fill_n(want.begin(), 4096, std::byte{1});
    EXPECT_TRUE(content(number) == want);
}

// Interrupted at any device call and run again, replay comes to the same end.
TEST_F(Replay, Idempotent) {
    start_default();
    open();
    const auto number = create("/f", 20'000, 16384);
    const auto plain = create_plain("/p");
    must(write(number, 0, filled(8192, 1)));
    must(write(plain, 0, filled(4096, 2)));
    must(write(number, 32768, filled(16384, 3)));
    must(write(number, 4096, filled(1024, 4)));
    const Image want = content(number);
    const Image want_plain = content(plain);
    die();
    spoil(number, 0, 8192);
    const Image crash = memory->contents();
    uint64_t calls = 0;
    for (uint64_t n = 0; calls == 0 || n < calls; ++n) {
        SCOPED_TRACE(n);
        start(crash);
        FaultDevice faults(*recorder);
        faults.count_only({false, true, true, true});
        if (calls != 0) {
            faults.fail_at(n, EIO, true);
            EXPECT_FALSE(recover_now(faults, OnConflict::Keep));
            EXPECT_TRUE(needs_replay() || n + 2 >= calls);
        } else {
            must(recover_now(faults, OnConflict::Keep));
            calls = faults.calls();
        }
        open();
        EXPECT_TRUE(content(number) == want);
        EXPECT_TRUE(content(plain) == want_plain);
        writer.reset();
        EXPECT_FALSE(needs_replay());
        EXPECT_EQ(fsck_complaints(memory->contents()), "");
    }
}

// The log that the attribute names is not there any more, or another one is: never written.
TEST_F(Replay, WrongLogIsNeverWritten) {
    start_default();
    open();
    const auto number = create("/f", 65536, 16384);
    const auto log = writer->volume().attr()->log_inode;
    close();
    const Image good = memory->contents();
    const auto refused = [&](const std::string& words) {
        const Image before = memory->contents();
        const auto opened = open_for_writing(borrowed(*recorder));
        EXPECT_TRUE(code_of(opened) == EUCLEAN || code_of(opened) == ESTALE) << message_of(opened);
        EXPECT_THAT(message_of(opened), HasSubstr(words));
        EXPECT_TRUE(memory->contents() == before);
    };
    edit_inode(log, [](ext2_inode& inode) { ++inode.i_generation; });
    refused("redo log");
    start(good);
    edit_inode(log, [](ext2_inode& inode) { inode.i_flags &= ~kInodeFlagAtomic; });
    refused("not a flagged regular file");
    // An attribute that names another file of the right kind.
    start(good);
    {
        const auto volume = open_volume(*memory, OpenFor::Write, true);
        VolumeAttr attr = *volume->attr();
        attr.log_inode = number;
        attr.log_generation = must(read_file(*volume, number)).generation;
        Transaction transaction(*volume);
        must(volume->stage_attr(attr));
        must(transaction.commit());
    }
    refused("");
    // The log's id in the attribute is another one.
    start(good);
    {
        const auto volume = open_volume(*memory, OpenFor::Write, true);
        VolumeAttr attr = *volume->attr();
        attr.log_id[3] ^= 1;
        Transaction transaction(*volume);
        must(volume->stage_attr(attr));
        must(transaction.commit());
    }
    refused("");
}

}  // namespace
}  // namespace atomic4::test
