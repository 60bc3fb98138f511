#include "fsck/volume_state.h"

#include <algorithm>
#include <charconv>
#include <ctime>

#include "ext4/block_claims.h"
#include "ext4/format.h"

namespace atomic4::tools {

namespace {

std::optional<uint64_t> number_in(const std::optional<std::string>& text) {
    uint64_t number = 0;
    if (!text) return std::nullopt;
    const auto end = text->data() + text->size();
    const auto [stop, error] = std::from_chars(text->data(), end, number);
    if (error != std::errc() || stop != end) return std::nullopt;
    return number;
}

bool has_gate(const ext2_super_block& super) {
    return super.s_magic == EXT2_SUPER_MAGIC &&
           (super.s_feature_compat & kFeatureCompatAtomic4) != 0;
}

}  // namespace

VolumeOptions options_for(OpenFor purpose) {
    VolumeOptions options;
    options.purpose = purpose;
    options.require_atomic4 = false;
    options.damaged_too = true;
    options.may_use_reserved = true;
    return options;
}

std::optional<SuperblockPlace> told_copy(const FsckCommand& command) {
    const auto block = number_in(command.superblock);
    if (!block) return std::nullopt;
    return SuperblockPlace{*block, Bytes(number_in(command.block_size).value_or(0))};
}

bool has_gate_somewhere(Device& device, const FsckCommand& command) {
    ext2_super_block super{};
    if (device.read(ByteOffset(1024), std::as_writable_bytes(std::span(&super, 1))) &&
        has_gate(super))
        return true;
    const auto copies = find_backup_superblocks(device, told_copy(command));
    return copies && std::ranges::any_of(
                         *copies, [](const FoundSuperblock& copy) { return has_gate(copy.super); });
}

bool is_due(const ext2_super_block& super) {
    if (super.s_max_mnt_count > 0 && super.s_mnt_count >= super.s_max_mnt_count) return true;
    if (super.s_checkinterval == 0) return false;
    const auto now = static_cast<uint64_t>(std::time(nullptr));
    return now < super.s_lastcheck || now >= uint64_t{super.s_lastcheck} + super.s_checkinterval;
}

bool descriptor_is_right(ext2_filsys fs, dgrp_t group) {
    const uint64_t end = ext2fs_blocks_count(fs->super);
    const auto inside = [&](uint64_t first, uint64_t count) {
        return first >= fs->super->s_first_data_block && first < end && count <= end - first;
    };
    return (!ext2fs_has_group_desc_csum(fs) || ext2fs_group_desc_csum_verify(fs, group) != 0) &&
           inside(ext2fs_block_bitmap_loc(fs, group), 1) &&
           inside(ext2fs_inode_bitmap_loc(fs, group), 1) &&
           inside(ext2fs_inode_table_loc(fs, group), fs->inode_blocks_per_group);
}

bool hides_group(ext2_filsys fs, dgrp_t group) {
    return ext2fs_bg_flags_test(fs, group, EXT2_BG_INODE_UNINIT) != 0 && hides_inodes(fs, group) &&
           ext2fs_bg_itable_unused(fs, group) <= ext2fs_bg_free_inodes_count(fs, group);
}

bool descriptors_are_right(Volume& volume) {
    for (dgrp_t group = 0; group < volume.fs()->group_desc_count; ++group) {
        if (!descriptor_is_right(volume.fs(), group)) return false;
    }
    return true;
}

bool looks_sound(Volume& volume) {
    ext2_filsys fs = volume.fs();
    ext2_super_block& super = *fs->super;
    if (ext2fs_free_blocks_count(&super) > ext2fs_blocks_count(&super) ||
        super.s_free_inodes_count > super.s_inodes_count || !volume.notices().empty() ||
        !descriptors_are_right(volume))
        return false;
    if (!ext2fs_has_feature_journal(&super) || super.s_journal_inum == 0) return true;
    ext2_inode journal{};
    return super.s_journal_inum == EXT2_JOURNAL_INO &&
           ext2fs_read_inode(fs, EXT2_JOURNAL_INO, &journal) == 0 &&
           LINUX_S_ISREG(journal.i_mode) && journal.i_links_count != 0;
}

bool has_root(Volume& volume) {
    ext2_inode root{};
    return ext2fs_read_inode(volume.fs(), EXT2_ROOT_INO, &root) == 0 && LINUX_S_ISDIR(root.i_mode);
}

TablePlaces table_places(ext2_filsys fs, dgrp_t group) {
    return {ext2fs_block_bitmap_loc(fs, group), ext2fs_inode_bitmap_loc(fs, group),
            ext2fs_inode_table_loc(fs, group)};
}

}  // namespace atomic4::tools
