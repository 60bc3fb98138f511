#include "ext4/transaction.h"

#include <cstring>

#include "ext4/errcode.h"

namespace atomic4 {

namespace {

bool in_inode_table(ext2_filsys fs, uint64_t block) {
    // With flex_bg a table may lie in any group; but always wholly, so asking the tables in turn
    // would be right and slow. The block's flex group is where mke2fs and resize2fs put it; a table
    // elsewhere only makes the block count as "tree", which is written before the inodes: safe.
    const dgrp_t group = ext2fs_group_of_blk2(fs, block);
    const uint32_t flex = uint32_t{1} << fs->super->s_log_groups_per_flex;
    const dgrp_t first = group & ~(flex - 1);
    for (dgrp_t g = first; g < first + flex && g < fs->group_desc_count; ++g) {
        const uint64_t table = ext2fs_inode_table_loc(fs, g);
        if (block >= table && block < table + fs->inode_blocks_per_group) return true;
    }
    return false;
}

// Which node of an extent tree a block is; directory and xattr blocks are none.
enum class Node { None, Index, Leaf };

Node node_kind(std::span<const std::byte> block) {
    ext3_extent_header header;
    std::memcpy(&header, block.data(), sizeof header);
    // A directory block could begin like that, but not with a record as long as the other number.
    const size_t room = (block.size() - sizeof header) / sizeof(ext3_extent);
    if (header.eh_magic != EXT3_EXT_MAGIC || header.eh_max != room) return Node::None;
    return header.eh_depth == 0 ? Node::Leaf : Node::Index;
}

}  // namespace

Transaction::Transaction(Volume& volume)
    : volume_(volume), super_before_(*volume.fs()->super), attr_before_(volume.attr_state()) {
    volume_.metadata_device().begin();
    volume_.descriptors().begin();
    volume_.block_bitmaps().begin();
    volume_.inode_bitmaps().begin();
}

Transaction::~Transaction() {
    if (open_) abort();
}

void Transaction::abort() {
    open_ = false;
    const std::set<uint32_t> touched = volume_.descriptors().dirty();
    volume_.metadata_device().drop();
    volume_.block_bitmaps().abort();
    volume_.inode_bitmaps().abort();
    volume_.descriptors().abort();
    *volume_.fs()->super = super_before_;
    volume_.restore_attr(std::move(attr_before_));
    (void)ext2fs_flush_icache(volume_.fs());
    volume_.allocator().groups_changed({touched.begin(), touched.end()});
}

// Neighbouring blocks go out as one write.
Result<> Transaction::write_images(const Images& images) {
    constexpr size_t kMaxWrite = size_t{1} << 20;
    const uint64_t block_size = volume_.block_size().value();
    std::vector<std::byte> run;
    for (auto it = images.begin(); it != images.end();) {
        const uint64_t first = it->first;
        uint64_t next = first;
        run.clear();
        while (it != images.end() && it->first == next && run.size() < kMaxWrite) {
            run.insert(run.end(), it->second.begin(), it->second.end());
            ++next;
            ++it;
        }
        A4_CHECK(volume_.device().write(ByteOffset(first * block_size), run));
    }
    return {};
}

Result<> Transaction::put_back(const std::vector<const Images*>& written, const Images& before) {
    for (const Images* images : written) {
        Images old;
        for (const auto& [block, unused] : *images) {
            if (const auto found = before.find(block); found != before.end()) old.insert(*found);
        }
        A4_CHECK(write_images(old));
    }
    return {};
}

Result<> Transaction::commit(Order order) {
    A4_CHECK(volume_.usable());
    ext2_filsys fs = volume_.fs();
    const uint64_t block_size = volume_.block_size().value();

    // Everything that can fail without writing, first: checksums, images of what is there now.
    const auto block_bitmaps = A4_TRY(volume_.block_bitmaps().prepare());
    const auto inode_bitmaps = A4_TRY(volume_.inode_bitmaps().prepare());
    const bool freeing = order == Order::Freeing;
    Images bitmaps;
    Images tree;
    Images inodes;
    Images old_index;  // allocating only, and so are the leaves
    Images old_leaves;
    Images before;
    std::vector<std::vector<std::byte>> kept;
    const auto keep_old = [&](uint64_t block) -> Result<> {
        kept.emplace_back(block_size);
        A4_CHECK(volume_.device().read(ByteOffset(block * block_size), kept.back()));
        before[block] = kept.back();
        return {};
    };
    for (const auto* source : {&block_bitmaps, &inode_bitmaps}) {
        for (const auto& [block, bits] : *source) bitmaps[block] = std::as_bytes(std::span(*bits));
    }
    const auto old_block_bitmaps = volume_.block_bitmaps().before();
    const auto old_inode_bitmaps = volume_.inode_bitmaps().before();
    for (const auto* source : {&old_block_bitmaps, &old_inode_bitmaps}) {
        for (const auto& [block, bits] : *source) before[block] = std::as_bytes(std::span(*bits));
    }
    std::set<uint64_t> descriptor_blocks;
    for (const uint32_t group : volume_.descriptors().dirty()) {
        ext2fs_group_desc_csum_set(fs, group);
        descriptor_blocks.insert(group / EXT2_DESC_PER_BLOCK(fs->super));
    }
    for (const uint64_t index : descriptor_blocks) {
        const uint64_t block = ext2fs_descriptor_block_loc2(fs, fs->super->s_first_data_block,
                                                            static_cast<dgrp_t>(index));
        const auto* raw = reinterpret_cast<const std::byte*>(fs->group_desc) + index * block_size;
        bitmaps[block] = std::span(raw, block_size);
        A4_CHECK(keep_old(block));
    }
    for (const auto& [block, bytes] : volume_.metadata_device().blocks()) {
        if (volume_.block_bitmaps().newly_free(block)) continue;
        Images* images = in_inode_table(fs, block) ? &inodes : &tree;
        if (!freeing && images == &tree && !volume_.block_bitmaps().newly_used(block)) {
            const Node node = node_kind(bytes);
            if (node == Node::Index) images = &old_index;
            if (node == Node::Leaf) images = &old_leaves;
        }
        (*images)[block] = bytes;
        A4_CHECK(keep_old(block));
    }
    const bool super_changed = std::memcmp(&super_before_, fs->super, sizeof super_before_) != 0;

    const std::vector<const Images*> steps =
        freeing ? std::vector<const Images*>{&inodes, &tree, &bitmaps}
                : std::vector<const Images*>{&bitmaps, &tree, &inodes, &old_index, &old_leaves};
    std::vector<const Images*> written;
    bool flush_failed = false;
    const auto run = [&]() -> Result<> {
        for (const Images* step : steps) {
            // The first flush also covers data that the caller zeroed.
            const bool super_now = step == &inodes && super_changed;
            if (step->empty() && !super_now && !(written.empty() && step == steps.front()))
                continue;
            written.push_back(step);
            A4_CHECK(write_images(*step));
            if (super_now) A4_CHECK(write_primary_superblock(fs, volume_.device()));
            if (auto done = volume_.device().flush(); !done) {
                flush_failed = true;
                return done;
            }
        }
        return {};
    };
    if (auto done = run(); !done) {
        Error error = std::move(done).error();
        if (!flush_failed) {
            const ext2_super_block super_new = *fs->super;
            auto undone = put_back(written, before);
            *fs->super = super_before_;
            if (undone && super_changed) undone = write_primary_superblock(fs, volume_.device());
            *fs->super = super_new;
            if (undone) undone = volume_.device().flush();
            flush_failed = !undone;
        }
        if (flush_failed) {
            volume_.poison(
                Error{EIO, fmt::format("an earlier metadata write failed and could not be "
                                       "undone (in doubt): {}",
                                       error.message)});
            error.message += "; what was written is in doubt: check the volume with e2fsck";
            error.code = EIO;
        }
        abort();
        return fail(std::move(error));
    }
    open_ = false;
    volume_.metadata_device().drop();
    volume_.block_bitmaps().committed();
    volume_.inode_bitmaps().committed();
    volume_.descriptors().committed();
    return {};
}

}  // namespace atomic4
