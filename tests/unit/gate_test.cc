// The gate bit in every superblock copy, and the needs-replay bit in the primary.
#include "check/volume_check.h"
#include "ext4/format.h"
#include "ext4/transaction.h"
#include "support/fault_device.h"
#include "unit/volume_fixture.h"

namespace atomic4::test {
namespace {

using testing::HasSubstr;

constexpr uint64_t kSize = 16 << 20;

std::vector<size_t> superblock_offsets(const Image& image) {
    const auto volume = must(try_open(image, OpenFor::Inspect));
    std::vector<size_t> offsets{kSuperOffset};
    for (const BackupSuperblock& backup : volume->backups())
        offsets.push_back(ext2fs_group_first_block2(volume->fs(), backup.group) *
                          volume->fs()->blocksize);
    return offsets;
}

bool gate_at(const Image& image, size_t offset) {
    return (super_of(image, offset).s_feature_compat & kFeatureCompatAtomic4) != 0;
}

// More than 64 copies: opening looks at some as long as the primary has the gate, since no crash
// leaves it there alone. Where it hasn't, any of them may decide.
TEST(VolumeOpen, ManyCopies) {
    const Image image = make_atomic4(2 * kSize, {"-b", "1024", "-g", "256", "-N", "512", "-O",
                                                 "^sparse_super,^resize_inode,^has_journal"});
    const auto drop_gate = [](ext2_super_block& super) {
        super.s_feature_compat &= ~kFeatureCompatAtomic4;
    };
    const auto offset = [](size_t group) { return (1 + group * 256) * 1024; };
    const size_t groups = 2 * kSize / 1024 / 256;
    {
        const auto volume = must(try_open(image, OpenFor::Read, true));
        EXPECT_LE(volume->backups().size(), 16u);
        EXPECT_EQ(volume->backups().back().group, groups - 1);
        must(volume->read_every_copy());
        EXPECT_EQ(volume->backups().size(), groups - 1);
    }
    // One that opening doesn't look at: the check finds it, enable's opening puts it back.
    Image one = image;
    edit_super(one, drop_gate, offset(60));
    {
        const auto volume = must(try_open(one, OpenFor::Read, true));
        const CheckReport report = must(check_volume(*volume));
        ASSERT_EQ(report.findings.size(), 1u);
        EXPECT_EQ(report.findings[0].id, FindingId::GateMissing);
        EXPECT_THAT(report.findings[0].detail, HasSubstr("group 60"));
        MemoryDevice memory(one);
        VolumeOptions options;
        options.purpose = OpenFor::Write;
        options.every_copy = true;
        must(Volume::open(borrowed(memory), options));
        EXPECT_TRUE(super_of(memory.contents(), offset(60)).s_feature_compat &
                    kFeatureCompatAtomic4);
    }
    // The gate in that one only.
    Image last = image;
    edit_super(last, drop_gate);
    for (size_t group = 1; group < groups; ++group) {
        if (group != 60) edit_super(last, drop_gate, offset(group));
    }
    EXPECT_TRUE(must(try_open(last, OpenFor::Read, true))->gate());
}

const std::vector<std::vector<std::string>>& gate_shapes() {
    static const std::vector<std::vector<std::string>> all{
        {"-b", "1024", "-g", "1024"},
        {"-b", "4096", "-g", "512"},
        {"-b", "2048", "-g", "512", "-O", "^sparse_super,^resize_inode"},
        {"-b", "1024", "-g", "1024", "-O", "sparse_super2,^resize_inode"},
        {"-b", "1024", "-g", "1024", "-O", "^metadata_csum,uninit_bg"},
        {"-b", "1024", "-g", "1024", "-O", "meta_bg,^resize_inode"},
    };
    return all;
}

TEST(Gate, EveryCopyHasIt) {
    for (const auto& arguments : gate_shapes()) {
        SCOPED_TRACE(testing::PrintToString(arguments));
        const Image before = make_ext4(kSize, arguments);
        Image image = make_atomic4(kSize, arguments);
        const auto offsets = superblock_offsets(image);
        ASSERT_GE(offsets.size(), 3u);
        for (const size_t offset : offsets) {
            SCOPED_TRACE(offset);
            ASSERT_EQ(super_of(image, offset).s_magic, EXT2_SUPER_MAGIC);
            EXPECT_TRUE(gate_at(image, offset));
            EXPECT_EQ(super_of(image, offset).s_block_group_nr,
                      super_of(before, offset).s_block_group_nr);
        }
        // Nothing else in the image looks like a superblock of this volume without the gate.
        for (size_t at = 1024; at + 1024 <= image.size(); at += 1024) {
            const ext2_super_block super = super_of(image, at);
            if (super.s_magic == EXT2_SUPER_MAGIC &&
                std::memcmp(super.s_uuid, super_of(image).s_uuid, 16) == 0) {
                EXPECT_TRUE(gate_at(image, at)) << at;
            }
        }
        EXPECT_EQ(fsck_complaints(image), "");
        // A stock e2fsck refuses each copy.
        const TempDir dir;
        store_image(image, dir.file("image"));
        const uint64_t block = 1024u << super_of(image).s_log_block_size;
        for (const size_t offset : offsets) {
            const CommandOutput stock =
                run_command({"e2fsck", "-fn", "-b", std::to_string(offset / block), "-B",
                             std::to_string(block), dir.file("image")});
            EXPECT_NE(stock.status & 8, 0) << stock.output;
            EXPECT_THAT(stock.output, HasSubstr("unsupported feature"));
        }
    }
}

// A volume is atomic4 as long as any valid copy says so, and a read-write opening completes the
// set.
TEST(Gate, MissingCopiesAreCompleted) {
    const Image image = make_atomic4(kSize, gate_shapes()[0]);
    const auto offsets = superblock_offsets(image);
    const auto drop = [](ext2_super_block& s) { s.s_feature_compat &= ~kFeatureCompatAtomic4; };
    for (size_t missing = 0; missing < offsets.size(); ++missing) {
        for (const bool all_others : {false, true}) {
            SCOPED_TRACE(testing::Message() << missing << (all_others ? " only kept" : " dropped"));
            Image damaged = image;
            for (size_t i = 0; i < offsets.size(); ++i) {
                if ((i == missing) != all_others) edit_super(damaged, drop, offsets[i]);
            }
            // Reading changes nothing, and sees an atomic4 volume.
            MemoryDevice memory(damaged);
            {
                const auto volume = open_volume(memory, OpenFor::Read, true);
                EXPECT_TRUE(volume->gate());
                EXPECT_EQ(volume->gate_in_primary(), gate_at(damaged, kSuperOffset));
            }
            EXPECT_TRUE(memory.contents() == damaged);
            {
                const auto volume = open_volume(memory, OpenFor::Write, true);
                EXPECT_TRUE(volume->gate());
                EXPECT_TRUE(volume->gate_in_primary());
            }
            for (const size_t offset : offsets) EXPECT_TRUE(gate_at(memory.contents(), offset));
            EXPECT_EQ(fsck_complaints(memory.contents()), "");
        }
    }
}

// Which superblock copies the recorded events changed to which gate, in order; -1 for a flush.
std::vector<std::pair<int, bool>> gate_writes(const RecordingDevice& device,
                                              const std::vector<size_t>& offsets) {
    std::vector<std::pair<int, bool>> order;
    for (const auto& event : device.events) {
        if (event.kind == RecordingDevice::Kind::Flush) {
            if (order.empty() || order.back().first != -1) order.emplace_back(-1, false);
            continue;
        }
        for (size_t i = 0; i < offsets.size(); ++i) {
            const uint64_t at = offsets[i];
            if (event.data.empty() || event.offset.value() > at ||
                at + 1024 > event.offset.value() + event.length.value())
                continue;
            ext2_super_block super;
            std::memcpy(&super, event.data.data() + (at - event.offset.value()), sizeof super);
            order.emplace_back(static_cast<int>(i),
                               (super.s_feature_compat & kFeatureCompatAtomic4) != 0);
        }
    }
    return order;
}

TEST(Gate, BackupsFirstOnLastOff) {
    MemoryDevice memory(make_ext4(kSize, gate_shapes()[0]));
    const auto offsets = superblock_offsets(memory.contents());
    const int copies = static_cast<int>(offsets.size());
    RecordingDevice recorder(memory);
    {
        const auto volume = open_volume(recorder);
        must(enable(*volume, {}));
    }
    // The first copy with the gate is a backup, the primary comes after a flush behind them all,
    // and a flush ends it. Before the first there are only metadata writes, flushed.
    auto order = gate_writes(recorder, offsets);
    auto first = std::find_if(order.begin(), order.end(), [](auto& w) { return w.second; });
    ASSERT_NE(first, order.begin());
    EXPECT_EQ(std::prev(first)->first, -1);
    std::vector<std::pair<int, bool>> expected;
    for (int i = 1; i < copies; ++i) expected.emplace_back(i, true);
    expected.insert(expected.end(), {{-1, false}, {0, true}, {-1, false}});
    EXPECT_EQ(std::vector(first, order.end()), expected);

    recorder.events.clear();
    {
        const auto volume = open_volume(recorder, OpenFor::Write, true);
        EXPECT_TRUE(recorder.events.empty());
        must(disable(*volume, false));
    }
    // The primary loses it first, after everything else is flushed; the backups last.
    order = gate_writes(recorder, offsets);
    first =
        std::find_if(order.begin(), order.end(), [](auto& w) { return w.first == 0 && !w.second; });
    ASSERT_NE(first, order.begin());
    EXPECT_EQ(std::prev(first)->first, -1);
    expected = {{0, false}, {-1, false}};
    for (int i = 1; i < copies; ++i) expected.emplace_back(i, false);
    expected.emplace_back(-1, false);
    EXPECT_EQ(std::vector(first, order.end()), expected);
    EXPECT_EQ(fsck_complaints(memory.contents()), "");
    for (const size_t offset : offsets) EXPECT_FALSE(gate_at(memory.contents(), offset));
}

TEST(Gate, FailedWritesAreUndoneFailedFlushesPoison) {
    const Image image = make_ext4(kSize, gate_shapes()[0]);
    uint64_t calls = 0;
    {
        MemoryDevice memory(image);
        FaultDevice faults(memory);
        faults.count_only({false, true, false, true});
        const auto volume = open_volume(faults);
        must(volume->write_gate(true));
        calls = faults.calls();
    }
    ASSERT_GE(calls, 5u);
    for (uint64_t n = 0; n < calls; ++n) {
        MemoryDevice memory(image);
        FaultDevice faults(memory);
        faults.count_only({false, true, false, true});
        const auto volume = open_volume(faults);
        faults.fail_at(n, EIO, false);
        const auto done = volume->write_gate(true);
        EXPECT_EQ(code_of(done), EIO);
        if (message_of(done).find("flush") == std::string::npos) {
            must(volume->usable());
            EXPECT_FALSE(open_volume(memory)->gate());
            continue;
        }
        EXPECT_THAT(message_of(done), ::testing::HasSubstr("in doubt"));
        EXPECT_EQ(code_of(volume->write_gate(true)), EIO);
        EXPECT_EQ(code_of(volume->usable()), EIO);
        Transaction transaction(*volume);
        EXPECT_EQ(code_of(transaction.commit()), EIO);
    }
}

TEST(NeedsReplay, SetAndCleared) {
    MemoryDevice memory(make_atomic4(kSize, {"-b", "1024", "-g", "1024"}));
    const auto offsets = superblock_offsets(memory.contents());
    RecordingDevice recorder(memory);
    const auto volume = open_volume(recorder, OpenFor::Write, true);
    EXPECT_FALSE(volume->needs_replay());
    for (const bool on : {true, false}) {
        recorder.events.clear();
        must(volume->write_needs_replay(on));
        EXPECT_EQ(volume->needs_replay(), on);
        for (size_t i = 0; i < offsets.size(); ++i) {
            EXPECT_EQ((super_of(memory.contents(), offsets[i]).s_feature_incompat &
                       kFeatureIncompatNeedsReplay) != 0,
                      on && i == 0);
        }
        // One aligned write of 4 KiB, then a flush.
        ASSERT_EQ(recorder.events.size(), 2u);
        EXPECT_EQ(recorder.events[0].offset, ByteOffset(0));
        EXPECT_EQ(recorder.events[0].length, Bytes(4096));
        EXPECT_EQ(recorder.events[1].kind, RecordingDevice::Kind::Flush);
        // Stock tools keep out while it is set (the gate taken away to see it alone).
        Image image = memory.contents();
        edit_super(image, [](auto& s) { s.s_feature_compat &= ~kFeatureCompatAtomic4; });
        const TempDir dir;
        store_image(image, dir.file("image"));
        const CommandOutput stock = run_command({"tune2fs", "-L", "x", dir.file("image")});
        EXPECT_EQ(stock.status == 0, !on) << stock.output;
    }
    // Our own tools open such a volume, and know.
    must(volume->write_needs_replay(true));
    EXPECT_TRUE(open_volume(memory, OpenFor::Write, true)->needs_replay());
}

}  // namespace
}  // namespace atomic4::test
