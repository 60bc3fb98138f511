// Enabling and disabling a volume.
#include "writer/enable.h"

#include "ext4/format.h"
#include "ext4/xattr.h"
#include "redo/log_reader.h"
#include "redo/volume_log.h"
#include "support/fault_device.h"
#include "unit/volume_fixture.h"
#include "writer/open_volume.h"

namespace atomic4::test {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr uint64_t kSize = 16 << 20;

TEST(Enable, Plan) {
    constexpr uint64_t kMiB = 1 << 20;
    EXPECT_EQ(default_log_size(Bytes(4 * kMiB)), Bytes(256 << 10));
    EXPECT_EQ(default_log_size(Bytes(64 * kMiB)), Bytes(kMiB));
    EXPECT_EQ(default_log_size(Bytes(511 * kMiB)).value(), round_down(511 * kMiB / 64, 65536));
    EXPECT_EQ(default_log_size(Bytes(512 * kMiB)), Bytes(8 * kMiB));
    EXPECT_EQ(default_log_size(Bytes(4096 * kMiB)), Bytes(64 * kMiB));
    EXPECT_EQ(default_log_size(Bytes(uint64_t{15} << 40)), Bytes(256 * kMiB));
    const auto plan = [&](uint64_t unit, std::optional<uint64_t> log) {
        EnableOptions options;
        options.unit = Bytes(unit);
        if (log) options.log_size = Bytes(*log);
        return plan_enable(Bytes(4096), Bytes(64 * kMiB), options);
    };
    EXPECT_EQ(must(plan(0, std::nullopt)).unit, Bytes(16384));
    EXPECT_EQ(must(plan(4096, 65536)).log_size, Bytes(65536));
    EXPECT_EQ(must(plan(4 * kMiB, 32 * kMiB)).unit, Bytes(4 * kMiB));
    for (const uint64_t unit : {uint64_t{512}, uint64_t{2048}, uint64_t{12288}, 8 * kMiB})
        EXPECT_EQ(code_of(plan(unit, std::nullopt)), EINVAL) << unit;
    for (const uint64_t log : {uint64_t{0}, uint64_t{4096}, uint64_t{65535}, uint64_t{100'000},
                               32 * kMiB + 65536, ~uint64_t{0}})
        EXPECT_EQ(code_of(plan(0, log)), EINVAL) << log;
}

TEST(Enable, MakesItsParts) {
    for (const char* block : {"1024", "2048", "4096"}) {
        SCOPED_TRACE(block);
        EnableOptions options;
        options.log_size = Bytes(1 << 20);
        options.unit = Bytes(8192);
        MemoryDevice memory(make_dirty_atomic4(kSize, {"-b", block}, options));
        const auto volume = open_volume(memory, OpenFor::Read, true);
        ASSERT_TRUE(volume->attr());
        EXPECT_EQ(volume->attr()->unit, Bytes(8192));
        const auto log = must(lookup(*volume, "/.atomic4/log"));
        EXPECT_EQ(volume->attr()->log_inode, log);
        const FileState file = must(read_file(*volume, log, volume->attr()->log_generation));
        EXPECT_EQ(file.size, Bytes(1 << 20));
        EXPECT_TRUE(file.atomic);
        EXPECT_EQ(file.inode.i_mode, LINUX_S_IFREG | 0600);
        // Contiguous and aligned on an empty volume.
        const auto runs = must(locate_range(*volume, file, ByteOffset(0), file.size));
        ASSERT_EQ(runs.size(), 1u);
        EXPECT_EQ(runs[0].device_offset.value() % (1 << 20), 0u);
        EXPECT_EQ(must(check_layout(*volume, file, *file.unit)).problems, 0u);
        const auto device = must(open_log_device(*volume));
        const LogContents contents = must(read_log(*device, volume->attr()->log_id));
        EXPECT_EQ(contents.end, LogEnd::Clean);
        EXPECT_TRUE(contents.live.empty());
        // All of it was written: nothing of the blocks' earlier life is left.
        Image bytes(1 << 20);
        must(device->read(ByteOffset(0), bytes));
        EXPECT_LT(std::count(bytes.begin(), bytes.end(), std::byte{0xee}), 20);
        const auto lock = must(lookup(*volume, "/.atomic4/lock"));
        EXPECT_EQ(must(read_file(*volume, lock)).inode.i_mode, LINUX_S_IFREG | 0600);
        EXPECT_EQ(must(read_file(*volume, lock)).size, Bytes(0));
        const auto directory = must(lookup(*volume, "/.atomic4"));
        EXPECT_EQ(must(read_file(*volume, directory)).inode.i_mode, LINUX_S_IFDIR | 0700);
        EXPECT_EQ(fsck_complaints(memory.contents()), "");
    }
}

Image with_files() {
    const TempDir dir;
    std::mt19937_64 random(2);
    store_image(random_bytes(300'000, random), dir.file("source"));
    return debugfs(make_ext4(kSize, {"-b", "1024"}),
                   {"mkdir /d", "write " + dir.file("source") + " /d/big",
                    "write " + dir.file("source") + " /small", "symlink /link /d/big",
                    "ea_set / user.colour blue", "ea_set /small user.shape round"});
}

TEST(Enable, LeavesOtherFilesAlone) {
    const Image plain = with_files();
    ASSERT_EQ(fsck_complaints(plain), "");
    Opened o(plain, false);
    must(enable(*o.volume, {}));
    EXPECT_EQ(fsck_complaints(o.image()), "");
    for (const char* path : {"/d/big", "/small"})
        EXPECT_TRUE(dump_file(o.image(), path) == dump_file(plain, path));
    EXPECT_EQ(must(read_xattr(o.volume->fs(), EXT2_ROOT_INO, "user.colour")), "blue");
    EXPECT_EQ(must(read_xattr(o.volume->fs(), must(lookup(*o.volume, "/small")), "user.shape")),
              "round");
    // Twice: refused, unchanged.
    const Image enabled = o.image();
    const auto again = enable(*o.volume, {});
    EXPECT_EQ(code_of(again), EEXIST);
    EXPECT_THAT(message_of(again), HasSubstr("enabled already"));
    EXPECT_TRUE(o.image() == enabled);
    // Off again: a plain volume with the same files and the same free space.
    const auto report = must(disable(*o.volume, false));
    EXPECT_TRUE(report.released.empty());
    EXPECT_EQ(fsck_complaints(o.image()), "");
    EXPECT_EQ(code_of(lookup(*o.volume, "/.atomic4")), ENOENT);
    // libext2fs leaves the root's other attribute in the block that it moved to.
    EXPECT_EQ(super_of(o.image()).s_free_blocks_count + 1, super_of(plain).s_free_blocks_count);
    EXPECT_EQ(super_of(o.image()).s_free_inodes_count, super_of(plain).s_free_inodes_count);
    EXPECT_EQ(super_of(o.image()).s_feature_compat, super_of(plain).s_feature_compat);
    EXPECT_EQ(must(read_xattr(o.volume->fs(), EXT2_ROOT_INO, "user.colour")), "blue");
    EXPECT_EQ(code_of(disable(*o.volume, false)), EINVAL);
    // And on again.
    must(enable(*o.volume, {}));
    EXPECT_EQ(fsck_complaints(o.image()), "");
}

TEST(Enable, DirectoryInTheWay) {
    for (const char* command : {"mkdir /.atomic4", "symlink /.atomic4 /d"}) {
        Opened o(debugfs(make_ext4(kSize, {"-b", "1024"}), {command}), false);
        const Image before = o.image();
        const auto refused = enable(*o.volume, {});
        EXPECT_EQ(code_of(refused), EEXIST);
        EXPECT_THAT(message_of(refused), HasSubstr("move it away"));
        EXPECT_TRUE(o.image() == before);
    }
}

TEST(Enable, BadOptionsChangeNothing) {
    Opened o(make_ext4(kSize, {"-b", "1024"}), false);
    const Image before = o.image();
    EnableOptions options;
    options.unit = Bytes(3000);
    EXPECT_EQ(code_of(enable(*o.volume, options)), EINVAL);
    options.unit = Bytes(0);
    options.log_size = Bytes(1000);
    EXPECT_EQ(code_of(enable(*o.volume, options)), EINVAL);
    EXPECT_TRUE(o.image() == before);
}

TEST(Enable, NearlyFullVolume) {
    for (const char* block : {"1024", "4096"}) {
        SCOPED_TRACE(block);
        Opened o(make_ext4(kSize, {"-b", block}), false);
        fill_up(*o.volume, 40 * 1024 / o.volume->block_size().value());
        const Image before = o.image();
        const auto refused = enable(*o.volume, {});
        EXPECT_EQ(code_of(refused), ENOSPC);
        EXPECT_THAT(message_of(refused), HasSubstr("give a smaller log size"));
        EXPECT_TRUE(o.image() == before);
        EXPECT_FALSE(o.volume->gate());
        EXPECT_FALSE(o.volume->attr());
        EXPECT_EQ(fsck_complaints(o.image()), "");
    }
    // With each number of free blocks around what is needed: all or nothing, and always clean.
    for (uint64_t leave = 64; leave < 72; ++leave) {
        SCOPED_TRACE(leave);
        Opened o(make_ext4(kSize, {"-b", "1024"}), false);
        fill_up(*o.volume, leave);
        EnableOptions options;
        options.log_size = Bytes(65536);
        const auto done = enable(*o.volume, options);
        EXPECT_TRUE(done || code_of(done) == ENOSPC) << message_of(done);
        EXPECT_EQ(o.volume->gate(), done.has_value());
        EXPECT_EQ(o.volume->attr().has_value(), done.has_value());
        EXPECT_EQ(lookup(*o.volume, "/.atomic4").has_value(), done.has_value());
        EXPECT_EQ(fsck_complaints(o.image()), "");
    }
}

TEST(Enable, FragmentedVolume) {
    Opened o(make_ext4(kSize, {"-b", "1024"}), false);
    {
        Transaction transaction(*o.volume);
        std::vector<PblkRun> free;
        while (const auto run = o.volume->allocator().allocate(3, Pblk(0))) free.push_back(*run);
        for (const PblkRun& run : free) must(o.volume->allocator().free({run.start, Blocks(4)}));
        must(transaction.commit());
    }
    must(enable(*o.volume, {}));
    const auto again = open_volume(o.memory, OpenFor::Read, true);
    const FileState log = must(read_file(*again, again->attr()->log_inode));
    EXPECT_GT(must(locate_range(*again, log, ByteOffset(0), log.size)).size(), 10u);
    EXPECT_EQ(must(check_layout(*again, log, *log.unit)).problems, 0u);
    EXPECT_TRUE(open_for_writing(borrowed(o.memory)));
}

TEST(Disable, RefusedWithAtomicFiles) {
    Opened o(debugfs(dirty(), {"mkdir /data"}));
    const auto first = must(create_atomic_file(*o.volume, "/data/db", {Bytes(9000), Bytes(4096)}));
    const auto second = must(create_atomic_file(*o.volume, "/other", {Bytes(0), Bytes(16384)}));
    const Image before = o.image();
    const auto refused = disable(*o.volume, false);
    EXPECT_EQ(code_of(refused), EBUSY);
    EXPECT_THAT(message_of(refused), HasSubstr("2 atomic files in use (first: /data/db)"));
    EXPECT_TRUE(o.image() == before);
    const auto report = must(disable(*o.volume, true));
    EXPECT_THAT(report.released, ElementsAre(first, second));
    EXPECT_TRUE(must(find_atomic_inodes(*o.volume)).empty());
    EXPECT_FALSE(o.state(first).unit);
    EXPECT_EQ(o.state(first).size, Bytes(9000));
    EXPECT_EQ(fsck_complaints(o.image()), "");
    EXPECT_EQ(super_of(o.image()).s_feature_compat & kFeatureCompatAtomic4, 0u);
    EXPECT_EQ(dump_file(o.image(), "/data/db").size(), 9000u);
}

// Interrupted between the parts and the gate: run again, either way.
TEST(Disable, AfterInterruption) {
    Image off;
    {
        Opened o(dirty());
        must(disable(*o.volume, false));
        off = o.image();
    }
    edit_super(off, [](auto& s) { s.s_feature_compat |= kFeatureCompatAtomic4; });
    {
        Opened o(off, false);
        EXPECT_TRUE(o.volume->gate());
        EXPECT_FALSE(o.volume->attr());
        must(disable(*o.volume, false));
        EXPECT_FALSE(o.volume->gate());
        EXPECT_EQ(fsck_complaints(o.image()), "");
        EXPECT_EQ(super_of(o.image()).s_feature_compat & kFeatureCompatAtomic4, 0u);
    }
    Opened o(off, false);
    must(enable(*o.volume, {}));
    EXPECT_EQ(fsck_complaints(o.image()), "");
    EXPECT_TRUE(open_for_writing(borrowed(o.memory)));
}

// The same, with e2fsck in between, which takes the gate away: what is left goes all the same.
TEST(Disable, AfterInterruptionAndE2fsck) {
    const std::vector<std::vector<std::string>> states{
        {"ea_rm / trusted.atomic4.volume"},
        {"ea_rm / trusted.atomic4.volume", "rm /.atomic4/log"},
        {"ea_rm / trusted.atomic4.volume", "rm /.atomic4/log", "rm /.atomic4/lock"}};
    for (const auto& state : states) {
        Image left = debugfs(dirty(), state);
        for (const size_t at : {kSuperOffset, size_t{8193} * 1024})
            edit_super(left, [](auto& s) { s.s_feature_compat &= ~kFeatureCompatAtomic4; }, at);
        for (const char* path : {"/mine", ""}) {
            Opened o(*path == 0 ? left : debugfs(left, {"mkdir /.atomic4/mine"}), false);
            EXPECT_EQ(code_of(disable(*o.volume, false)), *path == 0 ? 0 : EINVAL);
            EXPECT_EQ(lookup(*o.volume, "/.atomic4").has_value(), *path != 0);
            EXPECT_EQ(fsck_complaints(o.image()), "");
        }
    }
}

// Interrupted between parts and gate while enabling; or only the backups have the gate.
TEST(Enable, AfterInterruption) {
    Image image = dirty("1024", {"-g", "1024"});
    edit_super(image, [](auto& s) { s.s_feature_compat &= ~kFeatureCompatAtomic4; });
    {
        // A read-write opening completes what the backups say.
        Opened o(image, false);
        EXPECT_TRUE(o.volume->gate_in_primary());
        EXPECT_TRUE(must(enable(*o.volume, {})).completed);
        // Not a second time.
        EXPECT_EQ(code_of(enable(*open_volume(o.memory), {})), EEXIST);
    }
    std::vector<size_t> copies;
    {
        Opened o(image, false);
        for (const BackupSuperblock& backup : o.volume->backups())
            copies.push_back(ext2fs_group_first_block2(o.volume->fs(), backup.group) * 1024);
    }
    for (const size_t at : copies)
        edit_super(image, [](auto& s) { s.s_feature_compat &= ~kFeatureCompatAtomic4; }, at);
    Opened o(image, false);
    EXPECT_FALSE(o.volume->gate());
    const auto old_id = o.volume->attr()->log_id;
    const uint64_t free = o.free_blocks();
    // With another unit or log it would not be this one.
    for (const auto& [unit, log_size] : {std::pair{65536, 262144}, {16384, 524288}}) {
        EnableOptions other;
        other.unit = Bytes(unit);
        other.log_size = Bytes(log_size);
        const Image before = o.image();
        const auto refused = enable(*o.volume, other);
        EXPECT_EQ(code_of(refused), EEXIST);
        EXPECT_THAT(message_of(refused),
                    HasSubstr("with unit 16K and a redo log of 256K: disable it, then enable"));
        EXPECT_TRUE(o.image() == before);
    }
    EnableOptions same;
    same.unit = Bytes(16384);
    same.log_size = Bytes(262144);
    EXPECT_TRUE(must(enable(*o.volume, same)).completed);
    // The log is kept: it may hold acknowledged writes.
    EXPECT_EQ(o.volume->attr()->log_id, old_id);
    EXPECT_EQ(o.free_blocks(), free);
    EXPECT_EQ(fsck_complaints(o.image()), "");
}

TEST(Disable, LeavesTheUsersThingsInTheDirectory) {
    Opened o(debugfs(dirty(), {"mkdir /.atomic4/mine", "symlink /.atomic4/link x"}));
    must(disable(*o.volume, false));
    EXPECT_TRUE(lookup(*o.volume, "/.atomic4/mine"));
    EXPECT_EQ(code_of(lookup(*o.volume, "/.atomic4/log")), ENOENT);
    EXPECT_EQ(fsck_complaints(o.image()), "");
}

// Something else has one of our names: nothing is removed, not even the flags of atomic files.
TEST(Disable, RefusedOverOthersThings) {
    for (const char* command : {"mkdir /.atomic4/lock", "symlink /.atomic4/lock x"}) {
        Opened o(debugfs(dirty(), {"rm /.atomic4/lock", command}));
        must(create_atomic_file(*o.volume, "/db", {Bytes(4096), Bytes(4096)}));
        const Image before = o.image();
        const auto refused = disable(*o.volume, true);
        EXPECT_EQ(code_of(refused), EEXIST);
        EXPECT_THAT(message_of(refused), HasSubstr("/.atomic4/lock exists and is not a regular"));
        EXPECT_TRUE(o.image() == before);
    }
}

// One failed write, undone: what is in memory says the same as the disk.
TEST(Enable, UndoneInMemoryToo) {
    for (const bool on : {true, false}) {
        const Image image = on ? make_ext4(kSize, {"-b", "4096"}) : dirty("4096");
        int undone = 0;
        for (uint64_t n = 0; n < 12; ++n) {
            SCOPED_TRACE(testing::Message() << (on ? "enable" : "disable") << ", call " << n);
            MemoryDevice memory(image);
            FaultDevice faults(memory);
            faults.count_only({false, true, true, false});
            const auto volume = open_volume(faults);
            faults.fail_at(n, EIO, false);
            const int code = on ? code_of(enable(*volume, {})) : code_of(disable(*volume, false));
            if (code == 0 || !volume->usable()) continue;
            ++undone;
            EXPECT_EQ(code, EIO);
            const auto disk = open_volume(memory);
            EXPECT_EQ(volume->attr().has_value(), disk->attr().has_value());
            EXPECT_EQ(volume->gate(), disk->gate());
            EXPECT_EQ(volume->gate(), !on);
            EXPECT_EQ(lookup(*volume, "/.atomic4/log").has_value(),
                      lookup(*disk, "/.atomic4/log").has_value());
            EXPECT_EQ(fsck_complaints(memory.contents()), "");
        }
        EXPECT_GT(undone, 0);
    }
}

// Every failed write or flush while enabling or disabling: never a success, and what is left can be
// opened, checked and brought to an end.
TEST(Enable, FailedWrites) {
    for (const bool on : {true, false}) {
        const Image image = on ? make_ext4(kSize, {"-b", "4096"}) : dirty("4096");
        const auto run = [&](Volume& volume, bool force = false) -> Result<> {
            if (on) {
                A4_CHECK(enable(volume, {}));
            } else {
                A4_CHECK(disable(volume, force));
            }
            return {};
        };
        MemoryDevice memory(image);
        uint64_t calls = 0;
        {
            FaultDevice faults(memory);
            faults.count_only({false, true, true, true});
            const auto volume = open_volume(faults);
            must(run(*volume));
            calls = faults.calls();
        }
        for (uint64_t n = 0; n < calls; ++n) {
            SCOPED_TRACE(testing::Message() << (on ? "enable" : "disable") << ", call " << n);
            memory.contents() = image;
            FaultDevice faults(memory);
            faults.count_only({false, true, true, true});
            faults.fail_at(n, EIO, true);
            {
                const auto volume = open_volume(faults);
                EXPECT_EQ(code_of(run(*volume)), EIO);
            }
            // The disk is well again.
            Image left = memory.contents();
            const Fsck repaired = e2fsck(left, {"-fy"}, &left);
            ASSERT_LE(repaired.status, 1) << repaired.output;
            Opened o(left, false);
            // e2fsck may have found the log without a name, as a file like any other.
            const auto done = run(*o.volume, true);
            EXPECT_TRUE(done || code_of(done) == EEXIST || code_of(done) == EINVAL)
                << message_of(done);
            EXPECT_EQ(o.volume->gate(), on);
            EXPECT_EQ(fsck_complaints(o.image()), "");
        }
    }
}

}  // namespace
}  // namespace atomic4::test
