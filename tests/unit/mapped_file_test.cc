// Files that are mapped in unusual ways: by deep trees, by indirect blocks, by damage.
#include <random>

#include "ext4/layout_plan.h"
#include "unit/layout_fixture.h"

namespace atomic4::test {
namespace {

using testing::HasSubstr;

class MappedFile : public LayoutTest {};

// --- Deep trees ----------------------------------------------------------------------------------

TEST_F(MappedFile, DeepTrees) {
    open(make_dirty_atomic4(24 << 20, {"-b", "1024"}));
    const auto number = must(create_atomic_file(*volume, "/f", {Bytes(0), Bytes(1024)}));
    constexpr uint64_t kBlocks = 6000;
    {
        // Every other block, each far from its neighbour: some 3000 extents, two levels of index.
        Transaction transaction(*volume);
        ext2_inode inode = state(number).inode;
        const auto runs = must(volume->allocator().allocate_units(0, kBlocks, Pblk(0)));
        std::vector<uint64_t> blocks;
        for (const PblkRun& run : runs) {
            for (uint64_t i = 0; i < run.length.value(); ++i)
                blocks.push_back(run.start.value() + i);
        }
        for (uint64_t i = 0; i < kBlocks; ++i) {
            if (i % 2 == 1) must(volume->allocator().free({Pblk(blocks[i]), Blocks(1)}));
        }
        uint64_t mapped = 0;
        for (uint64_t i = 0; i < kBlocks; i += 2) {
            const PblkRun run{Pblk(blocks[kBlocks - 2 - i]), Blocks(1)};
            must(volume->device().write(ByteOffset(run.start.value() * block),
                                        filled(block, static_cast<unsigned>(i))));
            must(set_mapping(*volume, number, &inode, Lblk(i), run, MapState::Written));
            ++mapped;
        }
        ext2fs_iblk_add_blocks(volume->fs(), &inode, mapped);
        ext2fs_inode_size_set(volume->fs(), &inode, static_cast<ext2_off64_t>(kBlocks * block));
        ext2fs_write_inode(volume->fs(), number, &inode);
        must(transaction.commit());
    }
    EXPECT_GT(must(tree_blocks(*volume, number, state(number).inode)).size(), 35u);
    EXPECT_EQ(fsck_complaints(image()), "");
    const auto mappings =
        must(map_range(*volume, number, state(number).inode, Lblk(0), Blocks(kBlocks)));
    ASSERT_EQ(mappings.size(), kBlocks);
    uint64_t at = 0;
    for (const Mapping& mapping : mappings) {
        ASSERT_EQ(mapping.lblk.value(), at);
        ASSERT_EQ(mapping.length.value(), 1u);
        ASSERT_EQ(mapping.state, at % 2 == 0 ? MapState::Written : MapState::Hole);
        ++at;
    }
    Image model = content(number);
    // Any part of it is the same as that part of the whole.
    std::mt19937_64 random(1);
    for (int i = 0; i < 300; ++i) {
        const uint64_t first = random() % kBlocks;
        const uint64_t count = 1 + random() % (random() % 2 == 0 ? 5 : 700);
        const auto part =
            must(map_range(*volume, number, state(number).inode, Lblk(first), Blocks(count)));
        for (const Mapping& mapping : part) {
            if (mapping.lblk.value() >= kBlocks) continue;
            ASSERT_EQ(mapping.state,
                      mapping.lblk.value() % 2 == 0 ? MapState::Written : MapState::Hole);
            if (mapping.state == MapState::Written) {
                ASSERT_EQ(mapping, mappings[mapping.lblk.value()]);
            }
        }
        ASSERT_EQ(part.front().lblk, Lblk(first));
        ASSERT_EQ(part.back().end(), Lblk(first + count));
    }
    // As far as behind its end.
    for (uint64_t first = 1; first < kBlocks; first += first < kBlocks - 200 ? 97 : 3) {
        const auto part =
            must(map_range(*volume, number, state(number).inode, Lblk(first), Blocks(2 * kBlocks)));
        ASSERT_EQ(part.size(), kBlocks - first + (kBlocks % 2 == 0 ? 0 : 1)) << first;
        ASSERT_EQ(part.back().state, MapState::Hole);
        ASSERT_EQ(part.back().end(), Lblk(first + 2 * kBlocks));
    }
    // Holes filled at random places, in one go each.
    for (int i = 0; i < 40; ++i) {
        const uint64_t offset = random() % (kBlocks * block - 70'000);
        const auto data = random_bytes(1 + random() % 65536, random);
        const auto done = put(number, offset, data, block);
        ASSERT_TRUE(done) << message_of(done);
        std::copy(data.begin(), data.end(), model.begin() + static_cast<std::ptrdiff_t>(offset));
    }
    EXPECT_TRUE(content(number) == model);
    EXPECT_TRUE(dump_file(image(), "/f") == model);
    EXPECT_EQ(must(check_layout(*volume, state(number), Bytes(1024))).problems, 0u);
    EXPECT_EQ(fsck_complaints(image()), "");
    const uint64_t free = free_blocks();
    ext2_inode inode = state(number).inode;
    const uint64_t all_blocks = ext2fs_inode_i_blocks(volume->fs(), &inode) / 2;
    {
        // Deleting gives all of it back.
        Transaction transaction(*volume);
        must(unlink_name(*volume, {EXT2_ROOT_INO, "f"}, number));
        must(stage_delete(*volume, number));
        must(transaction.commit(Transaction::Order::Freeing));
    }
    EXPECT_EQ(free_blocks() - free, all_blocks);
    EXPECT_EQ(fsck_complaints(image()), "");
}

// Inode tables far from their groups: the inode above a changed node is found all the same.
TEST_F(MappedFile, TablesInOtherFlexGroups) {
    open(make_dirty_atomic4(48 << 20, {"-b", "1024", "-g", "1024", "-G", "4", "-N", "1536", "-E",
                                       "packed_meta_blocks=1"}));
    ext2_filsys fs = volume->fs();
    const uint32_t per_group = fs->super->s_inodes_per_group;
    ext2_ino_t number = 0;
    for (int i = 0; number <= 8 * per_group; ++i)
        number = must(create_atomic_file(*volume, fmt::format("/f{}", i), {Bytes(0), Bytes(1024)}));
    const dgrp_t group = (number - 1) / per_group;
    ASSERT_GE(group, 8u);
    ASSERT_LT(ext2fs_group_of_blk2(fs, ext2fs_inode_table_loc(fs, group)), group / 4 * 4)
        << "mke2fs has put the table near its group";

    // More extents than the inode has room for; from then on each write changes a leaf.
    std::mt19937_64 random(6);
    Image model;
    for (uint64_t i = 0; i < 40; ++i) {
        const auto data = random_bytes(block, random);
        const auto done = put(number, 2 * i * block, data, block);
        ASSERT_TRUE(done) << message_of(done);
        model.resize(2 * i * block);
        model.insert(model.end(), data.begin(), data.end());
    }
    EXPECT_GT(must(tree_blocks(*volume, number, state(number).inode)).size(), 0u);
    EXPECT_TRUE(content(number) == model);
    EXPECT_EQ(fsck_complaints(image()), "");
}

// --- Indirect files ------------------------------------------------------------------------------

TEST_F(MappedFile, IndirectFiles) {
    const TempDir dir;
    const std::string source = dir.file("source");
    std::mt19937_64 random(4);
    Image model(700 * 1024);
    {
        // Data at 0, at 300 KiB (double indirect on 1 KiB blocks) and at the end; holes between.
        Image sparse(0);
        for (const uint64_t at : {0u, 300u * 1024, 690u * 1024}) {
            const auto data = random_bytes(10 * 1024, random);
            std::copy(data.begin(), data.end(), model.begin() + at);
        }
        store_image(model, source);
        const CommandOutput dug = run_command({"fallocate", "--dig-holes", source});
        ASSERT_EQ(dug.status, 0) << dug.output;
    }
    Image contents = make_ext4(8 << 20, {"-b", "1024", "-O", "^extents,^64bit"});
    contents = debugfs(with_dirty_free_blocks([&] {
                           // Only the bit: files made before stay as they are.
                           edit_super(contents, [](auto& s) {
                               s.s_feature_incompat |= EXT3_FEATURE_INCOMPAT_EXTENTS;
                           });
                           return contents;
                       }()),
                       {"feature -extents", "write " + source + " /old", "sif /old generation 77",
                        "feature extents"});
    {
        MemoryDevice plain(contents);
        const auto before = open_volume(plain);
        must(enable(*before, {}));
        contents = plain.contents();
    }
    open(contents);
    const auto number = must(lookup(*volume, "/old"));
    ASSERT_FALSE(state(number).extent_mapped());
    EXPECT_TRUE(content(number) == model);
    EXPECT_EQ(fsck_complaints(image()), "");
    // All of it at once, up to where the last hole could end, and block by block.
    std::vector<Mapping> blocks;
    for (uint64_t i = 0; i < 700; ++i) {
        const auto one = must(map_range(*volume, number, state(number).inode, Lblk(i), Blocks(1)));
        blocks.insert(blocks.end(), one.begin(), one.end());
    }
    const auto whole =
        must(map_range(*volume, number, state(number).inode, Lblk(0), Blocks(uint64_t{1} << 32)));
    EXPECT_EQ(joined(whole), joined(blocks));
    EXPECT_EQ(whole.back().end(), Lblk(uint64_t{1} << 32));
    const auto part =
        must(map_range(*volume, number, state(number).inode, Lblk(305), Blocks(5000)));
    EXPECT_EQ(part.front().lblk, Lblk(305));
    EXPECT_EQ(part.back().end(), Lblk(5305));
    // Mapped ranges take writes; holes don't.
    const auto data = filled(4096, 0x66);
    must(put(number, 300 * 1024 + 512, data, block));
    std::copy(data.begin(), data.end(), model.begin() + 300 * 1024 + 512);
    EXPECT_TRUE(content(number) == model);
    const Image before = image();
    const auto refused = put(number, 100 * 1024, data, block);
    EXPECT_EQ(code_of(refused), EOPNOTSUPP);
    EXPECT_THAT(message_of(refused), HasSubstr("not extent-mapped"));
    EXPECT_EQ(code_of(put(number, 700 * 1024, data, block)), EOPNOTSUPP);
    EXPECT_EQ(code_of(put(number, uint64_t{1} << 38, data, block)), EFBIG);
    EXPECT_TRUE(image() == before);
    EXPECT_EQ(must(range_shape(*volume, state(number), ByteOffset(0), Bytes(8192))).holes, false);
    EXPECT_GT(must(check_layout(*volume, state(number), Bytes(4096))).units_mapped, 0u);
    EXPECT_TRUE(dump_file(image(), "/old") == model);
    EXPECT_EQ(fsck_complaints(image()), "");
}

// --- Damage --------------------------------------------------------------------------------------

// Extents that can't be: never followed.
TEST_F(MappedFile, ImpossibleExtentsAreDamage) {
    open_default("1024");
    const auto number = must(create_atomic_file(*volume, "/f", {Bytes(65536), Bytes(16384)}));
    struct Row {
        const char* what;
        size_t at;  // in i_block: a header of 12 bytes, then {u32 lblk, u16 len, u16 hi, u32 lo}
        uint32_t value;
    };
    for (const Row& row : {Row{"beyond the volume", 5, 0x00ffffff}, Row{"block 0", 5, 0}}) {
        SCOPED_TRACE(row.what);
        FileState file = state(number);
        file.inode.i_block[row.at] = row.value;
        const auto mapped = map_range(*volume, number, file.inode, Lblk(0), Blocks(64));
        EXPECT_EQ(code_of(mapped), EUCLEAN) << message_of(mapped);
        EXPECT_THAT(message_of(mapped), HasSubstr("e2fsck"));
    }
    // Random damage in the tree's root: any error, no crash.
    std::mt19937_64 random(8);
    for (int round = 0; round < 2000; ++round) {
        FileState file = state(number);
        auto* bytes = reinterpret_cast<uint8_t*>(file.inode.i_block);
        for (uint64_t n = random() % 4 + 1; n > 0; --n)
            bytes[random() % 40] ^= static_cast<uint8_t>(1u << (random() % 8));
        (void)map_range(*volume, number, file.inode, Lblk(0), Blocks(64));
        (void)tree_blocks(*volume, number, file.inode);
        (void)check_layout(*volume, file, Bytes(16384));
    }
}

}  // namespace
}  // namespace atomic4::test
