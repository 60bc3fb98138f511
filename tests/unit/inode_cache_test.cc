// An inode with a wrong checksum doesn't change what is read of others.
#include "ext4/inode_cache.h"

#include <gtest/gtest.h>

#include <cstring>

#include "ext4/inode_time.h"
#include "ext4/xattr.h"
#include "support/image.h"
#include "support/results.h"

namespace atomic4::test {
namespace {

constexpr ext2_ino_t kGood[] = {EXT2_ROOT_INO, EXT2_RESIZE_INO, EXT2_JOURNAL_INO, 11, 12};
constexpr ext2_ino_t kBad = 13;

std::unique_ptr<Volume> inspected(MemoryDevice& memory) {
    VolumeOptions options;
    options.purpose = OpenFor::Inspect;
    return must(Volume::open(borrowed(memory), options));
}

ext2_inode inode_of(Volume& volume, ext2_ino_t number) {
    ext2_inode inode{};
    EXPECT_EQ(ext2fs_read_inode(volume.fs(), number, &inode), 0) << number;
    return inode;
}

class InodeCache : public ::testing::TestWithParam<uint32_t> {};

TEST_P(InodeCache, ADamagedInodeTakesNobodysPlace) {
    const Image sound =
        make_atomic4(uint64_t{16} << 20, {"-b", "1024", "-I", std::to_string(GetParam())});
    Image image = sound;
    {
        MemoryDevice memory(sound);
        const auto volume = inspected(memory);
        const uint64_t table = ext2fs_inode_table_loc(volume->fs(), 0);
        image[table * 1024 + (kBad - 1) * GetParam()] ^= std::byte{1};
    }
    MemoryDevice memory(image);
    const auto volume = inspected(memory);
    ext2_filsys fs = volume->fs();
    std::vector<ext2_inode> expected;
    for (const ext2_ino_t number : kGood) expected.push_back(inode_of(*volume, number));
    const auto read_bad = [&](int how) {
        ext2_inode inode{};
        FullInode full(fs);
        if (how == 0) return ext2fs_read_inode(fs, kBad, &inode) == 0;
        if (how == 1) return read_xattr(fs, kBad, "trusted.atomic4.unit").has_value();
        return write_inode_now(fs, kBad, inode, 0, "").has_value();
    };
    for (int how = 0; how < 3; ++how) {
        // Whichever of them is the one that was read longest ago.
        for (size_t turn = 0; turn < std::size(kGood); ++turn) {
            for (size_t i = 0; i <= turn; ++i) (void)inode_of(*volume, kGood[i]);
            EXPECT_FALSE(read_bad(how));
            for (size_t i = 0; i < std::size(kGood); ++i) {
                const ext2_inode inode = inode_of(*volume, kGood[i]);
                EXPECT_EQ(std::memcmp(&inode, &expected[i], sizeof inode), 0)
                    << "inode " << kGood[i] << ", turn " << turn << ", way " << how;
                EXPECT_FALSE(read_bad(how));
            }
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Sizes, InodeCache, testing::Values(128, 256));

}  // namespace
}  // namespace atomic4::test
