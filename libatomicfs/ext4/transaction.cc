#include "ext4/transaction.h"

#include <cstring>

#include "ext4/errcode.h"
#include "ext4/tree_nodes.h"

namespace atomic4 {

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

Result<> Transaction::rehearse() {
    A4_TRY(move_changed_nodes(volume_));
    return {};
}

Result<> Transaction::commit(Order order) {
    A4_CHECK(volume_.usable());
    ext2_filsys fs = volume_.fs();
    const uint64_t block_size = volume_.block_size().value();

    // Everything that can fail without writing, first: checksums, images of what is there now.
    const bool freeing = order == Order::Freeing;
    const auto given_up = freeing ? std::vector<Pblk>{} : A4_TRY(move_changed_nodes(volume_));
    const auto block_bitmaps = A4_TRY(volume_.block_bitmaps().prepare());
    const auto inode_bitmaps = A4_TRY(volume_.inode_bitmaps().prepare());
    Images bitmaps;
    Images tree;
    Images inodes;
    Images old_names;  // allocating only, and so are the next two
    Images old_index;
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
        Images* images = volume_.inode_tables().first_inode_in(block) ? &inodes : &tree;
        if (!freeing && images == &tree && !volume_.block_bitmaps().newly_used(block)) {
            const Node node = node_kind(bytes);
            images = node == Node::Index  ? &old_index
                     : node == Node::Leaf ? &old_leaves
                                          : &old_names;
        }
        (*images)[block] = bytes;
        A4_CHECK(keep_old(block));
    }
    const bool super_changed = std::memcmp(&super_before_, fs->super, sizeof super_before_) != 0;

    const std::vector<const Images*> steps =
        freeing ? std::vector<const Images*>{&inodes, &tree, &bitmaps}
                : std::vector<const Images*>{&bitmaps,   &tree,      &inodes,
                                             &old_names, &old_index, &old_leaves};
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
    if (!given_up.empty()) A4_CHECK(free_blocks(given_up));
    // This one is done; if the volume isn't ours any more, it was the last.
    return volume_.keep_mmp();
}

// Nothing refers to these any more. What failed here is done already: the caller must not go on
// with what it knew before.
Result<> Transaction::free_blocks(const std::vector<Pblk>& blocks) {
    Transaction transaction(volume_);
    const auto run = [&]() -> Result<> {
        for (const Pblk block : blocks) A4_CHECK(volume_.allocator().free({block, Blocks(1)}));
        return transaction.commit(Order::Freeing);
    };
    auto done = run();
    if (done) return {};
    Error error = std::move(done).error();
    error.message += "; whether replaced tree blocks are free is in doubt: check with e2fsck";
    volume_.poison(error);
    return fail(std::move(error));
}

}  // namespace atomic4
