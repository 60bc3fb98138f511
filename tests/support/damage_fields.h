// The fields of what is on disk, for damage.cc: ext4's structures and the redo log's.
#pragma once

#include <ext2fs/ext2fs.h>
#include <ext2fs/ext3_extents.h>

#include <cstddef>

#include "redo/log_format.h"

namespace atomic4::test {

struct Field {
    const char* name;
    size_t offset;
    size_t size;
};

#define A4_FIELD(type, field) {#field, offsetof(type, field), sizeof(type::field)}

#define S(field) A4_FIELD(ext2_super_block, field)
inline constexpr Field kSuperFields[] = {S(s_inodes_count),
                                         S(s_blocks_count),
                                         S(s_r_blocks_count),
                                         S(s_free_blocks_count),
                                         S(s_free_inodes_count),
                                         S(s_first_data_block),
                                         S(s_log_block_size),
                                         S(s_log_cluster_size),
                                         S(s_blocks_per_group),
                                         S(s_clusters_per_group),
                                         S(s_inodes_per_group),
                                         S(s_mtime),
                                         S(s_wtime),
                                         S(s_mnt_count),
                                         S(s_max_mnt_count),
                                         S(s_magic),
                                         S(s_state),
                                         S(s_errors),
                                         S(s_minor_rev_level),
                                         S(s_lastcheck),
                                         S(s_checkinterval),
                                         S(s_creator_os),
                                         S(s_rev_level),
                                         S(s_def_resuid),
                                         S(s_def_resgid),
                                         S(s_first_ino),
                                         S(s_inode_size),
                                         S(s_block_group_nr),
                                         S(s_feature_compat),
                                         S(s_feature_incompat),
                                         S(s_feature_ro_compat),
                                         S(s_uuid),
                                         S(s_volume_name),
                                         S(s_last_mounted),
                                         S(s_algorithm_usage_bitmap),
                                         S(s_prealloc_blocks),
                                         S(s_prealloc_dir_blocks),
                                         S(s_reserved_gdt_blocks),
                                         S(s_journal_uuid),
                                         S(s_journal_inum),
                                         S(s_journal_dev),
                                         S(s_last_orphan),
                                         S(s_hash_seed),
                                         S(s_def_hash_version),
                                         S(s_jnl_backup_type),
                                         S(s_desc_size),
                                         S(s_default_mount_opts),
                                         S(s_first_meta_bg),
                                         S(s_mkfs_time),
                                         S(s_jnl_blocks),
                                         S(s_blocks_count_hi),
                                         S(s_r_blocks_count_hi),
                                         S(s_free_blocks_hi),
                                         S(s_min_extra_isize),
                                         S(s_want_extra_isize),
                                         S(s_flags),
                                         S(s_raid_stride),
                                         S(s_mmp_update_interval),
                                         S(s_mmp_block),
                                         S(s_raid_stripe_width),
                                         S(s_log_groups_per_flex),
                                         S(s_checksum_type),
                                         S(s_encryption_level),
                                         S(s_reserved_pad),
                                         S(s_kbytes_written),
                                         S(s_snapshot_inum),
                                         S(s_snapshot_id),
                                         S(s_snapshot_r_blocks_count),
                                         S(s_snapshot_list),
                                         S(s_error_count),
                                         S(s_first_error_time),
                                         S(s_first_error_ino),
                                         S(s_first_error_block),
                                         S(s_first_error_func),
                                         S(s_first_error_line),
                                         S(s_last_error_time),
                                         S(s_last_error_ino),
                                         S(s_last_error_line),
                                         S(s_last_error_block),
                                         S(s_last_error_func),
                                         S(s_mount_opts),
                                         S(s_usr_quota_inum),
                                         S(s_grp_quota_inum),
                                         S(s_overhead_clusters),
                                         S(s_backup_bgs),
                                         S(s_encrypt_algos),
                                         S(s_encrypt_pw_salt),
                                         S(s_lpf_ino),
                                         S(s_prj_quota_inum),
                                         S(s_checksum_seed),
                                         S(s_wtime_hi),
                                         S(s_mtime_hi),
                                         S(s_mkfs_time_hi),
                                         S(s_lastcheck_hi),
                                         S(s_first_error_time_hi),
                                         S(s_last_error_time_hi),
                                         S(s_first_error_errcode),
                                         S(s_last_error_errcode),
                                         S(s_encoding),
                                         S(s_encoding_flags),
                                         S(s_orphan_file_inum),
                                         S(s_reserved),
                                         S(s_checksum)};
#undef S
#define S(field) A4_FIELD(ext4_group_desc, field)
inline constexpr Field kDescriptorFields[] = {S(bg_block_bitmap),
                                              S(bg_inode_bitmap),
                                              S(bg_inode_table),
                                              S(bg_free_blocks_count),
                                              S(bg_free_inodes_count),
                                              S(bg_used_dirs_count),
                                              S(bg_flags),
                                              S(bg_exclude_bitmap_lo),
                                              S(bg_block_bitmap_csum_lo),
                                              S(bg_inode_bitmap_csum_lo),
                                              S(bg_itable_unused),
                                              S(bg_checksum),
                                              S(bg_block_bitmap_hi),
                                              S(bg_inode_bitmap_hi),
                                              S(bg_inode_table_hi),
                                              S(bg_free_blocks_count_hi),
                                              S(bg_free_inodes_count_hi),
                                              S(bg_used_dirs_count_hi),
                                              S(bg_itable_unused_hi),
                                              S(bg_exclude_bitmap_hi),
                                              S(bg_block_bitmap_csum_hi),
                                              S(bg_inode_bitmap_csum_hi),
                                              S(bg_reserved)};
#undef S
#define S(field) A4_FIELD(ext2_inode_large, field)
inline constexpr Field kInodeFields[] = {S(i_mode),
                                         S(i_uid),
                                         S(i_size),
                                         S(i_atime),
                                         S(i_ctime),
                                         S(i_mtime),
                                         S(i_dtime),
                                         S(i_gid),
                                         S(i_links_count),
                                         S(i_blocks),
                                         S(i_flags),
                                         S(osd1),
                                         S(i_generation),
                                         S(i_file_acl),
                                         S(i_size_high),
                                         S(i_faddr),
                                         S(osd2.linux2.l_i_blocks_hi),
                                         S(osd2.linux2.l_i_file_acl_high),
                                         S(osd2.linux2.l_i_uid_high),
                                         S(osd2.linux2.l_i_gid_high),
                                         S(osd2.linux2.l_i_checksum_lo),
                                         S(osd2.linux2.l_i_reserved),
                                         S(i_extra_isize),
                                         S(i_checksum_hi),
                                         S(i_ctime_extra),
                                         S(i_mtime_extra),
                                         S(i_atime_extra),
                                         S(i_crtime),
                                         S(i_crtime_extra),
                                         S(i_version_hi),
                                         S(i_projid)};
#undef S
inline constexpr Field kNodeHeaderFields[] = {
    A4_FIELD(ext3_extent_header, eh_magic), A4_FIELD(ext3_extent_header, eh_entries),
    A4_FIELD(ext3_extent_header, eh_max), A4_FIELD(ext3_extent_header, eh_depth),
    A4_FIELD(ext3_extent_header, eh_generation)};
inline constexpr Field kExtentFields[] = {
    A4_FIELD(ext3_extent, ee_block), A4_FIELD(ext3_extent, ee_len),
    A4_FIELD(ext3_extent, ee_start_hi), A4_FIELD(ext3_extent, ee_start)};
inline constexpr Field kIndexFields[] = {
    A4_FIELD(ext3_extent_idx, ei_block), A4_FIELD(ext3_extent_idx, ei_leaf),
    A4_FIELD(ext3_extent_idx, ei_leaf_hi), A4_FIELD(ext3_extent_idx, ei_unused)};
inline constexpr Field kEntryFields[] = {
    {"inode", 0, 4}, {"rec_len", 4, 2}, {"name_len", 6, 1}, {"file_type", 7, 1}, {"name", 8, 4}};
inline constexpr Field kXattrHeaderFields[] = {
    A4_FIELD(ext2_ext_attr_header, h_magic),    A4_FIELD(ext2_ext_attr_header, h_refcount),
    A4_FIELD(ext2_ext_attr_header, h_blocks),   A4_FIELD(ext2_ext_attr_header, h_hash),
    A4_FIELD(ext2_ext_attr_header, h_checksum), A4_FIELD(ext2_ext_attr_header, h_reserved)};
inline constexpr Field kXattrEntryFields[] = {
    A4_FIELD(ext2_ext_attr_entry, e_name_len),   A4_FIELD(ext2_ext_attr_entry, e_name_index),
    A4_FIELD(ext2_ext_attr_entry, e_value_offs), A4_FIELD(ext2_ext_attr_entry, e_value_inum),
    A4_FIELD(ext2_ext_attr_entry, e_value_size), A4_FIELD(ext2_ext_attr_entry, e_hash)};
#define S(field) A4_FIELD(LogSuperblock, field)
inline constexpr Field kLogSuperFields[] = {
    S(magic), S(version),       S(checksum), S(log_id),   S(update),       S(epoch), S(log_size),
    S(tail),  S(tail_sequence), S(retired),  S(fs_mtime), S(fs_mnt_count), S(flags), S(reserved)};
#undef S
#define S(field) A4_FIELD(RecordHeader, field)
inline constexpr Field kRecordFields[] = {
    S(magic),       S(type),        S(header_crc), S(log_id),         S(epoch),
    S(sequence),    S(retired),     S(position),   S(total_length),   S(header_length),
    S(range_count), S(payload_crc), S(flags),      S(payload_length), S(time),
    S(placed),      S(reserved)};
#undef S
#define S(field) A4_FIELD(RecordRange, field)
inline constexpr Field kRangeFields[] = {S(inode),  S(generation), S(offset),
                                         S(length), S(operation),  S(new_size)};
#undef S
#undef A4_FIELD

}  // namespace atomic4::test
