// Times as ext4 stores them, and that whatever changes an inode sets them so.
#include "ext4/inode_time.h"

#include "unit/volume_fixture.h"

namespace atomic4::test {
namespace {

constexpr int64_t kYear2040 = 2'208'988'800;
constexpr int64_t kYear2200 = 7'258'118'400;

// The table of the kernel's Documentation/filesystems/ext4/inodes.rst.
TEST(InodeTime, Encoding) {
    struct Row {
        int64_t seconds;
        uint32_t low, epoch;
    };
    for (const Row& row : {Row{0, 0, 0},
                           {-1, 0xffffffff, 0},
                           {-0x80000000LL, 0x80000000, 0},
                           {0x7fffffffLL, 0x7fffffff, 0},
                           {0x80000000LL, 0x80000000, 1},
                           {0xffffffffLL, 0xffffffff, 1},
                           {0x100000000LL, 0, 1},
                           {0x17fffffffLL, 0x7fffffff, 1},
                           {0x180000000LL, 0x80000000, 2},
                           {0x37fffffffLL, 0x7fffffff, 3}}) {
        const StoredTime stored = encode_time({row.seconds, 999'999'999});
        EXPECT_EQ(stored.seconds, row.low) << row.seconds;
        EXPECT_EQ(stored.extra, row.epoch | 999'999'999u << 2) << row.seconds;
        EXPECT_EQ(decode_time(stored).seconds, row.seconds);
        EXPECT_EQ(decode_time(stored).nanoseconds, 999'999'999u);
    }
    // Beyond it, the last one.
    EXPECT_EQ(decode_time(encode_time({0x380000000LL, 0})).seconds, 0x37fffffffLL);
}

struct Times {
    int64_t changed, modified, created;
};
Times times_of(Volume& volume, const std::string& path) {
    FullInode inode(volume.fs());
    if (ext2fs_read_inode_full(volume.fs(), must(lookup(volume, path)), inode.core(),
                               inode.size()) != 0)
        throw std::runtime_error("can't read the inode");
    if (inode.size() == EXT2_GOOD_OLD_INODE_SIZE)
        return {static_cast<int32_t>(inode.core()->i_ctime),
                static_cast<int32_t>(inode.core()->i_mtime), 0};
    const ext2_inode_large& large = *inode.large();
    return {decode_time({large.i_ctime, large.i_ctime_extra}).seconds,
            decode_time({large.i_mtime, large.i_mtime_extra}).seconds,
            decode_time({large.i_crtime, large.i_crtime_extra}).seconds};
}

TEST(InodeTime, WhatChangesAFileSetsIt) {
    MemoryDevice memory(make_atomic4(16 << 20, {"-b", "4096"}));
    const auto volume = open_volume(memory);
    volume->fs()->now = kYear2040;
    const auto number = must(create_atomic_file(*volume, "/f", {Bytes(0), Bytes(4096)}));
    for (const char* path : {"/f", "/"}) {
        EXPECT_EQ(times_of(*volume, path).changed, kYear2040) << path;
        EXPECT_EQ(times_of(*volume, path).modified, kYear2040) << path;
    }
    EXPECT_EQ(times_of(*volume, "/f").created, kYear2040);

    volume->fs()->now = kYear2200;
    must(touch_file(*volume, number));
    EXPECT_EQ(times_of(*volume, "/f").modified, kYear2200);
    EXPECT_EQ(times_of(*volume, "/f").created, kYear2040);
    volume->fs()->now = kYear2040;
    must(finish_growth(*volume, must(read_file(*volume, number)), ByteOffset(0), Bytes(0),
                       Bytes(4096)));
    EXPECT_EQ(times_of(*volume, "/f").modified, kYear2040);
    volume->fs()->now = kYear2200;
    must(release_file(*volume, number));
    EXPECT_EQ(times_of(*volume, "/f").changed, kYear2200);
    EXPECT_EQ(times_of(*volume, "/f").modified, kYear2040);

    must(create_atomic_file(*volume, "/g", {Bytes(0), Bytes(4096)}));
    EXPECT_EQ(super_of(memory.contents()).s_wtime_hi, kYear2200 >> 32);
    EXPECT_EQ(super_of(memory.contents()).s_wtime, static_cast<uint32_t>(kYear2200));
    EXPECT_EQ(fsck_complaints(memory.contents()), "");
}

// Small inodes have no room for it: the last time there is, not one in 1904.
TEST(InodeTime, SmallInodes) {
    MemoryDevice memory(make_atomic4(16 << 20, {"-b", "4096", "-I", "128"}));
    const auto volume = open_volume(memory);
    volume->fs()->now = kYear2040;
    must(create_atomic_file(*volume, "/f", {Bytes(0), Bytes(4096)}));
    EXPECT_EQ(times_of(*volume, "/f").changed, 0x7fffffff);
    EXPECT_EQ(fsck_complaints(memory.contents()), "");
}

}  // namespace
}  // namespace atomic4::test
