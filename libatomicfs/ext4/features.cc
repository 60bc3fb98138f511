#include "ext4/features.h"

#include <algorithm>

#include "ext4/format.h"

namespace atomic4 {

namespace {

struct Refusal {
    uint32_t bit;
    const char* name;
    const char* advice;
};

constexpr const char* kNotYet = "atomic4 does not support it";

constexpr Refusal kRefusedCompat[] = {
    {EXT2_FEATURE_COMPAT_IMAGIC_INODES, "imagic_inodes", kNotYet},
};

constexpr Refusal kRefusedIncompat[] = {
    {EXT2_FEATURE_INCOMPAT_COMPRESSION, "compression", kNotYet},
    {EXT3_FEATURE_INCOMPAT_JOURNAL_DEV, "journal_dev",
     "this is an external journal, not a filesystem"},
    {EXT4_FEATURE_INCOMPAT_DIRDATA, "dirdata", kNotYet},
};

constexpr Refusal kRefusedRoCompat[] = {
    {EXT4_FEATURE_RO_COMPAT_QUOTA, "quota",
     "its usage files could not be kept right: clear it with tune2fs -O ^quota"},
    {EXT4_FEATURE_RO_COMPAT_READONLY, "read-only", "clear it with tune2fs -O ^read-only"},
    {EXT4_FEATURE_RO_COMPAT_SHARED_BLOCKS, "shared_blocks",
     "files share blocks there: clear it with e2fsck -E unshare_blocks"},
};

// Aligned runs are looked for in zones of 32768 blocks or less (aligned_allocator.h).
constexpr uint32_t kMaxClusterOrder = 13;

constexpr uint32_t kKnownCompat = EXT2_LIB_FEATURE_COMPAT_SUPP | kFeatureCompatAtomic4;
// The header leaves mmp out where it doesn't know how libext2fs was built: mmp.cc finds out.
constexpr uint32_t kKnownIncompat =
    EXT2_LIB_FEATURE_INCOMPAT_SUPP | EXT4_FEATURE_INCOMPAT_MMP | kFeatureIncompatNeedsReplay;
constexpr uint32_t kKnownRoCompat = EXT2_LIB_FEATURE_RO_COMPAT_SUPP;

template <size_t N>
Result<> refuse(const char* word, uint32_t features, uint32_t known, const Refusal (&table)[N]) {
    for (const Refusal& refusal : table) {
        if ((features & refusal.bit) != 0)
            return fail(EOPNOTSUPP, "the volume has the feature {}: {}", refusal.name,
                        refusal.advice);
    }
    if ((features & ~known) != 0)
        return fail(EOPNOTSUPP,
                    "the volume has unknown {} features 0x{:x}: use a newer atomic4 and e2fsprogs",
                    word, features & ~known);
    return {};
}

template <size_t N>
bool names(const Refusal (&table)[N], std::string_view name) {
    return std::ranges::any_of(table, [&](const Refusal& refusal) { return name == refusal.name; });
}

Result<> check_clusters(const ext2_super_block& super) {
    const uint32_t order = super.s_log_cluster_size - super.s_log_block_size;
    // libext2fs has seen to it that they are no smaller than a block.
    if (order > kMaxClusterOrder)
        return fail(EOPNOTSUPP, "the volume has clusters of {} blocks: atomic4 supports up to {}",
                    uint64_t{1} << order, 1u << kMaxClusterOrder);
    const uint64_t blocks = super.s_blocks_count + (uint64_t{super.s_blocks_count_hi} << 32);
    if (blocks % (uint64_t{1} << order) != 0)
        return fail(EOPNOTSUPP,
                    "the volume ends in the middle of a cluster: shrink it by the last "
                    "{} blocks with resize2fs",
                    blocks % (uint64_t{1} << order));
    return {};
}

}  // namespace

bool is_refused_feature(std::string_view name) {
    return names(kRefusedCompat, name) || names(kRefusedIncompat, name) ||
           names(kRefusedRoCompat, name);
}

Result<> check_features(const ext2_super_block& super) {
    A4_CHECK(refuse("compat", super.s_feature_compat, kKnownCompat, kRefusedCompat));
    A4_CHECK(refuse("incompat", super.s_feature_incompat, kKnownIncompat, kRefusedIncompat));
    A4_CHECK(refuse("ro_compat", super.s_feature_ro_compat, kKnownRoCompat, kRefusedRoCompat));
    // A volume of ours has them, whatever its checksum says.
    const bool ours = (super.s_feature_compat & kFeatureCompatAtomic4) != 0;
    const bool extents = (super.s_feature_incompat & EXT3_FEATURE_INCOMPAT_EXTENTS) != 0;
    if (super.s_rev_level < EXT2_DYNAMIC_REV && (ours || extents))
        return fail(EUCLEAN, "the superblock is damaged (revision 0): the volume needs e2fsck");
    if (ours && !extents)
        return fail(EUCLEAN, "the superblock is damaged (no extents): the volume needs e2fsck");
    if (!extents) {
        return fail(EOPNOTSUPP,
                    "the volume is not an ext4 with extents (the feature extent is off): turn it "
                    "on with tune2fs -O extent");
    }
    if ((super.s_feature_compat & EXT3_FEATURE_COMPAT_HAS_JOURNAL) != 0 &&
        super.s_journal_inum == 0) {
        if (super.s_journal_dev == 0 && std::ranges::count(super.s_journal_uuid, 0) == 16)
            return fail(EUCLEAN, "the superblock is damaged (no journal): the volume needs e2fsck");
        return fail(EOPNOTSUPP, "the volume keeps its journal on another device: {}", kNotYet);
    }
    if ((super.s_feature_ro_compat & EXT4_FEATURE_RO_COMPAT_BIGALLOC) != 0)
        A4_CHECK(check_clusters(super));
    return {};
}

}  // namespace atomic4
