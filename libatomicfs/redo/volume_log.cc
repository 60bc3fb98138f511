#include "redo/volume_log.h"

#include "ext4/layout.h"

namespace atomic4 {

Result<std::unique_ptr<SliceDevice>> open_log_device(Volume& volume) {
    if (!volume.attr()) return fail(EUCLEAN, "the volume attribute is missing");
    const VolumeAttr& attr = *volume.attr();
    const std::string what = fmt::format("redo log (inode {})", attr.log_inode);
    const FileState file =
        A4_TRY(read_file(volume, attr.log_inode, attr.log_generation).context("redo log"));
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

SessionStamp session_stamp(const Volume& volume) {
    const ext2_super_block& super = *volume.fs()->super;
    return {super.s_mtime, super.s_mnt_count};
}

}  // namespace atomic4
