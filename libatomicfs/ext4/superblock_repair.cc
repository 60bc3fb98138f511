#include "ext4/superblock_repair.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <vector>

#include "base/crc32c.h"
#include "ext4/format.h"
#include "ext4/superblock_copies.h"

namespace atomic4 {

namespace {

// As superblock_copies.cc: a superblock is used as it stands on the disk.
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "atomic4 needs a little-endian host");

// What never changes, or in all copies at once.
struct Field {
    size_t offset;
    size_t size;
    const char* name;
};
#define FIELD(member, name)                                                        \
    Field {                                                                        \
        offsetof(ext2_super_block, member), sizeof(ext2_super_block::member), name \
    }
constexpr Field kConstant[] = {
    FIELD(s_magic, "magic"),
    FIELD(s_log_block_size, "block size"),
    FIELD(s_log_cluster_size, "cluster size"),
    FIELD(s_blocks_count, "block count"),
    FIELD(s_blocks_count_hi, "block count"),
    FIELD(s_inodes_count, "inode count"),
    FIELD(s_first_data_block, "first block"),
    FIELD(s_blocks_per_group, "blocks per group"),
    FIELD(s_clusters_per_group, "clusters per group"),
    FIELD(s_inodes_per_group, "inodes per group"),
    FIELD(s_creator_os, "creator"),
    FIELD(s_rev_level, "revision"),
    FIELD(s_first_ino, "first inode"),
    FIELD(s_inode_size, "inode size"),
    FIELD(s_uuid, "UUID"),
    FIELD(s_reserved_gdt_blocks, "reserved descriptor blocks"),
    FIELD(s_journal_uuid, "journal"),
    FIELD(s_journal_inum, "journal"),
    FIELD(s_journal_dev, "journal"),
    FIELD(s_hash_seed, "hash seed"),
    FIELD(s_def_hash_version, "hash version"),
    FIELD(s_desc_size, "descriptor size"),
    FIELD(s_first_meta_bg, "first meta group"),
    FIELD(s_mkfs_time, "time of creation"),
    FIELD(s_min_extra_isize, "extra inode size"),
    FIELD(s_want_extra_isize, "extra inode size"),
    FIELD(s_mmp_block, "MMP block"),
    FIELD(s_log_groups_per_flex, "flex group size"),
    FIELD(s_checksum_type, "checksum type"),
    FIELD(s_encryption_level, "encryption"),
    FIELD(s_usr_quota_inum, "quota inode"),
    FIELD(s_grp_quota_inum, "quota inode"),
    FIELD(s_backup_bgs, "backup groups"),
    FIELD(s_encrypt_algos, "encryption"),
    FIELD(s_encrypt_pw_salt, "encryption"),
    FIELD(s_prj_quota_inum, "quota inode"),
    FIELD(s_checksum_seed, "checksum seed"),
    FIELD(s_encoding, "encoding"),
    FIELD(s_encoding_flags, "encoding"),
    FIELD(s_orphan_file_inum, "orphan file"),
};
#undef FIELD

// Features that come and go in the primary alone.
constexpr uint32_t kOwnCompat = kFeatureCompatAtomic4 | EXT2_FEATURE_COMPAT_EXT_ATTR;
constexpr uint32_t kOwnIncompat = kFeatureIncompatNeedsReplay | EXT3_FEATURE_INCOMPAT_RECOVER;
constexpr uint32_t kOwnRoCompat =
    EXT2_FEATURE_RO_COMPAT_LARGE_FILE | EXT4_FEATURE_RO_COMPAT_ORPHAN_PRESENT;

uint32_t checksum_of(const ext2_super_block& super) {
    return crc32c(
        ~0u, std::as_bytes(std::span(&super, 1)).first(offsetof(ext2_super_block, s_checksum)));
}

// The first constant field in which they differ.
const char* difference(const ext2_super_block& a, const ext2_super_block& b) {
    const auto* left = reinterpret_cast<const std::byte*>(&a);
    const auto* right = reinterpret_cast<const std::byte*>(&b);
    for (const Field& field : kConstant) {
        if (std::memcmp(left + field.offset, right + field.offset, field.size) != 0)
            return field.name;
    }
    const bool features = ((a.s_feature_compat ^ b.s_feature_compat) & ~kOwnCompat) == 0 &&
                          ((a.s_feature_incompat ^ b.s_feature_incompat) & ~kOwnIncompat) == 0 &&
                          ((a.s_feature_ro_compat ^ b.s_feature_ro_compat) & ~kOwnRoCompat) == 0;
    return features ? nullptr : "features";
}

struct Place {
    uint32_t group;
    uint64_t offset;
};

// Where backups lie by the primary's own word; and, if that is what is damaged, by mke2fs's
// defaults, so that the message can say so.
std::vector<Place> backup_places(const ext2_super_block& super, uint64_t device_size) {
    std::vector<Place> places;
    // With 1 KiB blocks the first group begins at block 1, unless it is made of clusters.
    uint64_t first_of_1k = 1;
    const auto add = [&](uint64_t block_size, uint64_t per_group, uint64_t group) {
        const uint64_t first = block_size == 1024 ? first_of_1k : 0;
        const uint64_t offset = (first + per_group * group) * block_size;
        if (group == 0 || offset + sizeof super > device_size) return;
        const bool known = std::any_of(places.begin(), places.end(),
                                       [&](const Place& place) { return place.offset == offset; });
        if (!known) places.push_back({static_cast<uint32_t>(group), offset});
    };
    const auto add_all = [&](uint64_t block_size, uint64_t per_group) {
        if (per_group == 0) return;
        add(block_size, per_group, 1);
        for (const uint32_t group : super.s_backup_bgs) add(block_size, per_group, group);
        const uint64_t groups = device_size / block_size / per_group + 1;
        for (const uint64_t base : {3, 5, 7}) {
            for (uint64_t group = base; group < groups; group *= base)
                add(block_size, per_group, group);
        }
    };
    const bool bigalloc = (super.s_feature_ro_compat & EXT4_FEATURE_RO_COMPAT_BIGALLOC) != 0;
    if (bigalloc && super.s_log_cluster_size != 0) first_of_1k = 0;
    if (super.s_log_block_size <= 6 &&
        (bigalloc || super.s_blocks_per_group <= 8 * (uint64_t{1024} << super.s_log_block_size)))
        add_all(uint64_t{1024} << super.s_log_block_size, super.s_blocks_per_group);
    first_of_1k = 1;
    for (const uint64_t block_size : {1024, 2048, 4096, 65536})
        add_all(block_size, block_size == 65536 ? 65528 : block_size * 8);
    return places;
}

}  // namespace

Result<std::optional<SuperblockProof>> prove_superblock(Device& device) {
    std::optional<SuperblockProof> proof;
    ext2_super_block primary;
    const auto bytes = std::as_writable_bytes(std::span(&primary, 1));
    if (device.size().value() < kPrimaryOffset + sizeof primary) return proof;
    A4_CHECK(device.read(ByteOffset(kPrimaryOffset), bytes).context("superblock"));
    if (primary.s_magic != EXT2_SUPER_MAGIC ||
        (primary.s_feature_ro_compat & EXT4_FEATURE_RO_COMPAT_METADATA_CSUM) == 0 ||
        primary.s_checksum == checksum_of(primary))
        return proof;

    proof.emplace();
    proof->why = "and no valid copy of it was found";
    ext2_super_block copy;
    for (const Place& place : backup_places(primary, device.size().value())) {
        A4_CHECK(device.read(ByteOffset(place.offset), std::as_writable_bytes(std::span(&copy, 1)))
                     .context(fmt::format("superblock copy in group {}", place.group)));
        const bool valid =
            copy.s_magic == EXT2_SUPER_MAGIC && copy.s_checksum == checksum_of(copy) &&
            std::memcmp(copy.s_uuid, primary.s_uuid, sizeof copy.s_uuid) == 0 &&
            copy.s_block_group_nr == static_cast<uint16_t>(std::min(place.group, 0xffffu));
        if (!valid) continue;
        const char* differs = difference(primary, copy);
        if (differs != nullptr) {
            proof->why =
                fmt::format("and its copy in group {} differs in the {}", place.group, differs);
            continue;
        }
        primary.s_block_group_nr = 0;
        primary.s_checksum = checksum_of(primary);
        proof->repaired = primary;
        proof->why = fmt::format("agrees with its copy in group {}", place.group);
        return proof;
    }
    return proof;
}

}  // namespace atomic4
