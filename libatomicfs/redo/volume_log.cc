#include "redo/volume_log.h"

#include <algorithm>

#include "ext4/format.h"
#include "ext4/layout.h"
#include "ext4/path.h"

namespace atomic4 {

namespace {

Result<std::unique_ptr<SliceDevice>> open_log_file(Volume& volume, const FileState& file) {
    const std::string what = fmt::format("redo log (inode {})", file.number);
    if (!LINUX_S_ISREG(file.inode.i_mode) || !file.atomic || !file.extent_mapped())
        return fail(EUCLEAN, "{}: not a flagged regular file", what);
    if (file.size.value() % volume.block_size().value() != 0)
        return fail(EUCLEAN, "{}: a size of {} bytes is no whole number of blocks", what,
                    file.size);
    std::vector<Run> runs;
    auto located = locate_range(volume, file, ByteOffset(0), file.size);
    if (!located) return fail(EUCLEAN, "{}: {}", what, located.error().message);
    for (const DeviceRun& run : *located) {
        if (!run.written) return fail(EUCLEAN, "{}: has unwritten blocks", what);
        runs.push_back({run.device_offset, run.length});
    }
    return std::make_unique<SliceDevice>(volume.device(), runs, "redo log");
}

}  // namespace

Result<std::unique_ptr<SliceDevice>> open_log_device(Volume& volume) {
    if (!volume.attr()) return fail(EUCLEAN, "the volume attribute is missing");
    return open_log_device(volume, *volume.attr());
}

Result<std::unique_ptr<SliceDevice>> open_log_device(Volume& volume, const VolumeAttr& attr) {
    return open_log_file(
        volume, A4_TRY(read_file(volume, attr.log_inode, attr.log_generation).context("redo log")));
}

namespace {

// By the file alone.
Result<VolumeAttr> attr_of_log(Volume& volume, const FileState& file) {
    const auto device = A4_TRY(open_log_file(volume, file));
    VolumeAttr attr;
    attr.unit = Bytes(std::max(kUnitDefault, volume.block_size().value()));
    attr.log_inode = file.number;
    attr.log_generation = file.generation;
    attr.log_id = A4_TRY(read_log_id(*device));
    return attr;
}

}  // namespace

Result<VolumeAttr> find_log_by_name(Volume& volume) {
    const std::string path = fmt::format("/{}/{}", kDirectoryName, kLogName);
    const auto number = lookup(volume, path);
    if (!number) return fail(EUCLEAN, "redo log: {}", number.error().message);
    return attr_of_log(volume, A4_TRY(read_file(volume, *number).context(path)));
}

Result<std::vector<VolumeAttr>> find_logs_anywhere(Volume& volume) {
    std::vector<VolumeAttr> found;
    std::vector<ext2_ino_t> damaged;
    for (const ext2_ino_t number : A4_TRY(find_atomic_inodes(volume, &damaged))) {
        const auto file = read_file(volume, number);
        if (!file && file.error().code == EIO) return fail(Error(file.error()));
        if (!file) continue;
        const auto attr = attr_of_log(volume, *file);
        if (!attr && attr.error().code == EIO) return fail(Error(attr.error()));
        if (attr) found.push_back(*attr);
    }
    return found;
}

SessionStamp session_stamp(const Volume& volume) {
    const ext2_super_block& super = *volume.fs()->super;
    return {super.s_mtime, super.s_mnt_count};
}

}  // namespace atomic4
