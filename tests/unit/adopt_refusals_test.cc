// Files that are not adopted: what is no case for it, what is damaged, what has no room. Nothing
// changes.
#include <random>

#include "ext4/file_blocks.h"
#include "ext4/xattr.h"
#include "unit/adopt_fixture.h"
#include "writer/open_volume.h"

namespace atomic4::test {
namespace {

using testing::HasSubstr;

class AdoptRefusals : public AdoptTest {};

TEST_F(AdoptRefusals, RefusesWhatTakesNoAtomicWrites) {
    open(debugfs(make_dirty_atomic4(16 << 20, {"-b", "1024"}),
                 {"mkdir dir", "symlink link target", "mknod pipe p"}));
    const auto number_of = [&](const std::string& name) {
        ext2_ino_t found = 0;
        EXPECT_EQ(ext2fs_lookup(volume->fs(), EXT2_ROOT_INO, name.data(),
                                static_cast<int>(name.size()), nullptr, &found),
                  0);
        return found;
    };
    expect_refused(number_of("dir"), std::nullopt, EISDIR, "is a directory");
    expect_refused(EXT2_ROOT_INO, std::nullopt, EISDIR, "is a directory");
    expect_refused(number_of("link"), std::nullopt, EINVAL, "not a regular file");
    expect_refused(number_of("pipe"), std::nullopt, EINVAL, "not a regular file");
    expect_refused(volume->attr()->log_inode, std::nullopt, EPERM, "redo log");
    expect_refused(must(volume->lock_inode()), std::nullopt, EPERM, "lock file");
    expect_refused(volume->fs()->super->s_journal_inum, std::nullopt, EPERM, "the volume itself");
    expect_refused(EXT2_RESIZE_INO, std::nullopt, EPERM, "the volume itself");
    expect_refused(0, std::nullopt, ESTALE, "no such inode");
    expect_refused(1'000'000'000, std::nullopt, ESTALE, "no such inode");
    const ext2_ino_t unused = volume->fs()->super->s_inodes_count;
    expect_refused(unused, std::nullopt, ESTALE, "the file is gone");

    const ext2_ino_t number = craft("/f", 8 * block, 0, {{0, 8, 1}});
    struct Flag {
        uint32_t flag;
        int code;
        const char* words;
    };
    for (const auto& [flag, code, words] :
         {Flag{EXT2_IMMUTABLE_FL, EPERM, "immutable"}, Flag{EXT2_APPEND_FL, EPERM, "append-only"},
          Flag{EXT4_ENCRYPT_FL, EOPNOTSUPP, "encrypted"},
          Flag{EXT4_VERITY_FL, EOPNOTSUPP, "verity"}, Flag{EXT2_COMPR_FL, EOPNOTSUPP, "compressed"},
          Flag{EXT3_JOURNAL_DATA_FL, EIO, "data=journal"}}) {
        edit_inode(number, [&](ext2_inode& inode) { inode.i_flags |= flag; });
        expect_refused(number, Bytes(kUnit), code, words);
        edit_inode(number, [&](ext2_inode& inode) { inode.i_flags &= ~flag; });
    }
    for (const uint64_t unit : {uint64_t{0}, block / 2, uint64_t{3000}, kUnitMax * 2})
        expect_refused(number, Bytes(unit), EINVAL, "want a power of two");
    EXPECT_TRUE(must(adopt_file(*volume, number, std::nullopt)).changed);
}

TEST_F(AdoptRefusals, RefusesWhileRecordsAreLive) {
    open_default();
    const ext2_ino_t number = craft("/f", 8 * block, 0, {{0, 8, 1}});
    must(volume->write_needs_replay(true));
    expect_refused(number, std::nullopt, EBUSY, "recover first");
    must(volume->write_needs_replay(false));
    EXPECT_TRUE(must(adopt_file(*volume, number, std::nullopt)).changed);
}

TEST_F(AdoptRefusals, RefusesOnAPlainVolume) {
    MemoryDevice plain(make_ext4(8 << 20, {"-b", "1024"}));
    const auto opened = open_volume(plain);
    const ext2_ino_t number = create_plain_file(*opened, "/f");
    const auto done = adopt_file(*opened, number, std::nullopt);
    EXPECT_EQ(code_of(done), EINVAL);
    EXPECT_THAT(message_of(done), HasSubstr("atomic4ctl enable"));
}

TEST_F(AdoptRefusals, TooLongForItsUnit) {
    open_default("4096");
    // The last block that a file can have: a unit around it would end beyond.
    const ext2_ino_t number = craft("/f", 0, 0, {{0xfffffffe, 1, 1, MapState::Unwritten}});
    expect_refused(number, Bytes(kUnit), EFBIG, "blocks beyond number");
}

TEST_F(AdoptRefusals, NoSpaceChangesNothing) {
    open_default();
    const ext2_ino_t number = craft("/f", 64 * block, 0, {{0, 64, 3}});
    fill_up(*volume, 40);
    expect_refused(number, Bytes(kUnit), ENOSPC, "64 blocks wanted, 40 free");
    EXPECT_EQ(fsck_complaints(image()), "");
}

// Blocks enough, but every other one is in use.
TEST_F(AdoptRefusals, NoAlignedSpaceChangesNothing) {
    open_default();
    const ext2_ino_t number = craft("/f", 64 * block, 0, {{0, 64, 3}});
    fill_up(*volume, 0);
    {
        Transaction transaction(*volume);
        const ext2_ino_t filler = must(lookup(*volume, "/fill"));
        ext2_inode inode = state(filler).inode;
        uint64_t freed = 0;
        for (const Mapping& m : must(map_range(*volume, filler, inode, Lblk(0), Blocks(1 << 16)))) {
            for (uint64_t i = 0; m.state != MapState::Hole && i < m.length.value(); i += 2) {
                must(volume->allocator().free({m.pblk + Blocks(i), Blocks(1)}));
                ++freed;
            }
        }
        must(transaction.commit(Transaction::Order::Freeing));
        ASSERT_GT(freed, 1000u);
    }
    expect_refused(number, Bytes(kUnit), ENOSPC, "");
    expect_refused(number, Bytes(2 * block), ENOSPC, "");
}

// The units have room, but not the extent tree's blocks: that too is known before the first write.
TEST_F(AdoptRefusals, NoSpaceForTheTreeChangesNothing) {
    open_default();
    // Units apart from each other: five extents, which need a leaf.
    std::vector<Piece> pieces;
    for (uint64_t i = 0; i < 5; ++i) pieces.push_back({i * 32, 16, i * 16 + 1});
    const ext2_ino_t number = craft("/f", 160 * block, 0, pieces);
    const Image start = image();
    // As many whole units are left as move, and nothing else.
    fill_up(*volume, 0);
    for (uint64_t i = 0; i < 5; ++i) {
        Transaction transaction(*volume);
        const ext2_ino_t filler = must(lookup(*volume, "/fill"));
        const auto mapped =
            must(map_range(*volume, filler, state(filler).inode, Lblk(0), Blocks(1 << 16)));
        const Pblk first(round_up(mapped[0].pblk.value(), 16) + 16 * i);
        must(volume->allocator().free({first, Blocks(16)}));
        must(transaction.commit(Transaction::Order::Freeing));
    }
    ASSERT_EQ(free_blocks(), 80u);
    expect_refused(number, Bytes(kUnit), ENOSPC, "no free blocks for its extent tree");
}

TEST_F(AdoptRefusals, NoSpaceForWhatIsInTheInodeChangesNothing) {
    const TempDir dir;
    MemoryDevice memory(make_ext4(16 << 20, {"-b", "1024", "-I", "256", "-O", "inline_data"}));
    must(enable(*open_volume(memory), {}));
    store_image(filled(100, 0x5a), dir.file("bytes"));
    open(debugfs(memory.contents(), {"write " + dir.file("bytes") + " f"}));
    const ext2_ino_t number = must(lookup(*volume, "/f"));
    ASSERT_NE(state(number).inode.i_flags & EXT4_INLINE_DATA_FL, 0u);
    fill_up(*volume, 0);
    expect_refused(number, Bytes(kUnit), ENOSPC, "16 blocks wanted, 0 free");
}

// --- Damage
// ---------------------------------------------------------------------------------------

TEST_F(AdoptRefusals, RefusesBlocksThatAreNotTheFilesOwn) {
    open_default();
    const ext2_ino_t number = craft("/f", 16 * block, 0, {{0, 16, 3}});
    const FileState good = state(number);
    const auto mapped = must(map_range(*volume, number, good.inode, Lblk(0), Blocks(16)));
    const auto with_mapping = [&](Lblk lblk, Pblk pblk) {
        Transaction transaction(*volume);
        ext2_inode inode = state(number).inode;
        must(set_mapping(*volume, number, &inode, lblk, {pblk, Blocks(1)}, MapState::Written));
        must(transaction.commit());
    };
    with_mapping(Lblk(5), Pblk(ext2fs_inode_table_loc(volume->fs(), 0)));
    expect_refused(number, Bytes(kUnit), EUCLEAN, "at impossible block");
    with_mapping(Lblk(5), mapped[0].pblk);
    expect_refused(number, Bytes(kUnit), EUCLEAN, "claimed twice");
    with_mapping(Lblk(5), Pblk(volume->device().size().value() / block - 1));
    expect_refused(number, Bytes(kUnit), EUCLEAN, "free: the volume needs e2fsck");
    with_mapping(Lblk(5), mapped[0].pblk + Blocks(5));
    edit_inode(number, [](ext2_inode& inode) { inode.i_blocks = 4; });
    expect_refused(number, Bytes(kUnit), EUCLEAN, "more blocks than it counts");
    edit_inode(number, [&](ext2_inode& inode) { inode.i_blocks = good.inode.i_blocks; });
    adopt_and_judge(number, "/f", kUnit);
}

// What e2fsck would make right by another size; with this one blocks would be given up.
TEST_F(AdoptRefusals, RefusesSizesThatAreWrong) {
    open_default();
    const ext2_ino_t number = craft("/f", 16 * block, 0, {{0, 16, 3}});
    const auto with_size = [&](uint64_t size) {
        Transaction transaction(*volume);
        ext2_inode inode{};
        must(check_errcode_ok(ext2fs_read_inode(volume->fs(), number, &inode)));
        inode.i_size = static_cast<uint32_t>(size);
        inode.i_size_high = static_cast<uint32_t>(size >> 32);
        must(check_errcode_ok(ext2fs_write_inode(volume->fs(), number, &inode)));
        must(transaction.commit());
    };
    for (const uint64_t size : {~uint64_t{0}, ~uint64_t{0} >> 1, (uint64_t{1} << 32) * block}) {
        with_size(size);
        const Image before = image();
        const auto done = adopt_file(*volume, number, Bytes(kUnit));
        EXPECT_EQ(code_of(done), EUCLEAN) << size;
        EXPECT_THAT(message_of(done), HasSubstr("none that a file can have: run e2fsck"));
        EXPECT_TRUE(image() == before);
    }
    with_size(15 * block);
    expect_refused(number, Bytes(kUnit), EUCLEAN, "written blocks beyond its end");
    with_size(15 * block + 1);
    EXPECT_TRUE(must(adopt_file(*volume, number, Bytes(kUnit))).changed);
}

// A bitmap that can't be trusted doesn't say whose the blocks are, and could not take them back.
TEST_F(AdoptRefusals, RefusesBlocksUnderADamagedBitmap) {
    open_default();
    const ext2_ino_t number = craft("/f", 16 * block, 0, {{0, 16, 3}});
    const auto mapped = must(map_range(*volume, number, state(number).inode, Lblk(0), Blocks(16)));
    const dgrp_t group = ext2fs_group_of_blk2(volume->fs(), mapped[0].pblk.value());
    const uint64_t bitmap = ext2fs_block_bitmap_loc(volume->fs(), group);
    Image damaged = image();
    damaged[bitmap * block + 20] ^= std::byte{4};
    open(std::move(damaged));
    expect_refused(number, Bytes(kUnit), EUCLEAN, "bitmap");
}

TEST_F(AdoptRefusals, RefusesDamagedIndirectBlocks) {
    open_default();
    const ext2_ino_t number = craft("/f", 0, 0, {});
    const auto with_block = [&](int index, uint32_t value) {
        edit_inode(number, [&](ext2_inode& inode) {
            inode.i_flags &= ~EXT4_EXTENTS_FL;
            std::memset(inode.i_block, 0, sizeof inode.i_block);
            inode.i_block[index] = value;
        });
    };
    with_block(0, 0x7fffffff);
    expect_refused(number, std::nullopt, EUCLEAN, "beyond the volume");
    with_block(0, static_cast<uint32_t>(ext2fs_inode_table_loc(volume->fs(), 0)));
    expect_refused(number, std::nullopt, EUCLEAN, "the volume's own metadata");
    with_block(EXT2_IND_BLOCK, 0x7fffffff);
    expect_refused(number, std::nullopt, EUCLEAN, "e2fsck");
    // A block that leads to itself, three times over.
    Transaction transaction(*volume);
    const Pblk loop = must(volume->allocator().allocate(0, Pblk(0))).start;
    must(transaction.commit());
    std::vector<uint32_t> pointers(block / 4, static_cast<uint32_t>(loop.value()));
    must(volume->device().write(ByteOffset(loop.value() * block),
                                std::as_bytes(std::span(pointers))));
    with_block(EXT2_TIND_BLOCK, static_cast<uint32_t>(loop.value()));
    expect_refused(number, std::nullopt, EUCLEAN, "more blocks than the volume");
}

}  // namespace
}  // namespace atomic4::test
