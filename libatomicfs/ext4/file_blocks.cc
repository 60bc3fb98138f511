#include "ext4/file_blocks.h"

#include <algorithm>

#include "ext4/errcode.h"
#include "ext4/layout_plan.h"

namespace atomic4 {

namespace {

constexpr uint64_t kFileEnd = uint64_t{1} << 32;  // lblk has 32 bits

// Blocks of an indirect-mapped file, as libext2fs hands them out.
struct IndirectWalk {
    uint64_t first_block = 0;
    uint64_t volume_blocks = 0;
    uint64_t seen = 0;
    std::optional<Error> error;
    FileBlocks blocks{};

    int add(blk64_t block, e2_blkcnt_t lblk) {
        if (block < first_block || block >= volume_blocks) {
            error = Error{EUCLEAN, fmt::format("block {} lies beyond the volume", block)};
            return BLOCK_ABORT;
        }
        // Indirect blocks that lead to themselves could go on nearly for ever.
        if (++seen > volume_blocks) {
            error = Error{EUCLEAN, "it has more blocks than the volume"};
            return BLOCK_ABORT;
        }
        if (lblk < 0) {
            blocks.nodes.emplace_back(block);
            return 0;
        }
        auto& mappings = blocks.mappings;
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

int walk_indirect(ext2_filsys, blk64_t* block, e2_blkcnt_t lblk, blk64_t, int, void* walk) {
    return static_cast<IndirectWalk*>(walk)->add(*block, lblk);
}

Result<FileBlocks> read_indirect(Volume& volume, ext2_ino_t number) {
    ext2_filsys fs = volume.fs();
    IndirectWalk walk;
    walk.first_block = fs->super->s_first_data_block;
    walk.volume_blocks = ext2fs_blocks_count(fs->super);
    const errcode_t code =
        ext2fs_block_iterate3(fs, number, BLOCK_FLAG_READ_ONLY, nullptr, walk_indirect, &walk);
    if (walk.error) return fail(*walk.error);
    A4_CHECK(check_errcode(code, "block map"));
    return std::move(walk.blocks);
}

Result<FileBlocks> read_mapping(Volume& volume, const FileState& file) {
    if (!file.extent_mapped()) return read_indirect(volume, file.number);
    FileBlocks blocks;
    blocks.mappings =
        joined(A4_TRY(map_range(volume, file.number, file.inode, Lblk(0), Blocks(kFileEnd))));
    blocks.nodes = A4_TRY(tree_blocks(volume, file.number, file.inode));
    return blocks;
}

Result<> check_in_use(Volume& volume, PblkRun run) {
    for (uint64_t i = 0; i < run.length.value(); ++i) {
        if (A4_TRY(volume.allocator().is_free(run.start + Blocks(i))))
            return fail(EUCLEAN, "the bitmap calls its block {} free", run.start + Blocks(i));
    }
    return {};
}

Result<> prove(Volume& volume, const FileState& file, const FileBlocks& blocks) {
    ext2_filsys fs = volume.fs();
    std::vector<PblkRun> runs;
    for (const Mapping& mapping : blocks.mappings) runs.push_back({mapping.pblk, mapping.length});
    for (const Pblk node : blocks.nodes) runs.push_back({node, Blocks(1)});
    const uint64_t xattrs = ext2fs_file_acl_block(fs, &file.inode);
    if (xattrs != 0) runs.push_back({Pblk(xattrs), Blocks(1)});
    std::ranges::sort(runs, {}, &PblkRun::start);

    const Pblk first(fs->super->s_first_data_block);
    const Pblk end(ext2fs_blocks_count(fs->super));
    Pblk free_from = first;
    for (const PblkRun& run : runs) {
        const Pblk run_end = run.start + run.length;
        if (run.start < first || run_end > end)
            return fail(EUCLEAN, "block {} lies beyond the volume", run.start);
        if (run.start < free_from) return fail(EUCLEAN, "block {} is claimed twice", run.start);
        free_from = run_end;
        if (volume.fixed_blocks().overlap(run.start.value(), run.length.value()))
            return fail(EUCLEAN, "block {} is the volume's own metadata", run.start);
        A4_CHECK(check_in_use(volume, run));
    }
    return {};
}

}  // namespace

Result<FileBlocks> read_blocks(Volume& volume, const FileState& file) {
    const auto read = [&]() -> Result<FileBlocks> {
        FileBlocks blocks = A4_TRY(read_mapping(volume, file));
        A4_CHECK(prove(volume, file, blocks));
        return blocks;
    };
    auto blocks = read();
    if (blocks) return blocks;
    Error error = std::move(blocks).error().with_context(fmt::format("inode {}", file.number));
    if (error.code == EUCLEAN && error.message.find("e2fsck") == std::string::npos)
        error.message += ": the volume needs e2fsck";
    return fail(std::move(error));
}

std::vector<PblkRun> whole_clusters(const Volume& volume, std::vector<PblkRun> runs) {
    const auto cluster = static_cast<uint64_t>(EXT2FS_CLUSTER_RATIO(volume.fs()));
    std::ranges::sort(runs, {}, &PblkRun::start);
    std::vector<PblkRun> result;
    for (const PblkRun& run : runs) {
        Pblk start(round_down(run.start.value(), cluster));
        const Pblk end(round_up((run.start + run.length).value(), cluster));
        if (!result.empty()) {
            PblkRun& last = result.back();
            start = std::max(start, last.start + last.length);
            if (start >= end) continue;
            if (start == last.start + last.length) {
                last.length += end - start;
                continue;
            }
        }
        result.push_back({start, end - start});
    }
    return result;
}

}  // namespace atomic4
