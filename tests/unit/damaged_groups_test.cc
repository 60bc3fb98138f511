// Groups whose block or inode bitmap is damaged: others serve, nothing is freed there, and when
// nothing else is left the error names them.
#include <fmt/format.h>

#include <random>

#include "device/forwarding_device.h"
#include "ext4/bitmap_rebuild.h"
#include "ext4/errcode.h"
#include "unit/volume_fixture.h"

namespace atomic4::test {
namespace {

using testing::HasSubstr;

constexpr uint64_t kSize = 32 << 20;  // four groups of 1 KiB blocks
constexpr uint32_t kGroups = 4;

enum class Kind { Block, Inode };

uint64_t bitmap_offset(const Image& image, uint32_t group, Kind kind) {
    MemoryDevice memory(image);
    const auto volume = open_volume(memory, OpenFor::Read);
    ext2_filsys fs = volume->fs();
    return (kind == Kind::Block ? ext2fs_block_bitmap_loc(fs, group)
                                : ext2fs_inode_bitmap_loc(fs, group)) *
           fs->blocksize;
}

// A bit that the descriptor doesn't know of.
void damage(Image& image, uint32_t group, Kind kind) {
    const uint64_t at = bitmap_offset(image, group, kind);
    // The checksum covers as many bits as there are inodes.
    image[at + (kind == Kind::Block ? 64 : 5)] ^= std::byte{1};
}

// Every group with a real bitmap and inodes of its own.
Image make_image() {
    return make_atomic4(kSize, {"-b", "1024", "-O", "^flex_bg,^uninit_bg,metadata_csum", "-N",
                                "256", "-E", "lazy_itable_init=0"});
}

uint32_t group_of(const Volume& volume, Pblk block) {
    return ext2fs_group_of_blk2(volume.fs(), block.value());
}

// Descriptors of uninitialised groups have no bitmap to damage: use each group once.
Image make_used_image() {
    MemoryDevice memory(make_image());
    const auto volume = open_volume(memory);
    Transaction transaction(*volume);
    for (uint32_t group = 0; group < kGroups; ++group) {
        must(volume->block_bitmaps().initialise(group));
        must(volume->inode_bitmaps().initialise(group));
    }
    must(transaction.commit());
    return memory.contents();
}

std::string repaired_complaints(const Image& image) {
    Image repaired = image;
    const Fsck fsck = e2fsck(image, {"-fy"}, &repaired);
    if (fsck.status > 1) return fsck.output;
    return fsck_complaints(repaired);
}

TEST(DamagedGroups, OtherGroupsServe) {
    Image image = make_used_image();
    damage(image, 2, Kind::Block);
    MemoryDevice memory(image);
    const auto volume = open_volume(memory);
    const Pblk goal(ext2fs_group_first_block2(volume->fs(), 2) + 4000);
    {
        Transaction transaction(*volume);
        for (const int order : {0, 4, 10}) {
            const PblkRun run = must(volume->allocator().allocate(order, goal));
            EXPECT_NE(group_of(*volume, run.start), 2u);
            EXPECT_NE(group_of(*volume, run.start + run.length - Blocks(1)), 2u);
        }
        for (const PblkRun& run : must(volume->allocator().allocate_units(2, 100, goal)))
            EXPECT_NE(group_of(*volume, run.start), 2u);
        EXPECT_NE(group_of(*volume, must(volume->allocator().choose_block(goal))), 2u);
        EXPECT_FALSE(must(volume->allocator().is_free(goal)));
        EXPECT_TRUE(volume->block_bitmaps().is_damaged(2));
    }
    const auto inode = must(create_atomic_file(*volume, "/file", {Bytes(1 << 20), Bytes(16384)}));
    EXPECT_EQ(must(check_layout(*volume, must(read_file(*volume, inode)), Bytes(16384))).problems,
              0u);
    EXPECT_EQ(repaired_complaints(memory.contents()), "");
}

TEST(DamagedGroups, WhenNothingElseIsLeftTheyAreNamed) {
    Image image = make_used_image();
    for (const uint32_t group : {0, 1, 3}) damage(image, group, Kind::Block);
    MemoryDevice memory(image);
    const auto volume = open_volume(memory);
    Transaction transaction(*volume);
    uint64_t taken = 0;
    for (;; ++taken) {
        const auto run = volume->allocator().allocate(0, Pblk(1));
        if (run) continue;
        EXPECT_EQ(code_of(run), EUCLEAN);
        EXPECT_THAT(message_of(run), HasSubstr("damaged groups 0, 1, 3"));
        EXPECT_THAT(message_of(run), HasSubstr("block bitmap has a bad checksum"));
        EXPECT_THAT(message_of(run), HasSubstr("e2fsck"));
        break;
    }
    EXPECT_GT(taken, 1000u);
    EXPECT_EQ(code_of(volume->allocator().choose_block(Pblk(1))), EUCLEAN);
    // More than there is in all: no group could change that.
    EXPECT_EQ(code_of(volume->allocator().allocate_units(4, 1 << 20, Pblk(1))), ENOSPC);
    // A run longer than any group's free blocks.
    EXPECT_EQ(code_of(volume->allocator().allocate(13, Pblk(1))), ENOSPC);
}

// Checksum and counts are right: only the place tells. With flex_bg it is another group's.
TEST(DamagedGroups, MetadataThatABitmapCallsFree) {
    for (const char* features : {"^flex_bg", "flex_bg"}) {
        SCOPED_TRACE(features);
        for (const uint32_t owner : {0, 3}) {
            MemoryDevice memory(make_atomic4(kSize, {"-b", "1024", "-O", features}));
            uint64_t table = 0;
            uint32_t group = 0;
            {
                const auto volume = open_volume(memory);
                table = ext2fs_inode_table_loc(volume->fs(), owner);
                group = group_of(*volume, Pblk(table));
                Transaction transaction(*volume);
                GroupBitmaps& bitmaps = volume->block_bitmaps();
                must(bitmaps.set(group, bitmaps.bit_of(table), 1, false));
                must(transaction.commit());
            }
            EXPECT_EQ(group == owner, owner == 0 || features[0] == '^');
            const auto volume = open_volume(memory);
            EXPECT_THAT(message_of(volume->block_bitmaps().get(group)),
                        HasSubstr("calls blocks of the volume's own metadata free"));
            Transaction transaction(*volume);
            EXPECT_NE(group_of(*volume, must(volume->allocator().allocate(0, Pblk(table))).start),
                      group);
        }
    }
}

// A damaged group without free blocks makes no difference: ENOSPC is proved.
TEST(DamagedGroups, AFullOneChangesNothing) {
    Image image = make_used_image();
    {
        MemoryDevice memory(image);
        const auto volume = open_volume(memory);
        fill_up(*volume, 0);
        image = memory.contents();
    }
    const uint64_t at = bitmap_offset(image, 1, Kind::Block);
    image[at + 100] ^= std::byte{1};
    MemoryDevice memory(image);
    const auto volume = open_volume(memory);
    Transaction transaction(*volume);
    EXPECT_EQ(code_of(volume->block_bitmaps().get(1)), EUCLEAN);
    EXPECT_EQ(code_of(volume->allocator().choose_block(Pblk(1))), ENOSPC);
    EXPECT_EQ(code_of(volume->allocator().allocate(0, Pblk(1))), ENOSPC);
}

// Fails reads of one range.
class BadRange final : public ForwardingDevice {
  public:
    BadRange(Device& below, uint64_t begin, uint64_t end)
        : ForwardingDevice(below), begin_(begin), end_(end) {}
    Result<> read(ByteOffset offset, std::span<std::byte> into) override {
        if (offset.value() < end_ && begin_ < offset.value() + into.size())
            return fail(EIO, "injected");
        return below_.read(offset, into);
    }

  private:
    uint64_t begin_;
    uint64_t end_;
};

TEST(DamagedGroups, AnIoErrorIsNoDamage) {
    const Image image = make_used_image();
    for (const Kind kind : {Kind::Block, Kind::Inode}) {
        MemoryDevice memory(image);
        const uint64_t at = bitmap_offset(image, 2, kind);
        BadRange bad(memory, at, at + 1024);
        const auto volume = open_volume(bad);
        Transaction transaction(*volume);
        if (kind == Kind::Block) {
            const Pblk goal(ext2fs_group_first_block2(volume->fs(), 2) + 4000);
            EXPECT_EQ(code_of(volume->allocator().allocate(0, goal)), EIO);
            EXPECT_EQ(code_of(volume->allocator().is_free(goal)), EIO);
            EXPECT_EQ(code_of(volume->allocator().free({goal, Blocks(1)})), EIO);
        } else {
            const ext2_ino_t parent = volume->fs()->super->s_inodes_per_group * 2 + 1;
            EXPECT_EQ(code_of(volume->inodes().allocate(parent, false)), EIO);
            EXPECT_EQ(code_of(volume->inodes().free(parent, false)), EIO);
        }
        EXPECT_FALSE(volume->block_bitmaps().is_damaged(2));
        EXPECT_FALSE(volume->inode_bitmaps().is_damaged(2));
    }
}

// Blocks of a damaged group stay in use when they are given back: e2fsck finds them.
TEST(DamagedGroups, NothingIsFreedThere) {
    Image image = make_used_image();
    ext2_ino_t inode = 0;
    {
        MemoryDevice memory(image);
        const auto volume = open_volume(memory);
        inode = must(create_atomic_file(*volume, "/file", {Bytes(12 << 20), Bytes(16384)}));
        image = memory.contents();
    }
    for (const uint32_t group : {0, 1}) damage(image, group, Kind::Block);
    MemoryDevice memory(image);
    const auto volume = open_volume(memory);
    const auto counts = [&] {
        return std::pair(ext2fs_bg_free_blocks_count(volume->fs(), 0),
                         ext2fs_bg_free_blocks_count(volume->fs(), 1));
    };
    const auto before = counts();
    {
        Transaction transaction(*volume);
        must(unlink_name(*volume, {EXT2_ROOT_INO, "file"}, inode));
        must(stage_delete(*volume, inode));
        must(transaction.commit(Transaction::Order::Freeing));
    }
    EXPECT_EQ(counts(), before);
    EXPECT_TRUE(volume->usable());
    EXPECT_EQ(repaired_complaints(memory.contents()), "");
}

std::vector<Pblk> tree_of(Volume& volume, ext2_ino_t inode) {
    return must(tree_blocks(volume, inode, must(read_file(volume, inode)).inode));
}

// A leaf that moves leaves its old block behind, in use, if that lies in a damaged group; and a
// tree block that is no longer needed likewise.
TEST(DamagedGroups, OldLeavesStayInUse) {
    Image image = make_used_image();
    ext2_ino_t inode = 0;
    Pblk leaf;
    {
        MemoryDevice memory(image);
        const auto volume = open_volume(memory);
        inode = create_plain_file(*volume, "/file");
        Transaction transaction(*volume);
        const Pblk goal(ext2fs_group_first_block2(volume->fs(), 3) + 4000);
        ext2_inode raw = must(read_file(*volume, inode)).inode;
        for (uint64_t i = 0; i < 8; ++i) {
            const PblkRun run = must(volume->allocator().allocate(0, goal + Blocks(16 * i)));
            must(set_mapping(*volume, inode, &raw, Lblk(2 * i), run, MapState::Written));
        }
        must(check_errcode(ext2fs_iblk_add_blocks(volume->fs(), &raw, 8), ""));
        must(check_errcode(ext2fs_inode_size_set(volume->fs(), &raw, 16 * 1024), ""));
        must(check_errcode(ext2fs_write_inode(volume->fs(), inode, &raw), ""));
        must(transaction.commit());
        leaf = tree_of(*volume, inode).at(0);
        image = memory.contents();
        EXPECT_EQ(fsck_complaints(image), "");
        const uint32_t group = group_of(*volume, leaf);
        damage(image, group, Kind::Block);
    }
    MemoryDevice memory(image);
    const auto volume = open_volume(memory);
    must(make_ready(*volume, must(read_file(*volume, inode)), ByteOffset(1024), Bytes(1024),
                    Bytes(1024)));
    EXPECT_TRUE(volume->usable());
    EXPECT_NE(tree_of(*volume, inode).at(0), leaf);
    EXPECT_EQ(repaired_complaints(memory.contents()), "");
}

TEST(DamagedGroups, Inodes) {
    Image image = make_used_image();
    ext2_ino_t there = 0;
    {
        MemoryDevice memory(image);
        const auto volume = open_volume(memory);
        there = create_plain_file(*volume, "/there");
        image = memory.contents();
    }
    damage(image, 0, Kind::Inode);
    {
        MemoryDevice memory(image);
        const auto volume = open_volume(memory);
        const ext2_ino_t other = create_plain_file(*volume, "/other");
        EXPECT_GT(other, volume->fs()->super->s_inodes_per_group);
        const uint32_t free = ext2fs_bg_free_inodes_count(volume->fs(), 0);
        Transaction transaction(*volume);
        must(unlink_name(*volume, {EXT2_ROOT_INO, "there"}, there));
        must(stage_delete(*volume, there));
        must(transaction.commit(Transaction::Order::Freeing));
        EXPECT_EQ(ext2fs_bg_free_inodes_count(volume->fs(), 0), free);
        EXPECT_EQ(repaired_complaints(memory.contents()), "");
    }
    for (const uint32_t group : {1, 2, 3}) damage(image, group, Kind::Inode);
    MemoryDevice memory(image);
    const auto volume = open_volume(memory);
    Transaction transaction(*volume);
    const auto none = volume->inodes().allocate(EXT2_ROOT_INO, false);
    EXPECT_EQ(code_of(none), EUCLEAN);
    EXPECT_THAT(message_of(none), HasSubstr("damaged groups 0, 1, 2, 3"));
    EXPECT_THAT(message_of(none), HasSubstr("inode bitmap has a bad checksum"));
}

// Files of every kind: extents, a tree, indirect blocks, xattr blocks, directories, symlinks.
Image make_busy_image(const std::vector<std::string>& arguments) {
    const TempDir dir;
    const std::string source = dir.file("source");
    std::ofstream(source) << std::string(300000, 'x');
    std::vector<std::string> commands{"mkdir /dir", "symlink /link " + std::string(200, 'y'),
                                      "write " + source + " /one", "write " + source + " /dir/two",
                                      "ea_set /one user.large " + std::string(500, 'z')};
    MemoryDevice memory(debugfs(make_ext4(kSize, arguments), commands));
    const auto volume = open_volume(memory);
    must(enable(*volume, {}));
    std::mt19937_64 random(3);
    const ext2_ino_t inode = create_plain_file(*volume, "/tree");
    for (uint64_t i = 0; i < 200; ++i) {
        must(make_ready(*volume, must(read_file(*volume, inode)), ByteOffset(8192 * i), Bytes(1024),
                        Bytes(1024)));
        must(finish_growth(*volume, must(read_file(*volume, inode)), ByteOffset(8192 * i),
                           Bytes(1024), Bytes(8192 * i + 1024)));
    }
    return memory.contents();
}

// Bitmaps of nothing but zeros come back exactly as they were.
TEST(BitmapRebuild, FindsEveryBlockThatIsInUse) {
    for (const std::vector<std::string>& arguments :
         {std::vector<std::string>{"-b", "1024", "-O", "^uninit_bg,metadata_csum", "-N", "256"},
          {"-b", "1024", "-O", "^flex_bg", "-N", "256"},
          {"-b", "1024", "-O", "meta_bg,^resize_inode", "-N", "256"},
          {"-b", "2048", "-N", "256"},
          {"-b", "4096", "-N", "256"}}) {
        SCOPED_TRACE(testing::PrintToString(arguments));
        Image image = make_busy_image(arguments);
        ASSERT_EQ(fsck_complaints(image), "");
        std::vector<uint32_t> groups;
        {
            MemoryDevice memory(image);
            const auto volume = open_volume(memory, OpenFor::Read);
            for (uint32_t g = 0; g < volume->fs()->group_desc_count; ++g) {
                if (!ext2fs_bg_flags_test(volume->fs(), g, EXT2_BG_BLOCK_UNINIT))
                    groups.push_back(g);
            }
        }
        for (const uint32_t group : groups) {
            const uint64_t at = bitmap_offset(image, group, Kind::Block);
            std::memset(image.data() + at, 0, 1024);
        }
        MemoryDevice memory(image);
        const auto volume = open_volume(memory);
        for (const uint32_t group : groups)
            EXPECT_EQ(code_of(volume->block_bitmaps().get(group)), EUCLEAN);
        EXPECT_EQ(must(rebuild_damaged_bitmaps(*volume)).size(), groups.size());
        EXPECT_TRUE(volume->block_bitmaps().damaged().empty());
        // What lies beyond the last block of a short group is padding.
        EXPECT_EQ(repaired_complaints(memory.contents()), "");
        const Fsck fsck = e2fsck(memory.contents(), {"-fn"});
        EXPECT_EQ(fsck.output.find("differences"), std::string::npos) << fsck.output;
        EXPECT_TRUE(must(rebuild_damaged_bitmaps(*volume)).empty());
    }
}

// What only the bitmap calls used stays used; and then the group serves again.
TEST(BitmapRebuild, NothingBecomesFree) {
    Image image = make_ext4(8 << 20, {"-b", "1024", "-N", "64"});  // one group
    const uint64_t at = bitmap_offset(image, 0, Kind::Block);
    image[at + 1000] |= std::byte{0x0f};
    MemoryDevice memory(image);
    const auto volume = open_volume(memory);
    {
        Transaction transaction(*volume);
        EXPECT_EQ(code_of(volume->allocator().allocate(0, Pblk(1))), EUCLEAN);
    }
    EXPECT_EQ(must(rebuild_damaged_bitmaps(*volume)).size(), 1u);
    EXPECT_FALSE(must(volume->allocator().is_free(Pblk(8001))));
    EXPECT_TRUE(must(volume->allocator().is_free(Pblk(8005))));
    create_plain_file(*volume, "/file");
    must(create_atomic_file(*volume, "/atomic", {Bytes(65536), Bytes(16384)}));
    EXPECT_EQ(repaired_complaints(memory.contents()), "");
}

// An inode that can't be read might own anything.
TEST(BitmapRebuild, ProvesOrRefuses) {
    Image sound = make_ext4(8 << 20, {"-b", "1024", "-N", "64"});
    ext2_ino_t inode = 0;
    uint64_t table = 0;
    {
        MemoryDevice memory(sound);
        const auto volume = open_volume(memory);
        inode = create_plain_file(*volume, "/file");
        table = ext2fs_inode_table_loc(volume->fs(), 0) * 1024;
        sound = memory.contents();
    }
    const uint64_t at = bitmap_offset(sound, 0, Kind::Block);
    sound[at + 1000] |= std::byte{0x0f};
    const auto refused = [](const Image& image, const std::string& words) {
        MemoryDevice memory(image);
        const auto volume = open_volume(memory);
        EXPECT_EQ(code_of(volume->block_bitmaps().get(0)), EUCLEAN);
        const auto rebuilt = rebuild_damaged_bitmaps(*volume);
        EXPECT_EQ(code_of(rebuilt), EUCLEAN);
        EXPECT_THAT(message_of(rebuilt), HasSubstr(words));
        EXPECT_TRUE(memory.contents() == image);
        EXPECT_TRUE(volume->block_bitmaps().is_damaged(0));
    };
    Image image = sound;
    image[table + (inode - 1) * 256 + 0x28] ^= std::byte{1};  // i_block
    refused(image, "e2fsck");
}

}  // namespace
}  // namespace atomic4::test
