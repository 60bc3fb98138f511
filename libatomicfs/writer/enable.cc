#include "writer/enable.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/random.h"
#include "base/text.h"
#include "ext4/errcode.h"
#include "ext4/format.h"
#include "ext4/path.h"
#include "ext4/transaction.h"
#include "redo/log_buffer.h"
#include "redo/redo_log.h"
#include "redo/volume_log.h"

namespace atomic4 {

namespace {

constexpr uint64_t kKiB = 1024;
constexpr uint64_t kMiB = 1024 * kKiB;
// Log sizes are multiples of this: whole log blocks, whole default units.
constexpr uint64_t kLogStep = 64 * kKiB;
constexpr uint64_t kZeroPiece = 4 * kMiB;

std::optional<ext2_ino_t> find(Volume& volume, ext2_ino_t directory, const char* name) {
    ext2_ino_t inode = 0;
    if (ext2fs_lookup(volume.fs(), directory, name, static_cast<int>(std::string_view(name).size()),
                      nullptr, &inode) != 0)
        return std::nullopt;
    return inode;
}

// Removes /.atomic4 with log, lock and attribute: after an interrupted enable, or to disable. Other
// things in the directory are the user's, and stay.
Result<> remove_parts(Volume& volume) {
    const auto directory = find(volume, EXT2_ROOT_INO, kDirectoryName);
    Transaction transaction(volume);
    A4_CHECK(volume.stage_attr(std::nullopt));
    if (directory) {
        ext2_inode inode{};
        A4_CHECK(check_errcode(ext2fs_read_inode(volume.fs(), *directory, &inode), kDirectoryName));
        if (!LINUX_S_ISDIR(inode.i_mode))
            return fail(EEXIST, "/{} exists and is not a directory: move it away", kDirectoryName);
        for (const char* name : {kLogName, kLockName}) {
            const auto file = find(volume, *directory, name);
            if (!file) continue;
            A4_CHECK(unlink_name(volume, {*directory, name}, *file));
            ext2_inode leaf{};
            A4_CHECK(check_errcode(ext2fs_read_inode(volume.fs(), *file, &leaf), name));
            if (leaf.i_links_count > 1) {
                --leaf.i_links_count;
                A4_CHECK(check_errcode(ext2fs_write_inode(volume.fs(), *file, &leaf), name));
            } else {
                A4_CHECK(stage_delete(volume, *file));
            }
        }
        bool empty = true;
        A4_CHECK(check_errcode(
            ext2fs_dir_iterate2(
                volume.fs(), *directory, 0, nullptr,
                [](ext2_ino_t, int entry, ext2_dir_entry*, int, int, char*, void* data) {
                    if (entry == DIRENT_OTHER_FILE) *static_cast<bool*>(data) = false;
                    return 0;
                },
                &empty),
            kDirectoryName));
        if (empty) {
            A4_CHECK(unlink_name(volume, {EXT2_ROOT_INO, kDirectoryName}, *directory));
            A4_CHECK(stage_delete(volume, *directory));
            ext2_inode root{};
            A4_CHECK(check_errcode(ext2fs_read_inode(volume.fs(), EXT2_ROOT_INO, &root), "/"));
            --root.i_links_count;
            A4_CHECK(check_errcode(ext2fs_write_inode(volume.fs(), EXT2_ROOT_INO, &root), "/"));
        }
    }
    return transaction.commit(Transaction::Order::Freeing);
}

// Writes zeros, rather than punching a hole: the log's blocks are written again and again, and a
// host that allocates them then would be slow, or out of space in the middle of a log write.
// From aligned memory, which a direct device takes as it is.
Result<> write_zeros(Device& device) {
    LogBuffer memory;
    const auto zeros = A4_TRY(memory.get(Bytes(std::min(device.size().value(), kZeroPiece))));
    std::memset(zeros.data(), 0, zeros.size());
    for (uint64_t at = 0; at < device.size().value(); at += zeros.size()) {
        const uint64_t n = std::min<uint64_t>(zeros.size(), device.size().value() - at);
        A4_CHECK(device.write(ByteOffset(at), zeros.first(n)));
    }
    return {};
}

// Directory, log, lock file and attribute, in one operation.
Result<> make_parts(Volume& volume, const EnablePlan& plan, Bytes log_unit) {
    Transaction transaction(volume);
    const StagedFile directory =
        A4_TRY(stage_directory(volume, EXT2_ROOT_INO, kDirectoryName, 0700));
    NewFile log_file;
    log_file.size = plan.log_size;
    log_file.unit = log_unit;
    log_file.mode = 0600;
    const StagedFile log = A4_TRY(stage_file(volume, directory.number, log_file, true));
    A4_CHECK(link_name(volume, {directory.number, kLogName}, log.number, EXT2_FT_REG_FILE));
    NewFile lock_file;
    lock_file.unit = volume.block_size();
    lock_file.mode = 0600;
    const StagedFile lock = A4_TRY(stage_file(volume, directory.number, lock_file, false));
    A4_CHECK(link_name(volume, {directory.number, kLockName}, lock.number, EXT2_FT_REG_FILE));

    VolumeAttr attr;
    attr.unit = plan.unit;
    attr.log_inode = log.number;
    attr.log_generation = log.generation;
    attr.log_id = random_id();
    std::vector<Run> runs;
    const uint64_t block = volume.block_size().value();
    for (const PblkRun& run : log.runs)
        runs.push_back({ByteOffset(run.start.value() * block), Bytes(run.length.value() * block)});
    SliceDevice device(volume.device(), runs, "redo log");
    A4_CHECK(write_zeros(device));
    A4_CHECK(RedoLog::format(device, attr.log_id, session_stamp(volume)));
    A4_CHECK(volume.stage_attr(attr));
    return transaction.commit();
}

}  // namespace

Bytes default_log_size(Bytes volume_size) {
    const uint64_t part = round_down(volume_size.value() / 64, kLogStep);
    if (volume_size.value() < 512 * kMiB) return Bytes(std::max(part, 256 * kKiB));
    return Bytes(std::clamp(part, 8 * kMiB, 256 * kMiB));
}

Result<EnablePlan> plan_enable(Bytes block_size, Bytes volume_size, const EnableOptions& options) {
    EnablePlan plan;
    plan.unit = options.unit.value() != 0 ? options.unit
                                          : Bytes(std::max(kUnitDefault, block_size.value()));
    if (!is_power_of_two(plan.unit.value()) || plan.unit < block_size ||
        plan.unit.value() > kUnitMax) {
        return fail(EINVAL, "unit {}: want a power of two from {} (the block size) to {}",
                    plan.unit, block_size, kUnitMax);
    }
    plan.log_size = options.log_size.value_or(default_log_size(volume_size));
    if (plan.log_size.value() % kLogStep != 0 || plan.log_size < kMinLogSize) {
        return fail(EINVAL, "log size {}: want a multiple of {}, at least {}", plan.log_size,
                    kLogStep, kMinLogSize);
    }
    if (plan.log_size.value() > volume_size.value() / 2) {
        return fail(EINVAL, "log size {}: more than half of the volume ({} bytes)", plan.log_size,
                    volume_size);
    }
    return plan;
}

Result<EnablePlan> enable(Volume& volume, const EnableOptions& options) {
    if (volume.gate() && volume.attr() && volume.gate_in_primary())
        return fail(EEXIST, "{}: atomic4 is enabled already", volume.name());
    if (volume.attr_error() && volume.attr_error()->code == EOPNOTSUPP)
        return fail(Error(*volume.attr_error()));
    const Bytes volume_size(ext2fs_blocks_count(volume.fs()->super) * volume.block_size().value());
    const EnablePlan plan = A4_TRY(plan_enable(volume.block_size(), volume_size, options));
    if (volume.attr()) {
        // Everything but the gate is there: an enable that was interrupted, or a gate that e2fsck
        // or debugfs took away. The log may hold acknowledged writes: it is kept as it is.
        const auto log = open_log_device(volume);
        const auto contents = log ? read_log(**log, volume.attr()->log_id)
                                  : Result<LogContents>(tl::unexpect, log.error());
        if (contents) {
            A4_CHECK(volume.write_gate(true));
            return EnablePlan{volume.attr()->unit, contents->superblock.log_size};
        }
        // Neither what can't be read now, nor what is no longer readable, is ours to throw away.
        if (contents.error().code == EIO || volume.needs_replay())
            return fail(Error(contents.error()));
    }
    if (volume.attr() || volume.attr_error() || find(volume, EXT2_ROOT_INO, kDirectoryName)) {
        // Left by an interrupted disable, or not ours at all.
        if (!volume.attr() && !volume.attr_error() && !volume.gate()) {
            return fail(EEXIST, "{}: there is a /{} already: move it away", volume.name(),
                        kDirectoryName);
        }
        A4_CHECK(remove_parts(volume).context("removing what an interrupted operation left"));
    }
    // One aligned run if there is one; alignment of the log matters less than having one.
    uint64_t unit = std::min<uint64_t>(kUnitMax, plan.log_size.value() & -plan.log_size.value());
    auto made = make_parts(volume, plan, Bytes(unit));
    while (!made && made.error().code == ENOSPC && unit > volume.block_size().value()) {
        unit /= 2;
        made = make_parts(volume, plan, Bytes(unit));
    }
    if (!made && made.error().code == ENOSPC) {
        return fail(ENOSPC,
                    "{}: no room for a redo log of {} bytes: free some space, or give a "
                    "smaller log size",
                    volume.name(), plan.log_size);
    }
    A4_CHECK(std::move(made).context("enable"));
    A4_CHECK(volume.write_gate(true));
    return plan;
}

Result<DisableReport> disable(Volume& volume, bool force) {
    if (!volume.gate()) return fail(EINVAL, "{}: atomic4 is not enabled", volume.name());
    DisableReport report;
    for (const ext2_ino_t inode : A4_TRY(find_atomic_inodes(volume))) {
        if (!volume.attr() || inode != volume.attr()->log_inode) report.released.push_back(inode);
    }
    if (!report.released.empty() && !force) {
        const auto paths = A4_TRY(paths_of(volume, {report.released.front()}));
        return fail(EBUSY, "{}: {} in use (first: {}): remove them, or --force to release them",
                    volume.name(), counted(report.released.size(), "atomic file"),
                    paths.empty() ? fmt::format("inode {}", report.released.front())
                                  : paths.begin()->second);
    }
    for (const ext2_ino_t inode : report.released) A4_CHECK(release_file(volume, inode));
    A4_CHECK(remove_parts(volume).context("disable"));
    A4_CHECK(volume.write_gate(false));
    return report;
}

}  // namespace atomic4
