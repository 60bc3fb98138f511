#include "ext4/bitmap_rebuild.h"

#include <algorithm>
#include <map>
#include <set>

#include "ext4/block_claims.h"
#include "ext4/claim_map.h"
#include "ext4/errcode.h"
#include "ext4/transaction.h"

namespace atomic4 {

namespace {

struct Claims {
    ClaimMap map;
    // The first inode that can't be read to its end, that has a wrong checksum, or that claims what
    // lies outside the volume; 0 if there is none.
    ext2_ino_t unreadable = 0;
    ext2_ino_t wrong_checksum = 0;
    ext2_ino_t outside = 0;
    // Metadata that an inode claims, too: nothing is written there.
    std::set<uint64_t> contested;
};

constexpr uint64_t kContestedMost = 1 << 16;

// It claims what is reserved for descriptors.
bool claims_metadata_rightly(ext2_ino_t number) {
    return number == EXT2_RESIZE_INO;
}

Result<Claims> claims_of_all(Volume& volume, const std::vector<PblkRun>& also) {
    ext2_filsys fs = volume.fs();
    Claims claims{A4_TRY(ClaimMap::make(fs)), 0, 0, 0, {}};
    const uint64_t first = fs->super->s_first_data_block;
    const uint64_t end = ext2fs_blocks_count(fs->super);
    for (const PblkRun& run : also) claims.map.add(run);
    if (ext2fs_has_feature_mmp(fs->super))
        claims.map.add({Pblk(fs->super->s_mmp_block), Blocks(1)});
    volume.fixed_blocks().for_each_in(first, end - 1, [&](uint64_t block, uint64_t n) {
        claims.map.add({Pblk(block), Blocks(n)});
    });
    const auto note = [](ext2_ino_t& which, ext2_ino_t number) {
        if (which == 0) which = number;
    };
    A4_CHECK(for_each_claiming_inode(volume, [&](const ClaimingInode& inode) {
        bool inside = true;
        for (const BlockClaim& claim : inode.claims) {
            inside = claims.map.add(claim.run) && inside;
            if (claims_metadata_rightly(inode.number)) continue;
            const uint64_t begin = std::max(claim.run.start.value(), first);
            const uint64_t stop = std::min((claim.run.start + claim.run.length).value(), end);
            if (begin >= stop) continue;
            volume.fixed_blocks().for_each_in(begin, stop - 1, [&](uint64_t block, uint64_t n) {
                for (uint64_t i = 0; i < std::min<uint64_t>(n, kContestedMost); ++i)
                    claims.contested.insert(block + i);
            });
        }
        if (!inode.readable) note(claims.unreadable, inode.number);
        if (!inode.checksum_ok) note(claims.wrong_checksum, inode.number);
        if (!inside) note(claims.outside, inode.number);
    }));
    return claims;
}

bool has_orphans(ext2_filsys fs) {
    return fs->super->s_last_orphan != 0 || ext2fs_has_feature_orphan_present(fs->super);
}

// A group's part of the map.
Result<GroupBitmaps::Bits> claims_in(Volume& volume, const Claims& claims, uint32_t group) {
    ext2_filsys fs = volume.fs();
    const GroupBitmaps& bitmaps = volume.block_bitmaps();
    GroupBitmaps::Bits bits(fs->blocksize, 0);
    A4_CHECK(check_errcode(
        ext2fs_get_block_bitmap_range2(claims.map.raw(), EXT2FS_B2C(fs, bitmaps.block_of(group, 0)),
                                       bitmaps.bits_in(group), bits.data()),
        "map of claims"));
    return bits;
}

}  // namespace

Result<> prove_all_bitmaps(Volume& volume, Unclaimed unclaimed, const std::vector<PblkRun>& also) {
    ext2_filsys fs = volume.fs();
    GroupBitmaps& bitmaps = volume.block_bitmaps();
    const bool exact = unclaimed == Unclaimed::BecomesFree;
    const Claims claims = A4_TRY(claims_of_all(volume, also));
    bool readable = claims.unreadable == 0 && !has_orphans(fs);
    for (dgrp_t group = 0; group < fs->group_desc_count; ++group)
        readable = readable && !volume.descriptors().is_frozen(group);
    if (exact && !readable)
        return fail(EUCLEAN, "which blocks are free can't be told: the volume needs e2fsck");
    Transaction transaction(volume);
    std::vector<uint32_t> changed;
    for (dgrp_t group = 0; group < fs->group_desc_count; ++group) {
        if (claims.contested.contains(ext2fs_block_bitmap_loc(fs, group))) {
            bitmaps.mark_damaged(
                group, Error{EUCLEAN, fmt::format("group {}: an inode claims the block of its "
                                                  "bitmap: the volume needs e2fsck",
                                                  group)});
            continue;
        }
        auto found = bitmaps.get(group);
        if (!found && !bitmaps.is_damaged(group)) return fail(std::move(found).error());
        const bool damaged = !found;
        if (damaged && volume.descriptors().is_frozen(group)) continue;
        GroupBitmaps::Bits bits = damaged ? A4_TRY(bitmaps.read_unproved(group)) : **found;
        const GroupBitmaps::Bits claimed = A4_TRY(claims_in(volume, claims, group));
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
    if (has_orphans(fs))
        return fail(EUCLEAN, "the volume lists orphaned inodes: the volume needs e2fsck");

    const Claims claims = A4_TRY(claims_of_all(volume, {}));
    for (const auto& [number, what] : {std::pair{claims.unreadable, "its blocks can't be read"},
                                       std::pair{claims.wrong_checksum, "it has a wrong checksum"},
                                       std::pair{claims.outside, "a block outside the volume"}}) {
        if (number != 0)
            return fail(EUCLEAN, "inode {}: {}: the volume needs e2fsck", number, what);
    }

    std::map<uint32_t, GroupBitmaps::Bits> groups;
    for (const auto& [group, why] : bitmaps.damaged()) {
        if (claims.contested.contains(ext2fs_block_bitmap_loc(fs, group)))
            return fail(EUCLEAN, "{}, and an inode claims its block: the volume needs e2fsck",
                        why.message);
        GroupBitmaps::Bits& bits = groups[group] = A4_TRY(bitmaps.read_unproved(group));
        const GroupBitmaps::Bits claimed = A4_TRY(claims_in(volume, claims, group));
        for (size_t i = 0; i < bits.size(); ++i) bits[i] |= claimed[i];
        done.push_back(
            fmt::format("{}: its free blocks were proved against all inodes", why.message));
    }
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
