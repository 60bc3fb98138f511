// Power-of-two aligned allocation (RFC patches 2 and 3; the kernel's CR_POWER2_ALIGNED).
//
// Alignment equals length: a run of 2^order blocks starts at a multiple of 2^order, absolute from
// the start of the device. Groups are not aligned that way (with 1 KiB blocks the first group
// starts at block 1, which is what John Garry's WARN in the RFC thread was about), so the allocator
// looks at *zones*: zone z is the blocks [z·Z, (z+1)·Z), Z = 8 × block size, whatever groups they
// lie in. Every aligned run of up to Z blocks lies in one zone.
//
// With bigalloc whole clusters are allocated: what is asked for is rounded up to one, and what is
// marked is rounded outwards. A cluster begins at a multiple of its size, so alignment in blocks
// holds. Whether the blocks of a cluster that is freed are nobody's is for the caller to know.
//
// State is lazy: a zone starts with an upper bound from the descriptors' free counts, and its
// largest aligned order is computed when it is first asked. A request that fails has read every
// zone that could have served it; then ENOSPC is certain, and nothing has changed.
//
// Groups whose bitmap is damaged (group_bitmaps.h) are left out, as the kernel does. If what they
// may have free could have served a request that nobody else can, it is EUCLEAN, not ENOSPC. Blocks
// freed in them stay marked as in use: e2fsck's work.
//
// Reserved runs (inode_prealloc.h) exist in memory only and hide from everybody else's requests.
//
// Root's share (s_r_blocks_count) is for root, s_def_resuid and s_def_resgid.
#pragma once

#include <ext2fs/ext2fs.h>

#include <algorithm>
#include <map>
#include <vector>

#include "ext4/group_bitmaps.h"
#include "ext4/zone_index.h"

namespace atomic4 {

struct PblkRun {
    Pblk start;
    Blocks length;
    bool operator==(const PblkRun&) const = default;
};

// Whether an allocation failed since there is nothing to be had, so that asking for less, or again
// with reserved runs released, makes sense.
inline bool nothing_to_be_had(const Error& error) {
    return error.code == ENOSPC || error.code == EUCLEAN;
}

class AlignedAllocator {
  public:
    AlignedAllocator(ext2_filsys fs, GroupBitmaps& bitmaps, bool may_use_reserved);

    // One run of 2^order blocks (or a cluster) aligned to its length, near goal. ENOSPC: there is
    // none; EUCLEAN: none outside damaged groups.
    Result<PblkRun> allocate(int order, Pblk goal);
    // One free block (a cluster's first) from where it spoils the least aligned space; not marked.
    Result<Pblk> choose_block(Pblk goal);
    // Neither in use nor reserved. Outside the volume, or in a damaged group: false.
    Result<bool> is_free(Pblk block);
    // Marks a chosen block, or its cluster.
    Result<> take(Pblk block) { return mark({block, Blocks(1)}, true); }
    // count runs of 2^order blocks (a cluster at least), each aligned, merged where they touch; all
    // or nothing.
    Result<std::vector<PblkRun>> allocate_units(int order, uint64_t count, Pblk goal);
    // What lies in a damaged group stays in use.
    Result<> free(PblkRun run);

    // Keeps a run from everybody else without marking it in use.
    Result<PblkRun> reserve(int order, Pblk goal);
    // Marks part of a reserved run as in use.
    Result<> take_reserved(PblkRun part);
    void release_reserved(PblkRun run);
    void release_all_reserved();

    // libext2fs changed a block itself.
    void block_changed(Pblk block) { forget_zone(zone_of(block)); }
    // After an aborted operation: what was learnt of these groups is void.
    void groups_changed(const std::vector<uint32_t>& groups);

    int max_order() const { return max_order_; }
    // Of a cluster; 0 without bigalloc.
    int cluster_order() const { return fs_->cluster_ratio_bits; }
    Blocks zone_size() const { return Blocks(uint64_t{1} << max_order_); }
    uint32_t zone_of(Pblk block) const {
        return static_cast<uint32_t>(block.value() >> max_order_);
    }
    // Free blocks this user may have.
    uint64_t available() const;

  private:
    using Words = std::vector<uint64_t>;  // a zone's blocks, bit set = free
    Result<Words> free_words(uint32_t zone);
    Result<std::optional<Pblk>> find_in_zone(uint32_t zone, int order, Pblk goal);
    Result<Pblk> find(int order, Pblk goal, bool tight);
    Result<> mark(PblkRun run, bool used);
    int at_least_a_cluster(int order) const { return std::max(order, cluster_order()); }
    Result<> check_share(uint64_t blocks) const;
    void forget_zone(uint32_t zone);
    enum class Damaged { Left, Counted };
    uint64_t free_bound(uint32_t zone, Damaged damaged) const;
    Error no_run(int order) const;

    ext2_filsys fs_;
    GroupBitmaps& bitmaps_;
    bool may_use_reserved_;
    int max_order_;
    ZoneIndex index_;
    std::map<Pblk, Blocks> reserved_;
};

}  // namespace atomic4
