// Which blocks the inodes of a volume claim: every kind of mapping, damaged ones too, and bitmaps
// that are proved by it.
#include "ext4/block_claims.h"

#include <map>

#include "ext4/bitmap_rebuild.h"
#include "ext4/errcode.h"
#include "unit/volume_fixture.h"

namespace atomic4::test {
namespace {

std::map<ext2_ino_t, std::vector<BlockClaim>> all_claims(
    Volume& volume, std::set<ext2_ino_t>* unreadable = nullptr) {
    std::map<ext2_ino_t, std::vector<BlockClaim>> claims;
    must(for_each_claiming_inode(volume, [&](const ClaimingInode& inode) {
        claims[inode.number] = inode.claims;
        if (!inode.readable && unreadable != nullptr) unreadable->insert(inode.number);
    }));
    return claims;
}

// Every block that a bitmap calls used, and that isn't fixed metadata, is some inode's: and the
// other way round.
void expect_complete(Image image) {
    MemoryDevice device(std::move(image));
    const auto volume = open_volume(device, OpenFor::Read);
    std::set<uint64_t> claimed;
    for (const auto& [inode, claims] : all_claims(*volume)) {
        for (const BlockClaim& claim : claims) {
            for (uint64_t i = 0; i < claim.run.length.value(); ++i)
                claimed.insert(claim.run.start.value() + i);
        }
    }
    ext2_filsys fs = volume->fs();
    for (uint64_t block = fs->super->s_first_data_block; block < ext2fs_blocks_count(fs->super);
         ++block) {
        const dgrp_t group = ext2fs_group_of_blk2(fs, block);
        const auto bits = must(volume->block_bitmaps().get(group));
        const uint32_t bit = volume->block_bitmaps().bit_of(block);
        const bool used = ((*bits)[bit / 8] >> (bit % 8) & 1) != 0;
        const bool owned = claimed.contains(block) || volume->fixed_blocks().overlap(block, 1);
        ASSERT_EQ(used, owned) << "block " << block;
    }
}

TEST(BlockClaims, EveryBlockHasItsOwner) {
    const std::vector<std::string> files{"write /etc/services a", "mkdir d",
                                         "write /etc/services d/b", "symlink d/s a"};
    for (const std::vector<std::string>& options : {std::vector<std::string>{"-b", "1024"},
                                                    {"-b", "4096"},
                                                    {"-b", "1024", "-O", "^resize_inode"},
                                                    {"-b", "1024", "-O", "^flex_bg"}}) {
        SCOPED_TRACE(testing::PrintToString(options));
        expect_complete(debugfs(make_ext4(32 << 20, options), files));
    }
}

TEST(BlockClaims, OfATreeWithNodesBothAreFound) {
    MemoryDevice device(make_atomic4(32 << 20, {"-b", "1024"}));
    const auto volume = open_volume(device);
    // Every second unit: an extent each.
    const auto number = must(create_atomic_file(*volume, "/holes", {Bytes(0), Bytes(4096)}));
    for (uint64_t i = 0; i < 40; ++i) {
        const FileState file = must(read_file(*volume, number));
        must(make_ready(*volume, file, ByteOffset(i * 8192), Bytes(4096), Bytes(4096)));
    }
    size_t data = 0;
    size_t nodes = 0;
    const auto claims = all_claims(*volume).at(number);
    for (const BlockClaim& claim : claims) {
        data += claim.kind == BlockClaim::Kind::Data ? claim.run.length.value() : 0;
        nodes += claim.kind == BlockClaim::Kind::Node ? 1 : 0;
    }
    EXPECT_EQ(data, 160u);
    EXPECT_EQ(nodes,
              must(tree_blocks(*volume, number, must(read_file(*volume, number)).inode)).size());
    EXPECT_GT(nodes, 0u);
}

// With a wrong checksum, and with a header that is none.
TEST(BlockClaims, DamageIsNoObstacle) {
    const Image sound = debugfs(make_ext4(16 << 20, {"-b", "1024"}), {"write /etc/services a"});
    MemoryDevice device(sound);
    ext2_ino_t number = 0;
    std::vector<BlockClaim> before;
    uint64_t at = 0;
    {
        const auto volume = open_volume(device, OpenFor::Read);
        number = must(lookup(*volume, "/a"));
        before = all_claims(*volume).at(number);
        at = ext2fs_inode_table_loc(volume->fs(), 0) * 1024 +
             (number - 1) * EXT2_INODE_SIZE(volume->fs()->super);
    }
    ASSERT_FALSE(before.empty());
    Image image = sound;
    image[at + offsetof(ext2_inode, i_atime)] ^= std::byte{1};
    MemoryDevice wrong_checksum(image);
    {
        const auto volume = open_volume(wrong_checksum, OpenFor::Read);
        const auto now = all_claims(*volume).at(number);
        ASSERT_EQ(now.size(), before.size());
        EXPECT_EQ(now.front().run, before.front().run);
    }
    image[at + offsetof(ext2_inode, i_block)] ^= std::byte{1};  // the header's magic
    MemoryDevice no_header(image);
    const auto volume = open_volume(no_header, OpenFor::Read);
    std::set<ext2_ino_t> unreadable;
    EXPECT_TRUE(all_claims(*volume, &unreadable).at(number).empty());
    EXPECT_EQ(unreadable, std::set<ext2_ino_t>{number});
}

std::set<ext2_ino_t> that_may_share(Volume& volume) {
    InodeClaims claims(volume);
    std::set<ext2_ino_t> first;
    must(claims.for_each([&](const ClaimingInode& inode) { first.insert(inode.number); }));
    std::set<ext2_ino_t> second;
    must(claims.for_each_that_may_share(
        [&](const ClaimingInode& inode) { second.insert(inode.number); }));
    EXPECT_TRUE(std::ranges::includes(first, second));
    return second == first ? std::set<ext2_ino_t>{} : second;  // empty: all
}

TEST(InodeClaims, TwoLooksOnlyWhereSomethingIsClaimedTwice) {
    const std::string long_value(400, 'x');
    const Image base = debugfs(make_atomic4(16 << 20, {"-b", "1024"}),
                               {"write /etc/services a", "write /etc/services b", "mkdir d",
                                "ea_set a user.long " + long_value});
    ext2_ino_t atomic = 0;
    std::string block_of_a;
    std::string xattrs_of_a;
    Image sound;
    {
        MemoryDevice device(base);
        {
            const auto volume = open_volume(device);
            atomic = must(create_atomic_file(*volume, "/atomic", {Bytes(32768), Bytes(16384)}));
            const auto claims = all_claims(*volume).at(must(lookup(*volume, "/a")));
            block_of_a = std::to_string(claims.front().run.start.value());
            ASSERT_EQ(claims.back().kind, BlockClaim::Kind::Xattrs);
            xattrs_of_a = std::to_string(claims.back().run.start.value());
            const auto marked = that_may_share(*volume);
            EXPECT_TRUE(marked.contains(atomic));
            EXPECT_FALSE(marked.contains(must(lookup(*volume, "/a"))));
        }
        sound = device.contents();
    }
    const auto all_are_looked_at = [&](const std::string& damage) {
        MemoryDevice device(debugfs(sound, {damage}));
        return that_may_share(*open_volume(device, OpenFor::Read)).empty();
    };
    // Inodes may have one block of xattrs together.
    EXPECT_FALSE(all_are_looked_at("sif b file_acl " + xattrs_of_a));
    EXPECT_TRUE(all_are_looked_at("sif b block[5] " + block_of_a));
    EXPECT_TRUE(all_are_looked_at("sif b block[5] " + xattrs_of_a));
    EXPECT_TRUE(all_are_looked_at("sif b file_acl " + block_of_a));
    EXPECT_TRUE(all_are_looked_at("sif b block[5] 16380"));  // over the volume's end
    EXPECT_TRUE(all_are_looked_at("sif b block[5] 99999"));
}

// Extents of one file that share a cluster, as after a write into the middle of one.
TEST(InodeClaims, AClusterOfOneFileIsClaimedOnce) {
    MemoryDevice device(make_atomic4(64 << 20, {"-b", "1024", "-O", "bigalloc", "-C", "16384"}));
    const auto volume = open_volume(device);
    const auto number = must(create_atomic_file(*volume, "/atomic", {Bytes(8192), Bytes(16384)}));
    const auto claims = all_claims(*volume).at(number);
    ASSERT_GT(claims.size(), 1u);  // written and unwritten
    EXPECT_FALSE(that_may_share(*volume).empty());
}

TEST(ProveBitmaps, NothingThatAnInodeClaimsIsFreeAfterwards) {
    const Image sound = debugfs(make_ext4(32 << 20, {"-b", "1024", "-O", "^uninit_bg"}),
                                {"write /etc/services a", "write /etc/services b"});
    Image image = sound;
    std::vector<uint64_t> freed;
    {
        MemoryDevice device(sound);
        const auto volume = open_volume(device, OpenFor::Read);
        const auto claims = all_claims(*volume).at(must(lookup(*volume, "/b")));
        freed.push_back(claims.front().run.start.value());
        ext2_filsys fs = volume->fs();
        const dgrp_t group = ext2fs_group_of_blk2(fs, freed.front());
        const uint64_t bit = freed.front() - ext2fs_group_first_block2(fs, group);
        image[ext2fs_block_bitmap_loc(fs, group) * 1024 + bit / 8] &=
            ~std::byte{static_cast<unsigned char>(1u << (bit % 8))};
    }
    MemoryDevice device(image);
    {
        VolumeOptions options;
        options.purpose = OpenFor::Write;
        options.require_atomic4 = false;
        options.damaged_too = true;
        const auto volume = must(Volume::open(borrowed(device), options));
        EXPECT_FALSE(
            volume->block_bitmaps().get(ext2fs_group_of_blk2(volume->fs(), freed.front())));
        must(prove_all_bitmaps(*volume));
        EXPECT_FALSE(must(volume->allocator().is_free(Pblk(freed.front()))));
        EXPECT_TRUE(volume->block_bitmaps().damaged().empty());
        // It is the group's bitmap again: what comes next may use it.
        Transaction transaction(*volume);
        EXPECT_NE(must(volume->allocator().allocate(0, Pblk(freed.front()))).start,
                  Pblk(freed.front()));
    }
    EXPECT_EQ(fsck_complaints(device.contents()), "");
}

}  // namespace
}  // namespace atomic4::test
