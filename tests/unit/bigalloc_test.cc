// bigalloc: blocks are allocated in clusters. What the matrix (layout_matrix_test.cc) doesn't meet:
// clusters that a file uses in part, as the kernel leaves them, directories, and units of each size
// against a cluster's.
#include "unit/volume_fixture.h"
#include "writer/atomic_writer.h"

namespace atomic4::test {
namespace {

constexpr uint64_t kBlock = 1024;
constexpr uint64_t kCluster = 16 * kBlock;
constexpr uint64_t kSize = uint64_t{24} << 20;

Image bigalloc() {
    return make_dirty_atomic4(
        kSize, {"-b", "1024", "-O", "bigalloc", "-C", "16384", "-g", "256", "-N", "1024"});
}

// A file of which these blocks of its first logical clusters are mapped and written: as if the
// kernel had punched the others.
ext2_ino_t make_partial(Volume& volume, const std::string& path,
                        const std::vector<std::pair<uint64_t, uint64_t>>& parts, Bytes size,
                        Bytes unit = Bytes(kBlock), bool atomic = false) {
    Transaction transaction(volume);
    const NewName where = must(lookup_new(volume, path));
    NewFile file;
    file.unit = unit;
    const StagedFile staged = must(stage_file(volume, where.directory, file, atomic));
    must(link_name(volume, where, staged.number, EXT2_FT_REG_FILE));
    ext2_inode inode{};
    EXPECT_EQ(ext2fs_read_inode(volume.fs(), staged.number, &inode), 0);
    std::map<uint64_t, Pblk> clusters;
    for (const auto& [lblk, count] : parts) {
        const uint64_t cluster = lblk / 16;
        if (!clusters.contains(cluster)) {
            clusters[cluster] = must(volume.allocator().allocate(0, Pblk(0))).start;
            EXPECT_EQ(ext2fs_iblk_add_blocks(volume.fs(), &inode, 1), 0);
        }
        const Pblk pblk = clusters[cluster] + Blocks(lblk % 16);
        must(set_mapping(volume, staged.number, &inode, Lblk(lblk), {pblk, Blocks(count)},
                         MapState::Written));
        must(
            volume.device().write(ByteOffset(pblk.value() * kBlock), filled(count * kBlock, 0x11)));
    }
    EXPECT_EQ(ext2fs_inode_size_set(volume.fs(), &inode, static_cast<ext2_off64_t>(size.value())),
              0);
    EXPECT_EQ(ext2fs_write_inode(volume.fs(), staged.number, &inode), 0);
    must(transaction.commit());
    return staged.number;
}

std::unique_ptr<AtomicWriter> writer_on(Device& device) {
    return must(AtomicWriter::open(must(open_for_writing(borrowed(device)))));
}

void put(AtomicWriter& writer, ext2_ino_t inode, uint64_t lblk, uint64_t blocks, Image& model) {
    const auto data = filled(blocks * kBlock, 0x22 + static_cast<unsigned>(lblk));
    const auto done =
        writer.write({inode, must(writer.file(inode)).generation, ByteOffset(lblk * kBlock), data},
                     Engine::Logged);
    ASSERT_EQ(message_of(done), "");
    if (model.size() < (lblk + blocks) * kBlock) model.resize((lblk + blocks) * kBlock);
    std::memcpy(model.data() + lblk * kBlock, data.data(), data.size());
}

TEST(Bigalloc, ClustersInPartialUseAreFilledWithoutAllocating) {
    MemoryDevice memory(bigalloc());
    const std::vector<std::pair<uint64_t, uint64_t>> parts{
        {3, 2}, {10, 1}, {12, 2}, {20, 1}, {31, 1}};
    ext2_ino_t inode = 0;
    uint64_t free = 0;
    Image model(48 * kBlock);
    {
        const auto volume = open_volume(memory);
        inode = make_partial(*volume, "/file", parts, Bytes(model.size()));
        free = ext2fs_free_blocks_count(volume->fs()->super);
    }
    for (const auto& [lblk, count] : parts)
        std::memset(model.data() + lblk * kBlock, 0x11, count * kBlock);
    ASSERT_EQ(fsck_complaints(memory.contents()), "");
    const auto writer = writer_on(memory);
    const auto now_free = [&] { return ext2fs_free_blocks_count(writer->volume().fs()->super); };
    // Before, between and after what is mapped; a range over a border of two clusters.
    put(*writer, inode, 0, 2, model);
    put(*writer, inode, 4, 4, model);
    put(*writer, inode, 11, 1, model);
    put(*writer, inode, 14, 2, model);
    put(*writer, inode, 16, 1, model);
    EXPECT_EQ(now_free(), free);
    // The third cluster is a hole: allocated once, for all blocks that follow in it.
    put(*writer, inode, 40, 4, model);
    EXPECT_EQ(now_free(), free - 16);
    put(*writer, inode, 36, 4, model);
    EXPECT_EQ(now_free(), free - 16);
    Image stored(model.size());
    must(writer->read(inode, ByteOffset(0), stored));
    EXPECT_TRUE(stored == model);
    must(writer->close());
    EXPECT_EQ(fsck_complaints(memory.contents()), "");
}

// Units smaller than a cluster of which another unit is in use: aligned by the cluster's own place.
TEST(Bigalloc, UnitsOfAClusterInPartialUse) {
    MemoryDevice memory(bigalloc());
    ext2_ino_t inode = 0;
    {
        const auto volume = open_volume(memory);
        inode =
            make_partial(*volume, "/file", {{4, 4}}, Bytes(16 * kBlock), Bytes(4 * kBlock), true);
    }
    const auto writer = writer_on(memory);
    const uint64_t free = ext2fs_free_blocks_count(writer->volume().fs()->super);
    Image model(16 * kBlock);
    std::memset(model.data() + 4 * kBlock, 0x11, 4 * kBlock);
    put(*writer, inode, 12, 4, model);
    put(*writer, inode, 1, 1, model);
    EXPECT_EQ(ext2fs_free_blocks_count(writer->volume().fs()->super), free);
    Image stored(model.size());
    must(writer->read(inode, ByteOffset(0), stored));
    EXPECT_TRUE(stored == model);
    const LayoutReport layout =
        must(check_layout(writer->volume(), must(writer->file(inode)), Bytes(4 * kBlock)));
    EXPECT_EQ(layout.problems, 0u);
    EXPECT_EQ(layout.units_mapped, 3u);
    EXPECT_EQ(layout.units_hole, 1u);
    must(writer->close());
    EXPECT_EQ(fsck_complaints(memory.contents()), "");
}

TEST(Bigalloc, AClusterGoesOnceAndWhole) {
    MemoryDevice memory(bigalloc());
    const auto volume = open_volume(memory);
    // Whoever removes must give back: the name's directory has room already.
    const uint64_t free = ext2fs_free_blocks_count(volume->fs()->super);
    const ext2_ino_t inode =
        make_partial(*volume, "/file", {{3, 2}, {10, 1}, {16, 16}, {47, 1}}, Bytes(48 * kBlock));
    EXPECT_EQ(ext2fs_free_blocks_count(volume->fs()->super), free - 48);
    {
        Transaction transaction(*volume);
        must(unlink_name(
            *volume, must([&]() -> Result<NewName> { return NewName{EXT2_ROOT_INO, "file"}; }()),
            inode));
        must(stage_delete(*volume, inode));
        must(transaction.commit(Transaction::Order::Freeing));
    }
    EXPECT_EQ(ext2fs_free_blocks_count(volume->fs()->super), free);
    EXPECT_EQ(fsck_complaints(memory.contents()), "");
}

// A mapping that no ext4 makes is not added to.
TEST(Bigalloc, BlocksOutOfTheirPlaceAreDamage) {
    MemoryDevice memory(bigalloc());
    ext2_ino_t inode = 0;
    {
        const auto volume = open_volume(memory);
        inode = make_partial(*volume, "/file", {{0, 1}}, Bytes(16 * kBlock));
        Transaction transaction(*volume);
        ext2_inode raw{};
        ASSERT_EQ(ext2fs_read_inode(volume->fs(), inode, &raw), 0);
        const auto mapped = must(map_range(*volume, inode, raw, Lblk(0), Blocks(1)));
        must(set_mapping(*volume, inode, &raw, Lblk(0), {mapped[0].pblk + Blocks(1), Blocks(1)},
                         MapState::Written));
        must(transaction.commit());
    }
    const Image before = memory.contents();
    const auto writer = writer_on(memory);
    const auto data = filled(kBlock, 1);
    const auto done =
        writer->write({inode, must(writer->file(inode)).generation, ByteOffset(2 * kBlock), data},
                      Engine::Logged);
    EXPECT_EQ(code_of(done), EUCLEAN);
    EXPECT_THAT(message_of(done), testing::HasSubstr("does not lie in its cluster"));
}

// Linear, then hashed, growing inside clusters and by new ones.
TEST(Bigalloc, DirectoriesGrow) {
    MemoryDevice memory(bigalloc());
    std::vector<std::string> paths;
    {
        const auto volume = open_volume(memory);
        {
            Transaction transaction(*volume);
            must(stage_directory(*volume, EXT2_ROOT_INO, "directory", 0755));
            must(transaction.commit());
        }
        for (int i = 0; i < 400; ++i) {
            paths.push_back(fmt::format("/directory/{:0>60}", i));
            must(create_atomic_file(*volume, paths.back(), {Bytes(0), Bytes(kBlock)}));
            if (i % 50 == 0) {
                EXPECT_EQ(fsck_complaints(memory.contents()), "") << i;
            }
        }
    }
    EXPECT_EQ(fsck_complaints(memory.contents()), "");
    // As e2fsck -D leaves it: with a hash tree, which then grows.
    Image hashed;
    const Fsck fsck = e2fsck(memory.contents(), {"-fyD"}, &hashed);
    ASSERT_LE(fsck.status, 1) << fsck.output;
    MemoryDevice again(hashed);
    const auto volume = open_volume(again);
    ext2_inode raw{};
    ASSERT_EQ(ext2fs_read_inode(volume->fs(), must(lookup(*volume, "/directory")), &raw), 0);
    EXPECT_NE(raw.i_flags & EXT2_INDEX_FL, 0u);
    for (int i = 0; i < 400; ++i) {
        paths.push_back(fmt::format("/directory/more{:0>60}", i));
        must(create_atomic_file(*volume, paths.back(), {Bytes(0), Bytes(kBlock)}));
    }
    for (const std::string& path : paths) EXPECT_TRUE(lookup(*volume, path)) << path;
    EXPECT_EQ(fsck_complaints(again.contents()), "");
}

// A new block of a directory in a cluster that it had is written before the inode points at it.
TEST(Bigalloc, GrownDirectoryIsCompleteBeforeItsInode) {
    MemoryDevice memory(bigalloc());
    RecordingDevice recorder(memory);
    const auto volume = open_volume(recorder);
    {
        Transaction transaction(*volume);
        must(stage_directory(*volume, EXT2_ROOT_INO, "directory", 0755));
        must(transaction.commit());
    }
    const ext2_ino_t directory = must(lookup(*volume, "/directory"));
    const auto size = [&] {
        ext2_inode raw{};
        EXPECT_EQ(ext2fs_read_inode(volume->fs(), directory, &raw), 0);
        return EXT2_I_SIZE(&raw);
    };
    for (int i = 0; size() == kBlock; ++i) {
        recorder.events.clear();
        must(create_atomic_file(*volume, fmt::format("/directory/{:0>60}", i),
                                {Bytes(0), Bytes(kBlock)}));
    }
    ext2_inode raw{};
    ASSERT_EQ(ext2fs_read_inode(volume->fs(), directory, &raw), 0);
    const auto mapped = must(map_range(*volume, directory, raw, Lblk(0), Blocks(2)));
    ASSERT_EQ(mapped.size(), 1u);  // in the same cluster
    const uint64_t at = (mapped[0].pblk.value() + 1) * kBlock;
    std::optional<size_t> content;
    std::optional<size_t> inode;
    for (size_t i = 0; i < recorder.events.size(); ++i) {
        const auto& event = recorder.events[i];
        if (event.kind != RecordingDevice::Kind::Write) continue;
        const uint64_t begin = event.offset.value();
        if (begin <= at && at < begin + event.length.value()) content = i;
        if (volume->inode_tables().first_inode_in(begin / kBlock)) inode = i;
    }
    ASSERT_TRUE(content && inode);
    EXPECT_LT(*content, *inode);
}

TEST(Bigalloc, UnitsOfEachSizeAreAlignedInBlocks) {
    for (const uint64_t unit :
         {uint64_t{1}, uint64_t{4}, uint64_t{16}, uint64_t{64}, uint64_t{512}}) {
        SCOPED_TRACE(unit);
        Opened opened(bigalloc());
        const uint64_t free = opened.free_blocks();
        const Bytes size(std::max<uint64_t>(unit, 20) * kBlock + 1);
        const ext2_ino_t inode =
            must(create_atomic_file(*opened.volume, "/file", {size, Bytes(unit * kBlock)}));
        const LayoutReport layout =
            must(check_layout(*opened.volume, opened.state(inode), Bytes(unit * kBlock)));
        EXPECT_EQ(layout.problems, 0u);
        const uint64_t grain = std::max<uint64_t>(unit * kBlock, kCluster);
        EXPECT_EQ(free - opened.free_blocks(), round_up(size.value(), grain) / kBlock);
        EXPECT_EQ(fsck_complaints(opened.image()), "");
    }
}

TEST(Bigalloc, TooLargeClustersAreRefused) {
    const Image image = make_ext4(uint64_t{256} << 20,
                                  {"-b", "1024", "-O", "bigalloc", "-C", "16777216", "-N", "64"});
    const auto opened = try_open(image, OpenFor::Read);
    EXPECT_EQ(code_of(opened), EOPNOTSUPP);
    EXPECT_THAT(message_of(opened), testing::HasSubstr("clusters of 16384 blocks"));
}

}  // namespace
}  // namespace atomic4::test
