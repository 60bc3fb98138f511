#include "redo/log_file_repair.h"

#include <algorithm>
#include <cstring>

#include "device/slice_device.h"
#include "ext4/atomic_file.h"
#include "ext4/checksums_ignored.h"
#include "ext4/errcode.h"
#include "ext4/extent_map.h"
#include "ext4/format.h"
#include "ext4/layout.h"
#include "ext4/layout_plan.h"
#include "ext4/transaction.h"
#include "ext4/xattr.h"
#include "redo/log_superblock.h"
#include "redo/volume_log.h"

namespace atomic4 {

namespace {

// Without the time that write_inode_now sets: nobody has written the file.
Result<> write_inode(Volume& volume, ext2_ino_t number, ext2_inode inode) {
    Transaction transaction(volume);
    A4_CHECK(check_errcode(ext2fs_write_inode(volume.fs(), number, &inode),
                           fmt::format("inode {}", number)));
    return transaction.commit();
}

// The size that the log's superblocks say, if the file has blocks for it; 0: none.
Bytes size_by_superblocks(Volume& volume, const std::vector<Mapping>& mappings) {
    const uint64_t block = volume.block_size().value();
    std::vector<Run> runs;
    Lblk end(0);
    for (const Mapping& mapping : mappings) {
        if (mapping.lblk != end || mapping.state != MapState::Written) break;
        runs.push_back(
            {ByteOffset(mapping.pblk.value() * block), Bytes(mapping.length.value() * block)});
        end = mapping.end();
    }
    if (runs.empty()) return Bytes(0);
    SliceDevice log(volume.device(), runs, "redo log");
    const auto found = read_superblocks(log, volume.attr()->log_id);
    return found ? found->state.log_size : Bytes(0);
}

// The largest one that its layout keeps.
std::optional<Bytes> unit_by_layout(Volume& volume, const FileState& file) {
    for (uint64_t unit = kUnitMax; unit >= volume.block_size().value(); unit /= 2) {
        if (file.size.value() % unit != 0) continue;
        const auto layout = check_layout(volume, file, Bytes(unit));
        if (layout && layout->problems == 0) return Bytes(unit);
    }
    return std::nullopt;
}

}  // namespace

Result<bool> repair_log_file(Volume& volume) {
    const ext2_ino_t number = volume.attr()->log_inode;
    bool changed = false;
    ext2_inode inode{};
    // What its checksum says doesn't matter: the id in its superblocks proves it.
    const auto code = [&] {
        const ChecksumsIgnored ignored(volume.fs());
        return ext2fs_read_inode(volume.fs(), number, &inode);
    }();
    const ext2_inode before = inode;
    if (code == 0 && lacks_extents_flag(volume.fs(), inode)) inode.i_flags |= EXT4_EXTENTS_FL;
    if (code != 0 || (inode.i_flags & EXT4_EXTENTS_FL) == 0) return false;
    const auto mapped = map_range(volume, number, inode, Lblk(0), kWholeFile);
    if (!mapped) return false;
    const Bytes size = size_by_superblocks(volume, joined(*mapped));
    if (size == Bytes(0)) return false;
    inode.i_mode = static_cast<uint16_t>(LINUX_S_IFREG | (inode.i_mode & 07777));
    inode.i_flags |= kInodeFlagAtomic;
    inode.i_generation = volume.attr()->log_generation;
    if (inode.i_links_count == 0) inode.i_links_count = 1;
    A4_CHECK(check_errcode(
        ext2fs_inode_size_set(volume.fs(), &inode, static_cast<ext2_off64_t>(size.value())),
        "redo log"));
    const bool wrong_checksum = !read_file(volume, number);
    if (wrong_checksum || std::memcmp(&before, &inode, sizeof inode) != 0) {
        A4_CHECK(write_inode(volume, number, inode));
        changed = true;
    }
    const auto file = read_file(volume, number);
    if (!file || (file->unit && check_unit(volume, *file->unit))) return changed;
    const auto unit = unit_by_layout(volume, *file);
    if (!unit) return changed;
    Transaction transaction(volume);
    A4_CHECK(write_xattr(volume.fs(), number, kUnitXattr, fmt::format("{}", *unit)));
    A4_CHECK(transaction.commit());
    return true;
}

Result<bool> repair_way_to_log(Volume& volume) {
    auto logs = A4_TRY(find_logs_anywhere(volume));
    const auto has_id = [&](const VolumeAttr& log) {
        return volume.attr() && log.log_id == volume.attr()->log_id;
    };
    auto right = std::ranges::find_if(logs, has_id);
    if (right == logs.end() && logs.size() == 1) right = logs.begin();
    if (right == logs.end()) return false;
    if (volume.attr()) right->unit = volume.attr()->unit;
    if (volume.attr() && right->log_inode == volume.attr()->log_inode &&
        right->log_generation == volume.attr()->log_generation && has_id(*right))
        return false;
    Transaction transaction(volume);
    A4_CHECK(volume.stage_attr(*right));
    A4_CHECK(transaction.commit());
    return true;
}

}  // namespace atomic4
