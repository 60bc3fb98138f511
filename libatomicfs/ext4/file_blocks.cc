#include "ext4/file_blocks.h"

#include <algorithm>

#include "ext4/indirect_map.h"
#include "ext4/layout_plan.h"

namespace atomic4 {

namespace {

Result<FileBlocks> read_mapping(Volume& volume, const FileState& file) {
    FileBlocks blocks;
    if (!file.extent_mapped()) {
        IndirectMap map = A4_TRY(read_indirect_map(volume, file.number));
        blocks.mappings = std::move(map.mappings);
        blocks.nodes = std::move(map.nodes);
        return blocks;
    }
    blocks.mappings =
        joined(A4_TRY(map_range(volume, file.number, file.inode, Lblk(0), kWholeFile)));
    blocks.nodes = A4_TRY(tree_blocks(volume, file.number, file.inode));
    return blocks;
}

Result<> check_in_use(Volume& volume, PblkRun run) {
    const dgrp_t last = ext2fs_group_of_blk2(volume.fs(), (run.start + run.length).value() - 1);
    for (dgrp_t group = ext2fs_group_of_blk2(volume.fs(), run.start.value()); group <= last;
         ++group)
        A4_CHECK(volume.block_bitmaps().get(group));
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
