#include <gtest/gtest.h>

#include <fstream>

#include "ext4/path.h"
#include "support/image.h"

namespace atomic4::test {
namespace {

TEST(Smoke, EnableCreateWriteRead) {
    for (const char* bs : {"1024", "2048", "4096"}) {
        SCOPED_TRACE(bs);
        Image image = make_atomic4(32 << 20, {"-b", bs});
        EXPECT_EQ(fsck_complaints(image), "");
        MemoryDevice memory(image);
        {
            auto opened = open_for_writing(borrowed(memory));
            ASSERT_TRUE(opened) << opened.error().message;
            auto inode = create_atomic_file(*opened->volume, "/db", {Bytes(1 << 20), Bytes(16384)});
            ASSERT_TRUE(inode) << inode.error().message;
            EXPECT_EQ(fsck_complaints(memory.contents()), "");
            auto writer = AtomicWriter::open(std::move(*opened));
            ASSERT_TRUE(writer);
            std::vector<std::byte> data(16384, std::byte{0x5a});
            const auto file = (*writer)->file(*inode);
            ASSERT_TRUE(file);
            for (uint64_t off : {0, 16384, 1 << 20, 3 << 20}) {
                auto out = (*writer)->write({*inode, file->generation, ByteOffset(off), data});
                ASSERT_TRUE(out) << out.error().message;
            }
            auto closed = (*writer)->close();
            ASSERT_TRUE(closed) << closed.error().message;
        }
        EXPECT_EQ(fsck_complaints(memory.contents()), "");
        auto opened = open_for_reading(borrowed(memory));
        ASSERT_TRUE(opened) << opened.error().message;
        auto number = lookup(*opened->volume, "/db");
        ASSERT_TRUE(number);
        auto file = read_file(*opened->volume, *number);
        EXPECT_EQ(file->size.value(), (3u << 20) + 16384);
        auto report = check_layout(*opened->volume, *file, Bytes(16384));
        ASSERT_TRUE(report);
        EXPECT_EQ(report->problems, 0u);
        EXPECT_EQ(report->units_mapped, 66u);
    }
}

}  // namespace
}  // namespace atomic4::test
