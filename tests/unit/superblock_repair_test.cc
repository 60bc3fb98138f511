// A primary superblock with a bad checksum: repaired if a backup proves the rest, else refused.
#include <fmt/format.h>

#include <cstddef>
#include <random>

#include "ext4/format.h"
#include "unit/volume_fixture.h"

namespace atomic4::test {
namespace {

using testing::HasSubstr;

constexpr uint64_t kSize = 32 << 20;

#define OFFSET(field) (kSuperOffset + offsetof(ext2_super_block, field))

void flip(Image& image, size_t at, int bit = 0) {
    image[at] ^= static_cast<std::byte>(1 << bit);
}

std::vector<uint64_t> backup_offsets(const Image& image) {
    MemoryDevice memory(image);
    const auto volume = open_volume(memory, OpenFor::Read);
    std::vector<uint64_t> offsets;
    for (const BackupSuperblock& backup : volume->backups()) {
        offsets.push_back(ext2fs_group_first_block2(volume->fs(), backup.group) *
                          volume->block_size().value());
    }
    return offsets;
}

Result<std::unique_ptr<Volume>> try_open(Device& device, OpenFor purpose) {
    VolumeOptions options;
    options.purpose = purpose;
    return Volume::open(borrowed(device), options);
}

// Opens for reading without a write, for writing with the repair; then it is as good as new.
void expect_repaired(const Image& damaged, const Image& sound, bool with_e2fsck = true,
                     bool copies_too = false) {
    MemoryDevice memory(damaged);
    memory.set_read_only(true);
    for (const OpenFor purpose : {OpenFor::Inspect, OpenFor::Read}) {
        const auto volume = try_open(memory, purpose);
        ASSERT_TRUE(volume) << message_of(volume);
        ASSERT_EQ((*volume)->notices().size(), 1u);
        EXPECT_THAT((*volume)->notices()[0], HasSubstr("read as repaired"));
        EXPECT_TRUE(memory.contents() == damaged);
    }
    memory.set_read_only(false);
    {
        const auto volume = try_open(memory, OpenFor::Write);
        ASSERT_TRUE(volume) << message_of(volume);
        ASSERT_EQ((*volume)->notices().size(), 1u);
        EXPECT_THAT((*volume)->notices()[0], HasSubstr("agrees with its copy in group"));
        EXPECT_TRUE((*volume)->gate());
    }
    const RawSuper raw = raw_super(memory.contents());
    EXPECT_TRUE(raw.checksum_right);
    EXPECT_TRUE(raw.gate);
    ext2_super_block was = super_of(sound);
    ext2_super_block is = super_of(memory.contents());
    EXPECT_EQ(ext2fs_free_blocks_count(&is), ext2fs_free_blocks_count(&was));
    EXPECT_EQ(is.s_free_inodes_count, was.s_free_inodes_count);
    // Nothing but the superblock was written.
    Image rest = memory.contents();
    std::copy_n(damaged.begin(), 4096, rest.begin());
    EXPECT_TRUE(copies_too || rest == damaged);
    if (with_e2fsck) {
        EXPECT_EQ(fsck_complaints(memory.contents()), "");
    }
    const auto again = try_open(memory, OpenFor::Write);
    ASSERT_TRUE(again) << message_of(again);
    EXPECT_TRUE((*again)->notices().empty());
}

void expect_refused(const Image& damaged, const std::string& words) {
    MemoryDevice memory(damaged);
    for (const OpenFor purpose : {OpenFor::Inspect, OpenFor::Read, OpenFor::Write}) {
        const auto volume = try_open(memory, purpose);
        EXPECT_EQ(code_of(volume), EUCLEAN) << message_of(volume);
        EXPECT_THAT(message_of(volume), HasSubstr("the superblock has a bad checksum"));
        EXPECT_THAT(message_of(volume), HasSubstr(words));
        EXPECT_THAT(message_of(volume), HasSubstr("set_super_value wtime now"));
        EXPECT_TRUE(memory.contents() == damaged);
    }
}

using Arguments = std::vector<std::string>;

const std::vector<Arguments>& layouts() {
    static const std::vector<Arguments> layouts{
        {"-b", "1024"},
        {"-b", "1024", "-O", "^sparse_super,^resize_inode"},
        {"-b", "1024", "-O", "sparse_super2,^resize_inode"},
        {"-b", "1024", "-O", "meta_bg,^resize_inode"},
        {"-b", "1024", "-O", "metadata_csum_seed"},
        {"-b", "1024", "-O", "^64bit"},
        {"-b", "2048", "-g", "4096"},
        {"-b", "4096", "-g", "2048"},
        {"-b", "4096", "-g", "2048", "-O", "^sparse_super,^resize_inode"},
    };
    return layouts;
}

TEST(SuperblockRepair, FieldsOfEveryDay) {
    for (const Arguments& arguments : layouts()) {
        SCOPED_TRACE(testing::PrintToString(arguments));
        const Image sound = make_atomic4(kSize, arguments);
        for (const size_t at :
             {OFFSET(s_checksum), OFFSET(s_volume_name), OFFSET(s_free_blocks_count),
              OFFSET(s_free_inodes_count), OFFSET(s_mtime), OFFSET(s_wtime), OFFSET(s_mnt_count),
              OFFSET(s_kbytes_written), OFFSET(s_last_mounted)}) {
            SCOPED_TRACE(at);
            Image image = sound;
            flip(image, at);
            expect_repaired(image, sound, at == OFFSET(s_free_blocks_count));
        }
    }
}

TEST(SuperblockRepair, KeepsItsOwnFields) {
    Image image = make_atomic4(kSize, {"-b", "1024"});
    const std::string label = "half of new";
    std::memcpy(image.data() + OFFSET(s_volume_name), label.data(), label.size());
    MemoryDevice memory(image);
    ASSERT_TRUE(try_open(memory, OpenFor::Write));
    EXPECT_EQ(std::memcmp(super_of(memory.contents()).s_volume_name, label.data(), label.size()),
              0);
}

TEST(SuperblockRepair, AnotherGeometryIsRefused) {
    for (const Arguments& arguments :
         {Arguments{"-b", "1024"}, Arguments{"-b", "4096", "-g", "2048"}}) {
        SCOPED_TRACE(testing::PrintToString(arguments));
        const Image sound = make_atomic4(kSize, arguments);
        struct Row {
            size_t at;
            const char* words;
        };
        for (const Row& row :
             {Row{OFFSET(s_blocks_count), "block count"},
              Row{OFFSET(s_inodes_count), "inode count"},
              Row{OFFSET(s_inodes_per_group), "inodes per group"},
              Row{OFFSET(s_inode_size), "inode size"}, Row{OFFSET(s_desc_size), "descriptor size"},
              Row{OFFSET(s_hash_seed), "hash seed"}, Row{OFFSET(s_journal_inum), "journal"},
              Row{OFFSET(s_log_groups_per_flex), "flex group size"},
              Row{OFFSET(s_checksum_type), "checksum type"},
              Row{OFFSET(s_checksum_seed), "checksum seed"},
              Row{OFFSET(s_feature_compat) + 1, "features"},
              Row{OFFSET(s_feature_incompat), "features"}, Row{OFFSET(s_uuid), "no valid copy"}}) {
            SCOPED_TRACE(row.words);
            Image image = sound;
            flip(image, row.at);
            expect_refused(image, row.words);
        }
    }
    // Where the copies are is itself damaged: they are found by mke2fs's defaults.
    Image image = make_atomic4(kSize, {"-b", "1024"});
    flip(image, OFFSET(s_log_block_size));
    expect_refused(image, "differs in the block size");
}

TEST(SuperblockRepair, WithoutAValidCopy) {
    // One group: there is none.
    Image single = make_atomic4(4 << 20, {"-b", "1024"});
    flip(single, OFFSET(s_volume_name));
    expect_refused(single, "no valid copy");

    const Image sound = make_atomic4(kSize, {"-b", "1024"});
    Image image = sound;
    for (const uint64_t at : backup_offsets(sound)) flip(image, at + 0x78);
    flip(image, OFFSET(s_volume_name));
    expect_refused(image, "no valid copy");
    // A copy that calls itself another group's isn't one: an image of another volume, say.
    image = sound;
    for (const uint64_t at : backup_offsets(sound))
        edit_super(image, [](ext2_super_block& super) { super.s_block_group_nr = 2; }, at);
    flip(image, OFFSET(s_volume_name));
    expect_refused(image, "no valid copy");
    // One valid one among damaged ones is enough.
    image = sound;
    const auto offsets = backup_offsets(sound);
    ASSERT_GT(offsets.size(), 1u);
    for (size_t i = 0; i + 1 < offsets.size(); ++i) flip(image, offsets[i] + 0x78);
    flip(image, OFFSET(s_volume_name));
    expect_repaired(image, sound);
}

// A plain ext4 is left to stock tools, which take it.
TEST(SuperblockRepair, NotAnAtomic4Volume) {
    Image image = make_ext4(kSize, {"-b", "1024"});
    flip(image, OFFSET(s_volume_name));
    expect_refused(image, "no copy of it says");
}

TEST(SuperblockRepair, NeedsReplayStays) {
    for (const bool bit : {false, true}) {
        Image image = make_atomic4(kSize, {"-b", "1024"});
        edit_super(image, [&](ext2_super_block& super) {
            if (bit) super.s_feature_incompat |= kFeatureIncompatNeedsReplay;
        });
        flip(image, OFFSET(s_mtime));
        MemoryDevice memory(image);
        {
            const auto volume = try_open(memory, OpenFor::Write);
            ASSERT_TRUE(volume) << message_of(volume);
            EXPECT_EQ((*volume)->needs_replay(), bit);
        }
        EXPECT_EQ(raw_super(memory.contents()).needs_replay, bit);
        // Recover goes on from there.
        const auto report = recover(borrowed(memory), OnConflict::Keep);
        ASSERT_TRUE(report) << message_of(report);
        EXPECT_FALSE(raw_super(memory.contents()).needs_replay);
    }
}

// Recover is an opening like any other.
TEST(SuperblockRepair, RecoverReportsIt) {
    Image image = make_atomic4(kSize, {"-b", "4096", "-g", "2048"});
    flip(image, OFFSET(s_checksum), 3);
    MemoryDevice memory(image);
    const auto report = must(recover(borrowed(memory), OnConflict::Keep));
    ASSERT_EQ(report.notices.size(), 1u);
    EXPECT_THAT(report.notices[0], HasSubstr("repaired"));
}

// The gate counts from any copy; afterwards every copy has it.
TEST(SuperblockRepair, GateInTheCopiesOnly) {
    Image image = make_atomic4(kSize, {"-b", "1024"});
    const Image sound = image;
    flip(image, OFFSET(s_feature_compat) + 3, 4);
    // The gate is then written to every copy, with the time of that.
    expect_repaired(image, sound, true, true);
}

// The kernel needs a superblock to recover the rest.
TEST(SuperblockRepair, RepairsWhatIsRefusedForItsState) {
    Image image = make_atomic4(kSize, {"-b", "1024"});
    edit_super(image, [](ext2_super_block& super) {
        super.s_feature_incompat |= EXT3_FEATURE_INCOMPAT_RECOVER;
    });
    flip(image, OFFSET(s_mtime));
    MemoryDevice memory(image);
    const auto volume = try_open(memory, OpenFor::Write);
    EXPECT_EQ(code_of(volume), EUCLEAN);
    EXPECT_THAT(message_of(volume), HasSubstr("journal needs recovery"));
    EXPECT_TRUE(raw_super(memory.contents()).checksum_right);
}

// Torn between two real states, at 512 bytes or word by word.
TEST(SuperblockRepair, TornUpdates) {
    const Image before = make_atomic4(kSize, {"-b", "1024"});
    Image after;
    {
        MemoryDevice memory(before);
        const auto volume = open_volume(memory);
        must(create_atomic_file(*volume, "/file", {Bytes(1 << 20), Bytes(16384)}));
        after = memory.contents();
    }
    std::mt19937_64 random(11);
    for (int round = 0; round < 16; ++round) {
        SCOPED_TRACE(round);
        Image image = after;
        const size_t piece = round % 2 == 0 ? 512 : 2;
        for (size_t at = 0; at < 1024; at += piece) {
            if (random() % 2 == 0)
                std::copy_n(before.begin() + static_cast<std::ptrdiff_t>(kSuperOffset + at), piece,
                            image.begin() + static_cast<std::ptrdiff_t>(kSuperOffset + at));
        }
        if (raw_super(image).checksum_right) continue;
        expect_repaired(image, after);
    }
}

// Whatever single bit is wrong: refused, or the geometry is the old one.
TEST(SuperblockRepair, EveryBit) {
    const Image sound = make_atomic4(kSize, {"-b", "1024"});
    MemoryDevice memory(sound);
    const ext2_super_block was = super_of(sound);
    int repaired = 0;
    for (size_t bit = 0; bit < 1024 * 8; ++bit) {
        // s_reserved: nothing to be said of it but that it is kept.
        if (bit / 8 >= offsetof(ext2_super_block, s_reserved) + 8 && bit / 8 < 0x3fc) continue;
        std::copy_n(sound.begin(), 8192, memory.contents().begin());
        flip(memory.contents(), kSuperOffset + bit / 8, static_cast<int>(bit % 8));
        const auto volume = try_open(memory, OpenFor::Write);
        if (!volume) continue;
        ++repaired;
        const ext2_super_block is = super_of(memory.contents());
        EXPECT_EQ(is.s_blocks_count, was.s_blocks_count);
        EXPECT_EQ(is.s_inodes_per_group, was.s_inodes_per_group);
        EXPECT_EQ(is.s_blocks_per_group, was.s_blocks_per_group);
        EXPECT_EQ(is.s_desc_size, was.s_desc_size);
        EXPECT_EQ(is.s_inode_size, was.s_inode_size);
        EXPECT_EQ(is.s_feature_compat, was.s_feature_compat) << bit;
        EXPECT_TRUE(raw_super(memory.contents()).checksum_right) << bit;
    }
    EXPECT_GT(repaired, 1000);
}

}  // namespace
}  // namespace atomic4::test
