// Volumes with inline_data: small files and directories lie in their inodes. (Files get blocks when
// they are adopted: adopt_test.cc.)
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
