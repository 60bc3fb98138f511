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

Result<std::unique_ptr<Volume>> try_open(Image image, OpenFor purpose,
                                         bool require_atomic4 = false) {
    // The image outlives the Volume by being its own.
    VolumeOptions options;
    options.purpose = purpose;
    options.require_atomic4 = require_atomic4;
    return Volume::open(std::make_unique<MemoryDevice>(std::move(image)), options);
}

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
        {"not unmounted cleanly, or never checked: check it with e2fsck",
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
        {"tune2fs -O ^mmp", incompat(EXT4_FEATURE_INCOMPAT_MMP)},
        {"dirdata", incompat(EXT4_FEATURE_INCOMPAT_DIRDATA)},
        {"inline_data", incompat(EXT4_FEATURE_INCOMPAT_INLINE_DATA)},
        {"casefold", incompat(EXT4_FEATURE_INCOMPAT_CASEFOLD)},
        {"bigalloc", ro_compat(EXT4_FEATURE_RO_COMPAT_BIGALLOC)},
        {"tune2fs -O ^quota", ro_compat(EXT4_FEATURE_RO_COMPAT_QUOTA)},
        {"tune2fs -O ^read-only", ro_compat(EXT4_FEATURE_RO_COMPAT_READONLY)},
        {"e2fsck -E unshare_blocks", ro_compat(EXT4_FEATURE_RO_COMPAT_SHARED_BLOCKS)},
        {"tune2fs -O extent",
         [](auto& s) {
             s.s_feature_incompat &= ~static_cast<uint32_t>(EXT3_FEATURE_INCOMPAT_EXTENTS);
         }},
        {"journal on another device", [](auto& s) { s.s_journal_inum = 0; }},
    };
    for (const Row& row : rows) {
        SCOPED_TRACE(row.words);
        expect_refused(edited(plain(), row.edit), EOPNOTSUPP, row.words);
    }
}

TEST(VolumeOpen, RefusedFeaturesMadeByMke2fs) {
    const auto ext4 = [](const char* features, uint64_t size = kSize) {
        return make_ext4(size, {"-b", "4096", "-O", features});
    };
    expect_refused(ext4("bigalloc"), EOPNOTSUPP, "bigalloc");
    expect_refused(ext4("quota"), EOPNOTSUPP, "quota");
    expect_refused(ext4("inline_data"), EOPNOTSUPP, "inline_data");
    expect_refused(ext4("mmp"), EOPNOTSUPP, "mmp");
    expect_refused(ext4("casefold"), EOPNOTSUPP, "casefold");
    expect_refused(ext4("journal_dev,^has_journal"), EOPNOTSUPP, "external journal");
    expect_refused(ext4("^extents,^64bit"), EOPNOTSUPP, "extent");
    expect_refused(make_ext4(64 << 20, {"-b", "65536"}), EOPNOTSUPP, "65536-byte blocks");
}

// What we do support, beyond the defaults.
TEST(VolumeOpen, SupportedFeatures) {
    for (const char* features : {"^has_journal",
                                 "^64bit",
                                 "^metadata_csum,uninit_bg",
                                 "^metadata_csum,^uninit_bg",
                                 "^flex_bg",
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

// --- The volume attribute ------------------------------------------------------------------------

constexpr const char* kGood =
    "version=1 unit=16384 log=12:305419896:00112233445566778899aabbccddeeff";

TEST(VolumeAttr, RoundTrip) {
    const VolumeAttr attr = must(VolumeAttr::parse(kGood));
    EXPECT_EQ(attr.unit, Bytes(16384));
    EXPECT_EQ(attr.log_inode, 12u);
    EXPECT_EQ(attr.log_generation, 305419896u);
    EXPECT_EQ(attr.log_id[0], 0x00);
    EXPECT_EQ(attr.log_id[15], 0xff);
    EXPECT_TRUE(attr.unknown.empty());
    EXPECT_EQ(attr.to_text(), kGood);
}

TEST(VolumeAttr, UnknownKeysAreKeptInOrder) {
    const std::string text = std::string(kGood) + " colour=blue flag x=1=2 colour=red";
    const VolumeAttr attr = must(VolumeAttr::parse(text));
    EXPECT_THAT(attr.unknown, testing::ElementsAre("colour=blue", "flag", "x=1=2", "colour=red"));
    EXPECT_EQ(attr.to_text(), text);
    // Wherever they stand.
    const VolumeAttr first = must(VolumeAttr::parse(std::string("a=b ") + kGood));
    EXPECT_THAT(first.unknown, testing::ElementsAre("a=b"));
    EXPECT_EQ(must(VolumeAttr::parse(first.to_text())).to_text(), first.to_text());
}

TEST(VolumeAttr, OrderOfKeysDoesNotMatter) {
    EXPECT_EQ(must(VolumeAttr::parse(
                       "log=12:305419896:00112233445566778899AABBCCDDEEFF unit=16384 version=1"))
                  .to_text(),
              kGood);
}

TEST(VolumeAttr, Damage) {
    const std::string log = "log=12:305419896:00112233445566778899aabbccddeeff";
    struct Row {
        std::string text;
        int code;
    };
    const std::vector<Row> rows{
        {"", EUCLEAN},
        {" ", EUCLEAN},
        {"garbage", EUCLEAN},
        {"version=1", EUCLEAN},
        {"version=1 unit=16384", EUCLEAN},
        {"unit=16384 " + log, EUCLEAN},
        {"version=1 " + log, EUCLEAN},
        {"version=1 version=1 unit=16384 " + log, EUCLEAN},
        {"version=1 unit=16384 unit=16384 " + log, EUCLEAN},
        {"version=1 unit=16384 " + log + " " + log, EUCLEAN},
        {"version=2 unit=16384 " + log, EOPNOTSUPP},
        {"version=0 unit=16384 " + log, EOPNOTSUPP},
        // Another version may have another form: nothing after it is judged.
        {"version=2 unit=banana", EOPNOTSUPP},
        {"version= unit=16384 " + log, EUCLEAN},
        {"version unit=16384 " + log, EUCLEAN},
        {"version=1x unit=16384 " + log, EUCLEAN},
        {"version=-1 unit=16384 " + log, EUCLEAN},
        {"version=99999999999 unit=16384 " + log, EUCLEAN},
        {"version=1 unit=0 " + log, EUCLEAN},
        {"version=1 unit=12288 " + log, EUCLEAN},
        {"version=1 unit=8388608 " + log, EUCLEAN},
        {"version=1 unit=16K " + log, EUCLEAN},
        {"version=1 unit=+16384 " + log, EUCLEAN},
        {"version=1 unit=16384 log=", EUCLEAN},
        {"version=1 unit=16384 log=12", EUCLEAN},
        {"version=1 unit=16384 log=12:5", EUCLEAN},
        {"version=1 unit=16384 log=0:5:00112233445566778899aabbccddeeff", EUCLEAN},
        {"version=1 unit=16384 log=12:0:00112233445566778899aabbccddeeff", EUCLEAN},
        {"version=1 unit=16384 log=12:5:00112233445566778899aabbccddeef", EUCLEAN},
        {"version=1 unit=16384 log=12:5:00112233445566778899aabbccddeeff0", EUCLEAN},
        {"version=1 unit=16384 log=12:5:00112233445566778899aabbccddeexx", EUCLEAN},
        {"version=1 unit=16384 log=12:5:0011223344556677-899aabbccddeef1", EUCLEAN},
        {"version=1 unit=16384 log=12:99999999999:00112233445566778899aabbccddeeff", EUCLEAN},
    };
    for (const Row& row : rows) {
        const auto attr = VolumeAttr::parse(row.text);
        EXPECT_EQ(code_of(attr), row.code) << row.text;
        EXPECT_FALSE(message_of(attr).empty());
    }
    EXPECT_THAT(message_of(VolumeAttr::parse("version=7 unit=16384 " + log)),
                HasSubstr("use a newer atomic4"));
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

// --- The gate ------------------------------------------------------------------------------------

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
