#include "ext4/superblock_copies.h"

#include <algorithm>
#include <cstring>
#include <ctime>

#include "base/crc32c.h"
#include "ext4/errcode.h"
#include "ext4/format.h"

namespace atomic4 {

namespace {

// libext2fs keeps the superblock in host order; the copies are written as they stand in memory.
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "atomic4 needs a little-endian host");

constexpr uint64_t kSuperSize = 1024;
// A superblock that is half new fails its checksum and nothing mounts (F18); the 4 KiB around it
// are what devices write whole.
constexpr uint64_t kPrimaryWrite = 4096;

static_assert(sizeof(ext2_super_block) == kSuperSize);

// The groups that have a superblock copy.
std::vector<uint32_t> backup_groups(ext2_filsys fs) {
    std::vector<uint32_t> groups;
    for (dgrp_t group = 1; group < fs->group_desc_count; ++group) {
        if (ext2fs_bg_has_super(fs, group)) groups.push_back(group);
    }
    return groups;
}

bool is_power_of(uint32_t value, uint32_t base) {
    while (value % base == 0) value /= base;
    return value == 1;
}

std::vector<uint32_t> some_of(const std::vector<uint32_t>& groups) {
    constexpr size_t kFew = 64;
    if (groups.size() <= kFew) return groups;
    std::vector<uint32_t> some;
    for (const uint32_t group : groups) {
        if (is_power_of(group, 3) || is_power_of(group, 5) || is_power_of(group, 7) ||
            group == groups.back())
            some.push_back(group);
    }
    return some;
}

bool says_that_it_lies_at(const SuperblockPlace& place, const ext2_super_block& super) {
    if (super.s_magic != EXT2_SUPER_MAGIC || super.s_log_block_size > 6 ||
        uint64_t{1024} << super.s_log_block_size != place.block_size.value() ||
        super.s_blocks_per_group == 0)
        return false;
    const uint64_t group = (place.block - super.s_first_data_block) / super.s_blocks_per_group;
    if (group * super.s_blocks_per_group + super.s_first_data_block != place.block ||
        super.s_block_group_nr != std::min<uint64_t>(group, 0xffff))
        return false;
    return superblock_checksum_is_right(super);
}

ByteOffset copy_offset(ext2_filsys fs, uint32_t group) {
    return ByteOffset(ext2fs_group_first_block2(fs, group) * fs->blocksize);
}

}  // namespace

bool has_superblock_copy(const ext2_super_block& super, uint32_t group) {
    if (group == 0) return true;
    if ((super.s_feature_compat & EXT4_FEATURE_COMPAT_SPARSE_SUPER2) != 0)
        return group == super.s_backup_bgs[0] || group == super.s_backup_bgs[1];
    if (group <= 1 || (super.s_feature_ro_compat & EXT2_FEATURE_RO_COMPAT_SPARSE_SUPER) == 0)
        return true;
    return group % 2 == 1 &&
           (is_power_of(group, 3) || is_power_of(group, 5) || is_power_of(group, 7));
}

bool superblock_checksum_is_right(const ext2_super_block& super) {
    const auto summed =
        std::as_bytes(std::span(&super, 1)).first(offsetof(ext2_super_block, s_checksum));
    return (super.s_feature_ro_compat & EXT4_FEATURE_RO_COMPAT_METADATA_CSUM) == 0 ||
           super.s_checksum == crc32c(~uint32_t{0}, summed);
}

Result<> write_primary_superblock(ext2_filsys fs, Device& device) {
    std::vector<std::byte> block(kPrimaryWrite);
    A4_CHECK(device.read(ByteOffset(0), block).context("primary superblock"));
    // Not a precise clock: e2fsck, which may come at once, compares with time(2), and that can be a
    // tick behind and in the second before.
    const auto now = static_cast<uint64_t>(fs->now != 0 ? fs->now : std::time(nullptr));
    fs->super->s_wtime = static_cast<uint32_t>(now);
    fs->super->s_wtime_hi = static_cast<uint8_t>(now >> 32);
    fs->super->s_block_group_nr = 0;
    A4_CHECK(check_errcode(ext2fs_superblock_csum_set(fs, fs->super), "superblock checksum"));
    std::memcpy(block.data() + kPrimaryOffset, fs->super, kSuperSize);
    return device.write(ByteOffset(0), block).context("primary superblock");
}

Result<> write_backup_superblocks(ext2_filsys fs, Device& device) {
    ext2_super_block copy;
    for (const uint32_t group : backup_groups(fs)) {
        std::memcpy(&copy, fs->super, kSuperSize);
        copy.s_block_group_nr = static_cast<uint16_t>(group > 0xffff ? 0xffff : group);
        copy.s_state = static_cast<uint16_t>(copy.s_state & ~EXT2_VALID_FS);
        ext2fs_clear_feature_journal_needs_recovery(&copy);
        // Only the primary says that records are live (FORMAT.md): a copy would say so for ever.
        copy.s_feature_incompat &= ~kFeatureIncompatNeedsReplay;
        A4_CHECK(check_errcode(ext2fs_superblock_csum_set(fs, &copy), "superblock checksum"));
        A4_CHECK(device.write(copy_offset(fs, group), std::as_bytes(std::span(&copy, 1)))
                     .context(fmt::format("superblock copy in group {}", group)));
    }
    return {};
}

Result<std::vector<BackupSuperblock>> read_backup_superblocks(ext2_filsys fs, Device& device,
                                                              Copies copies) {
    std::vector<BackupSuperblock> backups;
    ext2_super_block copy;
    const std::vector<uint32_t> groups = backup_groups(fs);
    for (const uint32_t group : copies == Copies::Every ? groups : some_of(groups)) {
        A4_CHECK(device.read(copy_offset(fs, group), std::as_writable_bytes(std::span(&copy, 1)))
                     .context(fmt::format("superblock copy in group {}", group)));
        BackupSuperblock backup;
        backup.group = group;
        const bool ours = copy.s_magic == EXT2_SUPER_MAGIC &&
                          std::memcmp(copy.s_uuid, fs->super->s_uuid, sizeof copy.s_uuid) == 0;
        backup.valid = ours && ext2fs_superblock_csum_verify(fs, &copy) != 0;
        backup.torn = ours && !backup.valid;
        backup.gate = backup.valid && (copy.s_feature_compat & kFeatureCompatAtomic4) != 0;
        backups.push_back(backup);
    }
    return backups;
}

Result<std::vector<FoundSuperblock>> find_backup_superblocks(
    Device& device, const std::optional<SuperblockPlace>& told) {
    std::vector<SuperblockPlace> places;
    for (uint64_t size = 1024; told && size <= 65536; size *= 2) {
        if (told->block_size == Bytes(0) || told->block_size == Bytes(size))
            places.push_back({told->block, Bytes(size)});
    }
    for (uint64_t size = 1024; size <= 65536; size *= 2) {
        // 16 bits count the blocks of a group, in units of 8.
        const uint64_t group = std::min<uint64_t>(8 * size, 65528);
        for (const uint64_t number : {1, 3, 5, 7, 9})
            places.push_back({(size == 1024 ? 1 : 0) + number * group, Bytes(size)});
    }
    std::vector<FoundSuperblock> found;
    for (const SuperblockPlace& place : places) {
        const uint64_t size = place.block_size.value();
        if (place.block == 0 || place.block > INT32_MAX ||  // libext2fs takes an int
            place.block >= device.size().value() / size)
            continue;
        FoundSuperblock copy{place, {}};
        const auto bytes = std::as_writable_bytes(std::span(&copy.super, 1));
        // Most of these places are other things, some of which perhaps nobody can read.
        if (!device.read(ByteOffset(place.block * size), bytes)) continue;
        if (says_that_it_lies_at(place, copy.super)) found.push_back(copy);
    }
    return found;
}

}  // namespace atomic4
