#include "ext4/bitmap_rebuild.h"

#include "ext4/block_claims.h"
#include "ext4/errcode.h"
#include "ext4/transaction.h"

namespace atomic4 {

namespace {

struct FreeScan {
    void operator()(ext2_struct_inode_scan* scan) const { ext2fs_close_inode_scan(scan); }
};

// The bitmaps that are being rebuilt, and what is marked in them.
class Marks {
  public:
    Marks(ext2_filsys fs, std::map<uint32_t, GroupBitmaps::Bits>& groups)
        : fs_(fs), groups_(groups) {}

    void mark(uint64_t block) {
        if (block < fs_->super->s_first_data_block || block >= ext2fs_blocks_count(fs_->super)) {
            impossible_ = true;
            return;
        }
        const auto found = groups_.find(ext2fs_group_of_blk2(fs_, block));
        if (found == groups_.end()) return;
        const uint64_t bit =
            (block - ext2fs_group_first_block2(fs_, found->first)) >> fs_->cluster_ratio_bits;
        found->second[bit / 8] |= static_cast<uint8_t>(1u << (bit % 8));
    }
    bool impossible() const { return impossible_; }

  private:
    ext2_filsys fs_;
    std::map<uint32_t, GroupBitmaps::Bits>& groups_;
    bool impossible_ = false;
};

extern "C" {
static int atomic4_mark_block(ext2_filsys, blk64_t* block, e2_blkcnt_t, blk64_t, int, void* marks) {
    static_cast<Marks*>(marks)->mark(*block);
    return 0;
}
}

// What mke2fs laid down, wherever flex_bg has put it.
void mark_metadata(ext2_filsys fs, Marks& marks) {
    if (ext2fs_has_feature_mmp(fs->super)) marks.mark(fs->super->s_mmp_block);
    for (dgrp_t group = 0; group < fs->group_desc_count; ++group) {
        marks.mark(ext2fs_block_bitmap_loc(fs, group));
        marks.mark(ext2fs_inode_bitmap_loc(fs, group));
        for (uint32_t i = 0; i < fs->inode_blocks_per_group; ++i)
            marks.mark(ext2fs_inode_table_loc(fs, group) + i);
    }
}

Result<> mark_inodes(ext2_filsys fs, Marks& marks) {
    constexpr int kBufferBlocks = 128;
    ext2_inode_scan raw = nullptr;
    A4_CHECK(check_errcode(ext2fs_open_inode_scan(fs, kBufferBlocks, &raw), "inode scan"));
    const std::unique_ptr<ext2_struct_inode_scan, FreeScan> scan(raw);
    for (;;) {
        ext2_ino_t number = 0;
        ext2_inode inode{};
        A4_CHECK(check_errcode(ext2fs_get_next_inode(scan.get(), &number, &inode), "inode scan"));
        if (number == 0) return {};
        // Reserved inodes can own blocks without having links.
        if (inode.i_links_count == 0 && (inode.i_blocks == 0 || inode.i_dtime != 0)) continue;
        if (const uint64_t block = ext2fs_file_acl_block(fs, &inode); block != 0) marks.mark(block);
        const std::string what = fmt::format("inode {}", number);
        if (ext2fs_inode_has_valid_blocks2(fs, &inode) != 0) {
            A4_CHECK(check_errcode(ext2fs_block_iterate3(fs, number, BLOCK_FLAG_READ_ONLY, nullptr,
                                                         atomic4_mark_block, &marks),
                                   what));
        }
        if (marks.impossible())
            return fail(EUCLEAN, "{}: a block outside the volume: the volume needs e2fsck", what);
    }
}

using RawMap = std::remove_pointer_t<ext2fs_block_bitmap>;
struct FreeMap {
    void operator()(RawMap* map) const { ext2fs_free_block_bitmap(map); }
};
using ClaimMap = std::unique_ptr<RawMap, FreeMap>;

// By clusters; memory goes with the pieces, not with the volume.
Result<ClaimMap> map_of_claims(Volume& volume, bool all_readable) {
    ext2_filsys fs = volume.fs();
    fs->default_bitmap_type = EXT2FS_BMAP64_RBTREE;
    ext2fs_block_bitmap raw = nullptr;
    A4_CHECK(check_errcode(ext2fs_allocate_block_bitmap(fs, "claims", &raw), "map of claims"));
    ClaimMap map(raw);
    const uint64_t first = fs->super->s_first_data_block;
    const uint64_t end = ext2fs_blocks_count(fs->super);
    const auto mark = [&](PblkRun run) {
        const uint64_t from = std::max(run.start.value(), first);
        const uint64_t to = std::min((run.start + run.length).value(), end);
        if (from < to) ext2fs_mark_block_bitmap_range2(raw, from, static_cast<unsigned>(to - from));
    };
    if (ext2fs_has_feature_mmp(fs->super)) mark({Pblk(fs->super->s_mmp_block), Blocks(1)});
    volume.fixed_blocks().for_each_in(
        first, end - 1, [&](uint64_t block, uint64_t n) { mark({Pblk(block), Blocks(n)}); });
    bool readable = true;
    A4_CHECK(for_each_claiming_inode(volume, [&](const ClaimingInode& inode) {
        for (const BlockClaim& claim : inode.claims) mark(claim.run);
        readable = readable && inode.readable;
    }));
    const bool orphans =
        fs->super->s_last_orphan != 0 || ext2fs_has_feature_orphan_present(fs->super);
    for (dgrp_t group = 0; group < fs->group_desc_count; ++group)
        readable = readable && !volume.descriptors().is_frozen(group);
    if (all_readable && (!readable || orphans))
        return fail(EUCLEAN, "which blocks are free can't be told: the volume needs e2fsck");
    return map;
}

}  // namespace

Result<> prove_all_bitmaps(Volume& volume, Unclaimed unclaimed) {
    ext2_filsys fs = volume.fs();
    GroupBitmaps& bitmaps = volume.block_bitmaps();
    const bool exact = unclaimed == Unclaimed::BecomesFree;
    const ClaimMap map = A4_TRY(map_of_claims(volume, exact));
    Transaction transaction(volume);
    std::vector<uint32_t> changed;
    for (dgrp_t group = 0; group < fs->group_desc_count; ++group) {
        auto found = bitmaps.get(group);
        if (!found && !bitmaps.is_damaged(group)) return fail(std::move(found).error());
        const bool damaged = !found;
        if (damaged && volume.descriptors().is_frozen(group)) continue;
        GroupBitmaps::Bits bits = damaged ? A4_TRY(bitmaps.read_unproved(group)) : **found;
        GroupBitmaps::Bits claimed(fs->blocksize, 0);
        A4_CHECK(check_errcode(
            ext2fs_get_block_bitmap_range2(map.get(), EXT2FS_B2C(fs, bitmaps.block_of(group, 0)),
                                           bitmaps.bits_in(group), claimed.data()),
            "map of claims"));
        bool wrong = false;
        for (uint32_t bit = 0; bit < bitmaps.bits_in(group); ++bit) {
            const auto mask = static_cast<uint8_t>(1u << (bit % 8));
            const bool is = (claimed[bit / 8] & mask) != 0;
            const bool was = (bits[bit / 8] & mask) != 0;
            if (is == was || (was && !exact)) continue;
            wrong = true;
            bits[bit / 8] ^= mask;
        }
        if (!damaged && !wrong) continue;
        A4_CHECK(bitmaps.replace(group, std::move(bits)));
        changed.push_back(group);
    }
    volume.allocator().groups_changed(changed);
    return transaction.commit();
}

Result<std::vector<std::string>> rebuild_damaged_bitmaps(Volume& volume) {
    ext2_filsys fs = volume.fs();
    GroupBitmaps& bitmaps = volume.block_bitmaps();
    std::vector<std::string> done;
    if (bitmaps.damaged().empty()) return done;
    if (fs->super->s_last_orphan != 0 || ext2fs_has_feature_orphan_present(fs->super))
        return fail(EUCLEAN, "the volume lists orphaned inodes: the volume needs e2fsck");

    std::map<uint32_t, GroupBitmaps::Bits> groups;
    for (const auto& [group, why] : bitmaps.damaged()) {
        groups[group] = A4_TRY(bitmaps.read_unproved(group));
        done.push_back(
            fmt::format("{}: its free blocks were proved against all inodes", why.message));
    }
    Marks marks(fs, groups);
    mark_metadata(fs, marks);
    if (marks.impossible())
        return fail(EUCLEAN, "metadata outside the volume: the volume needs e2fsck");
    A4_CHECK(mark_inodes(fs, marks));

    Transaction transaction(volume);
    std::vector<uint32_t> changed;
    for (auto& [group, bits] : groups) {
        A4_CHECK(bitmaps.replace(group, std::move(bits)));
        changed.push_back(group);
    }
    volume.allocator().groups_changed(changed);
    A4_CHECK(transaction.commit());
    return done;
}

}  // namespace atomic4
