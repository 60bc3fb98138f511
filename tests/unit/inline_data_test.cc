// Volumes with inline_data: small files and directories lie in their inodes.
#include "ext4/inline_data.h"

#include "ext4/xattr.h"
#include "unit/writer_fixture.h"

namespace atomic4::test {
namespace {

constexpr uint64_t kSize = uint64_t{16} << 20;

// With files of these sizes, as debugfs makes them: in the inode if they fit.
Image with_files(const std::vector<uint64_t>& sizes, std::vector<std::string> arguments = {}) {
    arguments.insert(arguments.begin(), {"-b", "1024", "-I", "256"});
    if (std::ranges::find(arguments, "-O") == arguments.end())
        arguments.insert(arguments.end(), {"-O", "inline_data"});
    const TempDir dir;
    std::vector<std::string> commands{"mkdir /directory", "write /dev/null /directory/inside"};
    for (const uint64_t size : sizes) {
        store_image(filled(size, 0x5a), dir.file(std::to_string(size)));
        commands.push_back(fmt::format("write {} /file{}", dir.file(std::to_string(size)), size));
    }
    MemoryDevice memory(debugfs(make_ext4(kSize, arguments), commands));
    const auto volume = open_volume(memory);
    must(enable(*volume, log_of(256 << 10)));
    return memory.contents();
}

ext2_inode raw_inode(Volume& volume, ext2_ino_t number) {
    ext2_inode inode{};
    if (ext2fs_read_inode(volume.fs(), number, &inode) != 0) throw std::runtime_error("inode");
    return inode;
}

// Sets a generation: debugfs's files have none.
void give_generation(Volume& volume, ext2_ino_t number) {
    Transaction transaction(volume);
    ext2_inode inode = raw_inode(volume, number);
    inode.i_generation = 77;
    if (ext2fs_write_inode(volume.fs(), number, &inode) != 0) throw std::runtime_error("inode");
    must(transaction.commit());
}

void give_xattr(Volume& volume, ext2_ino_t number) {
    Transaction transaction(volume);
    must(write_xattr(volume.fs(), number, "user.kept", "value"));
    must(transaction.commit());
}

TEST(InlineData, WritesAreRefused) {
    MemoryDevice memory(with_files({20}));
    {
        const auto volume = open_volume(memory);
        give_generation(*volume, must(lookup(*volume, "/file20")));
    }
    const Image before = memory.contents();
    const auto writer = must(AtomicWriter::open(must(open_for_writing(borrowed(memory)))));
    const ext2_ino_t inode = must(lookup(writer->volume(), "/file20"));
    ASSERT_NE(raw_inode(writer->volume(), inode).i_flags & EXT4_INLINE_DATA_FL, 0u);
    const auto data = filled(1024, 1);
    const auto done = writer->write({inode, 77, ByteOffset(0), data});
    EXPECT_EQ(code_of(done), EOPNOTSUPP);
    EXPECT_THAT(message_of(done), testing::HasSubstr("lies in the inode itself"));
    Image into(20);
    EXPECT_EQ(code_of(writer->read(inode, ByteOffset(0), into)), EOPNOTSUPP);
    EXPECT_TRUE(memory.contents() == before);
}

// Empty, in i_block alone, in an xattr too, as long as fits.
TEST(InlineData, ConvertedFilesKeepWhatTheyHold) {
    for (const bool clusters : {false, true}) {
        SCOPED_TRACE(clusters);
        const std::vector<uint64_t> sizes{1, 59, 60, 61, 120, 1500};
        MemoryDevice memory(with_files(
            sizes, clusters ? std::vector<std::string>{"-O", "inline_data,bigalloc", "-C", "4096"}
                            : std::vector<std::string>{}));
        size_t were_inline = 0;
        {
            const auto volume = open_volume(memory);
            for (const uint64_t size : sizes) {
                const ext2_ino_t inode = must(lookup(*volume, fmt::format("/file{}", size)));
                const bool was = (raw_inode(*volume, inode).i_flags & EXT4_INLINE_DATA_FL) != 0;
                were_inline += was ? 1 : 0;
                give_xattr(*volume, inode);
                ASSERT_EQ(message_of(convert_inline_data(*volume, inode)), "") << size;
                const ext2_inode now = raw_inode(*volume, inode);
                EXPECT_EQ(now.i_flags & (EXT4_INLINE_DATA_FL | EXT4_EXTENTS_FL),
                          static_cast<uint32_t>(EXT4_EXTENTS_FL));
                EXPECT_EQ(EXT2_I_SIZE(&now), size);
                EXPECT_EQ(read_xattr(volume->fs(), inode, "user.kept").value(), "value");
                // Once more: nothing to do.
                EXPECT_TRUE(convert_inline_data(*volume, inode));
            }
        }
        EXPECT_GE(were_inline, 5u);
        EXPECT_EQ(fsck_complaints(memory.contents()), "");
        for (const uint64_t size : sizes) {
            EXPECT_TRUE(dump_file(memory.contents(), fmt::format("/file{}", size)) ==
                        filled(size, 0x5a))
                << size;
        }
    }
}

TEST(InlineData, ConvertedFilesAreWritten) {
    MemoryDevice memory(with_files({100}));
    ext2_ino_t inode = 0;
    {
        const auto volume = open_volume(memory);
        inode = must(lookup(*volume, "/file100"));
        give_generation(*volume, inode);
        must(convert_inline_data(*volume, inode));
    }
    const auto writer = must(AtomicWriter::open(must(open_for_writing(borrowed(memory)))));
    const auto data = filled(1024, 1);
    EXPECT_EQ(message_of(writer->write({inode, 77, ByteOffset(1024), data})), "");
    Image into(2048);
    EXPECT_EQ(must(writer->read(inode, ByteOffset(0), into)), Bytes(2048));
    Image expected = filled(100, 0x5a);
    expected.resize(1024);
    expected.insert(expected.end(), data.begin(), data.end());
    EXPECT_TRUE(into == expected);
    must(writer->close());
    EXPECT_EQ(fsck_complaints(memory.contents()), "");
}

TEST(InlineData, WithoutSpaceNothingChanges) {
    MemoryDevice memory(with_files({100}));
    const auto volume = open_volume(memory);
    const ext2_ino_t inode = must(lookup(*volume, "/file100"));
    fill_up(*volume, 0);
    const Image before = memory.contents();
    EXPECT_EQ(code_of(convert_inline_data(*volume, inode)), ENOSPC);
    EXPECT_TRUE(memory.contents() == before);
    EXPECT_EQ(code_of(convert_inline_data(*volume, must(lookup(*volume, "/directory")))), EINVAL);
}

// From the inode to its first block, and on.
TEST(InlineData, DirectoriesGrowOutOfTheirInodes) {
    MemoryDevice memory(with_files({}));
    const auto volume = open_volume(memory);
    const ext2_ino_t directory = must(lookup(*volume, "/directory"));
    EXPECT_NE(raw_inode(*volume, directory).i_flags & EXT4_INLINE_DATA_FL, 0u);
    for (int i = 0; i < 60; ++i) {
        must(create_atomic_file(*volume, fmt::format("/directory/file{:0>20}", i),
                                {Bytes(1024), Bytes(1024)}));
        EXPECT_TRUE(lookup(*volume, fmt::format("/directory/file{:0>20}", i)));
        if (i % 5 == 0) {
            EXPECT_EQ(fsck_complaints(memory.contents()), "") << i;
        }
    }
    EXPECT_EQ(raw_inode(*volume, directory).i_flags & EXT4_INLINE_DATA_FL, 0u);
    EXPECT_TRUE(lookup(*volume, "/directory/inside"));
    EXPECT_EQ(fsck_complaints(memory.contents()), "");
}

}  // namespace
}  // namespace atomic4::test
