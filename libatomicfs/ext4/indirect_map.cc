#include "ext4/indirect_map.h"

#include "ext4/errcode.h"

namespace atomic4 {

namespace {

// As libext2fs hands the blocks out.
struct Walk {
    uint64_t first_block = 0;
    uint64_t volume_blocks = 0;
    uint64_t seen = 0;
    std::optional<Error> error;
    IndirectMap map{};

    int add(blk64_t block, e2_blkcnt_t lblk) {
        if (block < first_block || block >= volume_blocks) {
            error = Error{EUCLEAN, fmt::format("block {} lies beyond the volume", block)};
            return BLOCK_ABORT;
        }
        if (++seen > volume_blocks) {
            error = Error{EUCLEAN, "it has more blocks than the volume"};
            return BLOCK_ABORT;
        }
        if (lblk < 0) {
            map.nodes.emplace_back(block);
            return 0;
        }
        auto& mappings = map.mappings;
        const Lblk at(static_cast<uint64_t>(lblk));
        if (!mappings.empty() && mappings.back().end() == at &&
            mappings.back().pblk + mappings.back().length == Pblk(block)) {
            mappings.back().length += Blocks(1);
        } else {
            mappings.push_back({at, Blocks(1), Pblk(block), MapState::Written});
        }
        return 0;
    }
};

int add_block(ext2_filsys, blk64_t* block, e2_blkcnt_t lblk, blk64_t, int, void* walk) {
    return static_cast<Walk*>(walk)->add(*block, lblk);
}

}  // namespace

Result<IndirectMap> read_indirect_map(Volume& volume, ext2_ino_t number) {
    ext2_filsys fs = volume.fs();
    Walk walk;
    ext2_inode inode{};
    A4_CHECK(check_errcode(ext2fs_read_inode(fs, number, &inode), "block map"));
    A4_CHECK(check_block_mapped(fs, number, inode));
    walk.first_block = fs->super->s_first_data_block;
    walk.volume_blocks = ext2fs_blocks_count(fs->super);
    const errcode_t code =
        ext2fs_block_iterate3(fs, number, BLOCK_FLAG_READ_ONLY, nullptr, add_block, &walk);
    if (walk.error) return fail(*walk.error);
    A4_CHECK(check_errcode(code, "block map"));
    return std::move(walk.map);
}

}  // namespace atomic4
