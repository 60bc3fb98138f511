// Opening a volume: what is refused, with which errno and which advice; the gate and needs-replay
// bits; the volume attribute.
#include <fmt/format.h>

#include <random>

#include "check/volume_check.h"
#include "device/file_device.h"
#include "ext4/format.h"
#include "ext4/path.h"
#include "ext4/transaction.h"
#include "ext4/xattr.h"
#include "support/fault_device.h"
#include "unit/volume_fixture.h"

namespace atomic4::test {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr uint64_t kSize = 16 << 20;
constexpr uint64_t kSmall = 4 << 20;  // for what is tried hundreds of times

// Refused for reading and for writing alike.
void expect_refused(const Image& image, int code, const std::string& words,
                    bool require_atomic4 = false) {
    for (const OpenFor purpose : {OpenFor::Read, OpenFor::Write}) {
        const auto volume = try_open(image, purpose, require_atomic4);
        EXPECT_EQ(code_of(volume), code) << message_of(volume);
        EXPECT_THAT(message_of(volume), HasSubstr(words));
        EXPECT_THAT(message_of(volume), testing::StartsWith("memory: "));
    }
}

Image plain() {
    return make_ext4(kSize, {"-b", "1024"});
}

Image edited(Image image, const std::function<void(ext2_super_block&)>& edit) {
    edit_super(image, edit);
    return image;
}

TEST(VolumeOpen, PlainExt4) {
    for (const char* block : {"1024", "2048", "4096"}) {
        const Image image = make_ext4(kSize, {"-b", block});
        for (const OpenFor purpose : {OpenFor::Inspect, OpenFor::Read, OpenFor::Write}) {
            const auto volume = try_open(image, purpose);
            ASSERT_TRUE(volume) << message_of(volume);
            EXPECT_FALSE((*volume)->gate());
            EXPECT_FALSE((*volume)->attr());
            EXPECT_FALSE((*volume)->attr_error());
        }
        expect_refused(image, EINVAL, "run atomic4ctl enable first", true);
    }
}

TEST(VolumeOpen, NotExt4) {
    for (const OpenFor purpose : {OpenFor::Inspect, OpenFor::Read, OpenFor::Write}) {
        const auto volume = try_open(Image(kSize), purpose);
        EXPECT_EQ(code_of(volume), EINVAL);
        EXPECT_THAT(message_of(volume), HasSubstr("not an ext4 volume"));
    }
    std::mt19937_64 random(1);
    expect_refused(random_bytes(1 << 20, random), EINVAL, "not an ext4 volume");
}

// What blkid recognises is named; it looks at the file by its name.
TEST(VolumeOpen, NamesWhatIsThereInstead) {
    const TempDir dir;
    const std::string path = dir.file("image");
    Image image(16 << 20);
    const std::string swap = "SWAPSPACE2";
    image[1024] = std::byte{1};  // version
    image[1028] = std::byte{0xff};
    image[1029] = std::byte{0x0f};
    std::memcpy(image.data() + 4096 - swap.size(), swap.data(), swap.size());
    store_image(image, path);
    VolumeOptions options;
    const auto volume = Volume::open(must(FileDevice::open(path, {})), options);
    EXPECT_EQ(code_of(volume), EINVAL);
    EXPECT_THAT(message_of(volume), HasSubstr("it holds swap"));
    EXPECT_THAT(message_of(volume), HasSubstr(path));
}

TEST(VolumeOpen, Truncated) {
    const Image whole = make_ext4(kSize, {"-b", "4096"});
    for (const size_t length :
         {size_t{0}, size_t{1}, size_t{512}, size_t{1023}, size_t{1024}, size_t{1536}, size_t{2047},
          size_t{2048}, size_t{4095}, size_t{4096}, size_t{8192}, size_t{kSize / 2},
          size_t{kSize - 4096}, size_t{kSize - 1}}) {
        SCOPED_TRACE(length);
        const Image cut(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(length));
        for (const OpenFor purpose : {OpenFor::Inspect, OpenFor::Read, OpenFor::Write}) {
            const auto volume = try_open(cut, purpose);
            EXPECT_EQ(code_of(volume), EUCLEAN) << message_of(volume);
            EXPECT_THAT(message_of(volume), HasSubstr("truncated"));
        }
    }
    // A device larger than its filesystem is fine.
    Image larger = whole;
    larger.resize(kSize + 5000);
    EXPECT_TRUE(try_open(larger, OpenFor::Write));
}

TEST(VolumeOpen, BadSuperblockChecksum) {
    Image image = plain();
    image[kSuperOffset + 0x78] ^= std::byte{1};  // the label
    expect_refused(image, EUCLEAN, "set_super_value wtime now");
}

// Sizes that would lead shifts and divisions astray.
TEST(VolumeOpen, ImpossibleGeometry) {
    struct Row {
        const char* what;
        std::function<void(ext2_super_block&)> edit;
    };
    for (const Row& row : {Row{"flex groups", [](auto& s) { s.s_log_groups_per_flex = 200; }},
                           Row{"no inodes", [](auto& s) { s.s_inodes_per_group = 0; }},
                           Row{"many inodes", [](auto& s) { s.s_inodes_per_group = 16384; }},
                           Row{"no blocks", [](auto& s) { s.s_blocks_per_group = 0; }},
                           Row{"many blocks", [](auto& s) { s.s_blocks_per_group = 65536; }},
                           Row{"block size", [](auto& s) { s.s_log_block_size = 60; }},
                           Row{"first block", [](auto& s) { s.s_first_data_block = 0; }},
                           Row{"inode size", [](auto& s) { s.s_inode_size = 0; }},
                           Row{"descriptor size", [](auto& s) { s.s_desc_size = 63; }}}) {
        const auto volume = try_open(edited(plain(), row.edit), OpenFor::Write);
        EXPECT_FALSE(volume) << row.what;
    }
}

TEST(VolumeOpen, BadDescriptorChecksum) {
    Image image = plain();
    image[2048 + 64 + 0x0c] ^= std::byte{1};  // group 1's free count
    expect_refused(image, EUCLEAN, "group 1: the descriptor has a bad checksum");
    EXPECT_TRUE(try_open(image, OpenFor::Inspect));
}

TEST(VolumeOpen, States) {
    struct Row {
        const char* words;
        std::function<void(ext2_super_block&)> edit;
    };
    const std::vector<Row> rows{
        {"mount and unmount it once",
         [](auto& s) { s.s_feature_incompat |= EXT3_FEATURE_INCOMPAT_RECOVER; }},
        {"both the ext4 journal and the atomic4 log need recovery",
         [](auto& s) {
             s.s_feature_incompat |= EXT3_FEATURE_INCOMPAT_RECOVER | kFeatureIncompatNeedsReplay;
         }},
        {"ext4 has recorded errors", [](auto& s) { s.s_state |= EXT2_ERROR_FS; }},
        {"ext4 has recorded errors", [](auto& s) { s.s_error_count = 1; }},
        {"orphaned inodes", [](auto& s) { s.s_last_orphan = 12; }},
        {"orphaned inodes",
         [](auto& s) { s.s_feature_ro_compat |= EXT4_FEATURE_RO_COMPAT_ORPHAN_PRESENT; }},
        {"not unmounted cleanly, or never checked: check it with fsck.atomic4",
         [](auto& s) { s.s_state = static_cast<uint16_t>(s.s_state & ~EXT2_VALID_FS); }},
    };
    for (const Row& row : rows) {
        const Image image = edited(plain(), row.edit);
        expect_refused(image, EUCLEAN, row.words);
        EXPECT_TRUE(try_open(image, OpenFor::Inspect)) << row.words;
    }
    // Without a journal: a volume that was mounted when the power went.
    expect_refused(
        edited(make_ext4(kSize, {"-b", "1024", "-O", "^has_journal"}),
               [](auto& s) { s.s_state = static_cast<uint16_t>(s.s_state & ~EXT2_VALID_FS); }),
        EUCLEAN, "no journal to recover from");
}

TEST(VolumeOpen, RefusedFeatures) {
    struct Row {
        const char* words;
        std::function<void(ext2_super_block&)> edit;
    };
    const auto incompat = [](uint32_t bit) {
        return [bit](ext2_super_block& s) { s.s_feature_incompat |= bit; };
    };
    const auto ro_compat = [](uint32_t bit) {
        return [bit](ext2_super_block& s) { s.s_feature_ro_compat |= bit; };
    };
    const std::vector<Row> rows{
        {"unknown compat features 0x40000000", [](auto& s) { s.s_feature_compat |= 0x40000000; }},
        {"unknown incompat features 0x40000000", incompat(0x40000000)},
        {"unknown ro_compat features 0x40000000", ro_compat(0x40000000)},
        {"imagic_inodes", [](auto& s) { s.s_feature_compat |= EXT2_FEATURE_COMPAT_IMAGIC_INODES; }},
        {"compression", incompat(EXT2_FEATURE_INCOMPAT_COMPRESSION)},
        {"external journal", incompat(EXT3_FEATURE_INCOMPAT_JOURNAL_DEV)},
        {"dirdata", incompat(EXT4_FEATURE_INCOMPAT_DIRDATA)},
        {"tune2fs -O ^quota", ro_compat(EXT4_FEATURE_RO_COMPAT_QUOTA)},
        {"tune2fs -O ^read-only", ro_compat(EXT4_FEATURE_RO_COMPAT_READONLY)},
        {"e2fsck -E unshare_blocks", ro_compat(EXT4_FEATURE_RO_COMPAT_SHARED_BLOCKS)},
        {"tune2fs -O extent",
         [](auto& s) {
             s.s_feature_incompat &= ~static_cast<uint32_t>(EXT3_FEATURE_INCOMPAT_EXTENTS);
         }},
        {"journal on another device",
         [](auto& s) {
             s.s_journal_inum = 0;
             s.s_journal_uuid[0] = 1;
         }},
        {"journal on another device",
         [](auto& s) {
             s.s_journal_inum = 0;
             s.s_journal_dev = 0x801;
         }},
    };
    for (const Row& row : rows) {
        SCOPED_TRACE(row.words);
        expect_refused(edited(plain(), row.edit), EOPNOTSUPP, row.words);
    }
}

// With a right checksum, and yet damaged.
TEST(VolumeOpen, SuperblocksThatContradictThemselves) {
    const auto no_extents = [](ext2_super_block& s) {
        s.s_feature_incompat &= ~static_cast<uint32_t>(EXT3_FEATURE_INCOMPAT_EXTENTS);
    };
    expect_refused(edited(make_atomic4(kSize, {"-b", "1024"}), no_extents), EUCLEAN, "no extents");
    expect_refused(edited(plain(), [](auto& s) { s.s_rev_level = 0; }), EUCLEAN, "revision 0");
    expect_refused(edited(plain(), [](auto& s) { s.s_journal_inum = 0; }), EUCLEAN, "no journal");
}

TEST(VolumeOpen, RefusedFeaturesMadeByMke2fs) {
    const auto ext4 = [](const char* features, uint64_t size = kSize) {
        return make_ext4(size, {"-b", "4096", "-O", features});
    };
    expect_refused(ext4("quota"), EOPNOTSUPP, "quota");
    expect_refused(ext4("mmp"), EOPNOTSUPP, "mmp");  // in memory; files: mmp_test.cc
    expect_refused(ext4("journal_dev,^has_journal"), EOPNOTSUPP, "external journal");
    expect_refused(ext4("^extents,^64bit"), EOPNOTSUPP, "extent");
}

// What we do support, beyond the defaults.
TEST(VolumeOpen, SupportedFeatures) {
    for (const char* features : {"^has_journal",
                                 "^64bit",
                                 "^metadata_csum,uninit_bg",
                                 "^metadata_csum,^uninit_bg",
                                 "^flex_bg",
                                 "bigalloc",
                                 "inline_data",
                                 "casefold",
                                 "meta_bg,^resize_inode",
                                 "sparse_super2,^resize_inode",
                                 "encrypt",
                                 "verity",
                                 "project,^quota",
                                 "ea_inode",
                                 "large_dir",
                                 "metadata_csum_seed",
                                 "orphan_file",
                                 "stable_inodes",
                                 "fast_commit",
                                 "^huge_file",
                                 "^dir_nlink",
                                 "^dir_index",
                                 "^filetype",
                                 "^extra_isize",
                                 "^resize_inode"}) {
        SCOPED_TRACE(features);
        const Image image = make_ext4(kSize, {"-b", "1024", "-O", features});
        const auto volume = try_open(image, OpenFor::Write);
        EXPECT_TRUE(volume) << message_of(volume);
        const Image enabled = make_atomic4(kSize, {"-b", "1024", "-O", features});
        EXPECT_EQ(fsck_complaints(enabled), "");
        const auto again = try_open(enabled, OpenFor::Write, true);
        EXPECT_TRUE(again) << message_of(again);
    }
}

TEST(VolumeOpen, ReadOnlyDevice) {
    MemoryDevice memory(make_atomic4(kSize, {"-b", "1024"}));
    memory.set_read_only(true);
    VolumeOptions options;
    options.purpose = OpenFor::Write;
    const auto refused = Volume::open(borrowed(memory), options);
    EXPECT_EQ(code_of(refused), EROFS);
    EXPECT_THAT(message_of(refused), HasSubstr("writable"));
    options.purpose = OpenFor::Read;
    EXPECT_TRUE(Volume::open(borrowed(memory), options));
}

// A damaged superblock may say anything; opening must say no, or give a volume that holds together.
TEST(VolumeOpen, RandomSuperblocksDoNoHarm) {
    for (const char* block : {"1024", "4096"}) {
        const Image image = make_atomic4(kSmall, {"-b", block});
        MemoryDevice memory(image);
        std::mt19937_64 random(5);
        int opened = 0;
        for (int round = 0; round < 1500; ++round) {
            SCOPED_TRACE(testing::Message() << block << " round " << round);
            memory.contents() = image;
            edit_super(memory.contents(), [&](ext2_super_block& super) {
                auto* bytes = reinterpret_cast<uint8_t*>(&super);
                // Mostly in the first half, where the sizes and features are.
                const size_t within = random() % 4 == 0 ? 1020 : 0x180;
                for (uint64_t n = random() % 3 + 1; n > 0; --n)
                    bytes[random() % within] ^= static_cast<uint8_t>(1u << (random() % 8));
            });
            for (const OpenFor purpose : {OpenFor::Inspect, OpenFor::Write}) {
                VolumeOptions options;
                options.purpose = purpose;
                auto volume = Volume::open(borrowed(memory), options);
                if (!volume) {
                    EXPECT_NE(volume.error().code, 0);
                    EXPECT_FALSE(volume.error().message.empty());
                    continue;
                }
                ++opened;
                if (purpose != OpenFor::Write) continue;
                Transaction transaction(**volume);
                (void)(*volume)->allocator().allocate(2, Pblk(1));
                (void)(*volume)->inodes().allocate(EXT2_ROOT_INO, false);
                (void)lookup(**volume, "/.atomic4/log");
            }
        }
        EXPECT_GT(opened, 0);
    }
}

// Damaged descriptors and a damaged root directory: the same.
TEST(VolumeOpen, RandomMetadataDoesNoHarm) {
    const Image image =
        make_atomic4(kSmall, {"-b", "1024", "-O", "^metadata_csum,^uninit_bg", "-g", "1024"});
    MemoryDevice memory(image);
    VolumeOptions options;
    options.purpose = OpenFor::Write;
    std::mt19937_64 random(6);
    for (int round = 0; round < 1500; ++round) {
        SCOPED_TRACE(round);
        memory.contents() = image;
        // Block 2 on: descriptors, bitmaps, inode tables.
        for (uint64_t n = random() % 6 + 1; n > 0; --n)
            memory.contents()[2048 + random() % (random() % 2 == 0 ? 1024 : 300 * 1024)] ^=
                static_cast<std::byte>(1u << (random() % 8));
        auto volume = Volume::open(borrowed(memory), options);
        if (!volume) continue;
        Transaction transaction(**volume);
        (void)(*volume)->allocator().allocate(2, Pblk(1));
        (void)(*volume)->inodes().allocate(EXT2_ROOT_INO, false);
        (void)lookup(**volume, "/.atomic4/log");
        (void)find_atomic_inodes(**volume);
    }
}

// Writes the attribute as it stands, or removes it.
Image with_attr(Image image, const std::optional<std::string>& text) {
    MemoryDevice memory(std::move(image));
    const auto volume = open_volume(memory);
    Transaction transaction(*volume);
    must(write_xattr(volume->fs(), EXT2_ROOT_INO, kVolumeXattr, text));
    must(transaction.commit());
    return memory.contents();
}

TEST(VolumeOpen, AttributeOnDisk) {
    const Image image = make_atomic4(kSize, {"-b", "1024"});
    expect_refused(with_attr(image, "version=2 new=thing"), EOPNOTSUPP, "use a newer atomic4",
                   true);
    expect_refused(with_attr(image, "nonsense"), EUCLEAN, "damaged", true);
    const Image none = with_attr(image, std::nullopt);
    expect_refused(none, EUCLEAN, "interrupted; run it again", true);
    // An inspector sees what is wrong.
    const auto inspected = try_open(with_attr(image, "nonsense"), OpenFor::Inspect, true);
    ASSERT_TRUE(inspected) << message_of(inspected);
    EXPECT_FALSE((*inspected)->attr());
    ASSERT_TRUE((*inspected)->attr_error());
    EXPECT_EQ((*inspected)->attr_error()->code, EUCLEAN);
    const auto bare = must(try_open(none, OpenFor::Inspect, true));
    EXPECT_FALSE(bare->attr());
    EXPECT_FALSE(bare->attr_error());
    // Unknown keys survive an opening that writes.
    const std::string text =
        must(must(try_open(image, OpenFor::Read, true))->attr().has_value()
                 ? Result<std::string>(must(try_open(image, OpenFor::Read))->attr()->to_text())
                 : fail(EIO, "no attribute"));
    const Image extended = with_attr(image, text + " later=7");
    const auto volume = must(try_open(extended, OpenFor::Write, true));
    EXPECT_THAT(volume->attr()->to_text(), HasSubstr(" later=7"));
}

// --- What opening costs --------------------------------------------------------------------------

TEST(VolumeOpen, ReadsLittle) {
    const TempDir dir;
    const std::string path = dir.file("image");
    const CommandOutput made =
        run_command({"mke2fs", "-q", "-F", "-t", "ext4", "-E", "lazy_journal_init=1", "-J",
                     "size=4", "-N", "16384", path, "1T"});
    ASSERT_EQ(made.status, 0) << made.output;
    auto device = must(FileDevice::open(path, {Access::ReadWrite, true}));
    RecordingDevice recorder(*device);
    const auto volume = open_volume(recorder);
    // The descriptors (512 KiB of them), the superblock and its copies, the root inode.
    EXPECT_LT(recorder.bytes_read, 2u << 20);
    EXPECT_LT(recorder.reads, 200u);
    EXPECT_TRUE(recorder.events.empty());
    // An allocation reads the bitmaps it needs, no more.
    const uint64_t before = recorder.reads;
    Transaction transaction(*volume);
    must(volume->allocator().allocate(4, Pblk(uint64_t{100} << 20)));
    EXPECT_LE(recorder.reads - before, 2u);
}

// Every read may fail: an error, never a crash, and never a wrong "not an ext4".
TEST(VolumeOpen, ReadErrorsAreReported) {
    MemoryDevice memory(make_atomic4(kSize, {"-b", "1024", "-g", "1024"}));
    FaultDevice faults(memory);
    VolumeOptions options;
    options.purpose = OpenFor::Write;
    must(Volume::open(borrowed(faults), options));
    const uint64_t calls = faults.calls();
    ASSERT_GT(calls, 3u);
    for (uint64_t n = 0; n < calls; ++n) {
        for (const bool persistent : {false, true}) {
            faults.reset();
            faults.fail_at(n, EIO, persistent);
            const auto volume = Volume::open(borrowed(faults), options);
            if (!volume) {
                EXPECT_EQ(code_of(volume), EIO) << n << ": " << message_of(volume);
                continue;
            }
            // What libext2fs swallowed is remembered.
            EXPECT_EQ(code_of((*volume)->usable()), EIO) << n;
        }
    }
}

}  // namespace
}  // namespace atomic4::test
