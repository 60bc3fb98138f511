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

Result<VolumeAttr> find_log_by_name(Volume& volume) {
    const std::string path = fmt::format("/{}/{}", kDirectoryName, kLogName);
    const auto number = lookup(volume, path);
    if (!number) return fail(EUCLEAN, "redo log: {}", number.error().message);
    const FileState file = A4_TRY(read_file(volume, *number).context(path));
    const auto device = A4_TRY(open_log_file(volume, file));
    VolumeAttr attr;
    attr.unit = Bytes(std::max(kUnitDefault, volume.block_size().value()));
    attr.log_inode = file.number;
    attr.log_generation = file.generation;
    attr.log_id = A4_TRY(read_log_id(*device));
    return attr;
}

SessionStamp session_stamp(const Volume& volume) {
    const ext2_super_block& super = *volume.fs()->super;
    return {super.s_mtime, super.s_mnt_count};
}

}  // namespace atomic4
