#include "ext4/transaction.h"

#include <cstring>

#include "ext4/errcode.h"

namespace atomic4 {

namespace {

// The first inode in this block, if it belongs to an inode table.
std::optional<ext2_ino_t> first_inode_in(ext2_filsys fs, uint64_t block) {
    // With flex_bg a table may lie in any group; but always wholly, so asking the tables in turn
    // would be right and slow. The block's flex group is where mke2fs and resize2fs put it; a table
    // elsewhere only makes the block count as "tree", which is written before the inodes: safe.
    const dgrp_t group = ext2fs_group_of_blk2(fs, block);
    const uint32_t flex = uint32_t{1} << fs->super->s_log_groups_per_flex;
    const dgrp_t first = group & ~(flex - 1);
    for (dgrp_t g = first; g < first + flex && g < fs->group_desc_count; ++g) {
        const uint64_t table = ext2fs_inode_table_loc(fs, g);
        if (block >= table && block < table + fs->inode_blocks_per_group) {
            return static_cast<ext2_ino_t>(uint64_t{g} * fs->super->s_inodes_per_group +
                                           (block - table) * EXT2_INODES_PER_BLOCK(fs->super) + 1);
        }
    }
    return std::nullopt;
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

// The entry of a tree's root, two levels high, that leads to this leaf.
ext3_extent_idx* entry_for(ext2_inode& inode, uint64_t leaf) {
    if ((inode.i_flags & EXT4_EXTENTS_FL) == 0) return nullptr;
    auto* header = reinterpret_cast<ext3_extent_header*>(inode.i_block);
    if (header->eh_magic != EXT3_EXT_MAGIC || header->eh_depth != 1) return nullptr;
    auto* entry = EXT_FIRST_INDEX(header);
    for (int i = 0; i < std::min<int>(header->eh_entries, 4); ++i, ++entry) {
        if (entry->ei_leaf + (uint64_t{entry->ei_leaf_hi} << 32) == leaf) return entry;
    }
    return nullptr;
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

// The inode that this operation changes and that has the leaf right under it.
Result<std::optional<ext2_ino_t>> Transaction::parent_inode(uint64_t leaf) {
    ext2_filsys fs = volume_.fs();
    for (const auto& [block, bytes] : volume_.metadata_device().blocks()) {
        const auto first = first_inode_in(fs, block);
        const auto count = static_cast<uint32_t>(EXT2_INODES_PER_BLOCK(fs->super));
        for (uint32_t i = 0; first && i < count; ++i) {
            ext2_inode inode{};
            std::memcpy(&inode, bytes.data() + size_t{i} * EXT2_INODE_SIZE(fs->super),
                        sizeof inode);
            if (entry_for(inode, leaf) != nullptr) return std::optional(*first + i);
        }
    }
    return std::optional<ext2_ino_t>{};
}

// Gives changed leaves a new place. Returns the old ones, which are still marked as in use.
Result<std::vector<Pblk>> Transaction::move_leaves() {
    ext2_filsys fs = volume_.fs();
    StagingDevice& staging = volume_.metadata_device();
    const uint64_t block_size = volume_.block_size().value();
    std::vector<uint64_t> leaves;
    for (const auto& [block, bytes] : staging.blocks()) {
        if (!volume_.block_bitmaps().newly_used(block) && !first_inode_in(fs, block) &&
            node_kind(bytes) == Node::Leaf)
            leaves.push_back(block);
    }
    std::vector<Pblk> given_up;
    for (const uint64_t leaf : leaves) {
        const auto number = A4_TRY(parent_inode(leaf));
        if (!number) continue;
        const auto place = volume_.allocator().choose_block(Pblk(leaf));
        if (!place && place.error().code == ENOSPC) continue;
        A4_CHECK(place);
        const std::string what = fmt::format("inode {}", *number);
        A4_CHECK(volume_.allocator().take(*place));
        const std::vector<std::byte> bytes = staging.blocks().at(leaf);
        A4_CHECK(staging.write(ByteOffset(place->value() * block_size), bytes));
        staging.drop_block(leaf);
        ext2_inode inode{};
        A4_CHECK(check_errcode(ext2fs_read_inode(fs, *number, &inode), what));
        ext3_extent_idx* entry = entry_for(inode, leaf);
        if (entry == nullptr) return fail(EIO, "{}: its tree changed under an operation", what);
        entry->ei_leaf = static_cast<uint32_t>(place->value());
        entry->ei_leaf_hi = static_cast<uint16_t>(place->value() >> 32);
        A4_CHECK(check_errcode(ext2fs_write_inode(fs, *number, &inode), what));
        given_up.emplace_back(leaf);
    }
    return given_up;
}

Result<> Transaction::commit(Order order) {
    A4_CHECK(volume_.usable());
    ext2_filsys fs = volume_.fs();
    const uint64_t block_size = volume_.block_size().value();

    // Everything that can fail without writing, first: checksums, images of what is there now.
    const bool freeing = order == Order::Freeing;
    const auto given_up = freeing ? std::vector<Pblk>{} : A4_TRY(move_leaves());
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
        Images* images = first_inode_in(fs, block) ? &inodes : &tree;
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
    if (given_up.empty()) return {};
    return free_blocks(given_up);
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
