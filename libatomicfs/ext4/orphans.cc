#include "ext4/orphans.h"

#include <cstring>

#include "ext4/block_claims.h"

namespace atomic4 {

namespace {

bool is_an_inode(const ext2_super_block& super, ext2_ino_t number) {
    return number >= EXT2_FIRST_INODE(&super) && number <= super.s_inodes_count;
}

void add_list(ext2_filsys fs, std::set<ext2_ino_t>& orphans) {
    ext2_ino_t next = fs->super->s_last_orphan;
    while (is_an_inode(*fs->super, next) && orphans.insert(next).second) {
        ext2_inode inode{};
        if (ext2fs_read_inode(fs, next, &inode) != 0) return;
        next = inode.i_dtime;
    }
}

// Each block is inode numbers, 0 where there is none, and a magic number with a checksum.
Result<> add_file(Volume& volume, std::set<ext2_ino_t>& orphans) {
    constexpr size_t kTail = 8;
    ext2_filsys fs = volume.fs();
    if (!ext2fs_has_feature_orphan_present(fs->super)) return {};
    std::vector<std::byte> block(fs->blocksize);
    for (const BlockClaim& claim : claims_of(volume, fs->super->s_orphan_file_inum)) {
        if (claim.kind != BlockClaim::Kind::Data) continue;
        for (uint64_t i = 0; i < claim.run.length.value(); ++i) {
            const uint64_t at = claim.run.start.value() + i;
            if (at >= ext2fs_blocks_count(fs->super)) return {};
            A4_CHECK(volume.device().read(ByteOffset(at * fs->blocksize), block));
            for (size_t byte = 0; byte + kTail < block.size(); byte += sizeof(uint32_t)) {
                uint32_t number = 0;
                std::memcpy(&number, block.data() + byte, sizeof number);
                number = ext2fs_le32_to_cpu(number);
                if (is_an_inode(*fs->super, number)) orphans.insert(number);
            }
        }
    }
    return {};
}

}  // namespace

Result<std::set<ext2_ino_t>> read_orphans(Volume& volume) {
    std::set<ext2_ino_t> orphans;
    add_list(volume.fs(), orphans);
    A4_CHECK(add_file(volume, orphans));
    return orphans;
}

}  // namespace atomic4
