#include "writer/enable.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/random.h"
#include "base/size_parse.h"
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
constexpr uint16_t kDirectoryMode = 0700;

struct Entry {
    ext2_ino_t number = 0;
    ext2_inode inode{};
    // A name without an inode in use: what an interrupted operation leaves.
    bool dangling() const { return inode.i_links_count == 0; }
};

Result<std::optional<Entry>> find(Volume& volume, ext2_ino_t directory, const std::string& name) {
    Entry entry;
    A4_CHECK(check_directory(volume.fs(), directory));
    const errcode_t code = ext2fs_lookup(volume.fs(), directory, name.c_str(),
                                         static_cast<int>(name.size()), nullptr, &entry.number);
    if (code == EXT2_ET_FILE_NOT_FOUND) return std::optional<Entry>{};
    A4_CHECK(check_errcode(code, name));
    A4_CHECK(check_errcode(ext2fs_read_inode(volume.fs(), entry.number, &entry.inode), name));
    return std::optional(entry);
}

Result<std::vector<std::string>> names_in(Volume& volume, ext2_ino_t directory) {
    std::vector<std::string> names;
    A4_CHECK(check_directory(volume.fs(), directory));
    A4_CHECK(check_errcode(
        ext2fs_dir_iterate2(
            volume.fs(), directory, 0, nullptr,
            [](ext2_ino_t, int entry, ext2_dir_entry* dirent, int, int, char*, void* data) {
                if (entry == DIRENT_OTHER_FILE) {
                    static_cast<std::vector<std::string>*>(data)->emplace_back(
                        dirent->name, static_cast<size_t>(ext2fs_dirent_name_len(dirent)));
                }
                return 0;
            },
            &names),
        kDirectoryName));
    return names;
}

// Whether a /.atomic4 that nothing else points to is from an interrupted enable or disable, and not
// the user's: nothing is in it but a log and a lock file, as enable makes them; if the log is gone,
// it must at least have the directory's own mode.
Result<bool> is_unfinished(Volume& volume, const Entry& directory) {
    if (directory.dangling()) return true;
    if (!LINUX_S_ISDIR(directory.inode.i_mode)) return false;
    bool ours = (directory.inode.i_mode & 07777) == kDirectoryMode;
    for (const std::string& name : A4_TRY(names_in(volume, directory.number))) {
        const auto entry = A4_TRY(find(volume, directory.number, name));
        if (!entry) return false;
        const ext2_inode& inode = entry->inode;
        if (name == kLogName) {
            ours = true;
            if (!entry->dangling() && (inode.i_flags & kInodeFlagAtomic) == 0) return false;
        } else if (name != kLockName || (!entry->dangling() && EXT2_I_SIZE(&inode) != 0)) {
            return false;
        }
    }
    return ours;
}

// The log that the attribute names, if it got no name: proved by its generation, flag and kind.
Result<> stage_delete_unnamed_log(Volume& volume) {
    if (!volume.attr() || A4_TRY(parts_are_named(volume))) return {};
    const auto file = read_file(volume, volume.attr()->log_inode, volume.attr()->log_generation);
    if (!file && (file.error().code == ESTALE || file.error().code == EUCLEAN)) return {};
    A4_CHECK(file);
    const bool ours = LINUX_S_ISREG(file->inode.i_mode) && file->atomic &&
                      file->inode.i_links_count == 1 &&
                      A4_TRY(paths_of(volume, {file->number})).empty();
    return ours ? stage_delete(volume, file->number) : Result<>{};
}

Result<> stage_remove(Volume& volume, ext2_ino_t directory, const char* name, const Entry& entry) {
    A4_CHECK(unlink_name(volume, {directory, name}, entry.number));
    if (entry.dangling()) return {};
    if (entry.inode.i_links_count > 1 && !LINUX_S_ISDIR(entry.inode.i_mode)) {
        ext2_inode inode = entry.inode;
        --inode.i_links_count;
        return check_errcode(ext2fs_write_inode(volume.fs(), entry.number, &inode), name);
    }
    return stage_delete(volume, entry.number);
}

// What remove_parts will remove must be ours, and such that it can be removed: looked at before
// anything is changed.
Result<> check_parts(Volume& volume) {
    const auto directory = A4_TRY(find(volume, EXT2_ROOT_INO, kDirectoryName));
    if (!directory || directory->dangling()) return {};
    if (!LINUX_S_ISDIR(directory->inode.i_mode))
        return fail(EEXIST, "/{} exists and is not a directory: move it away", kDirectoryName);
    for (const char* name : {kLogName, kLockName}) {
        const auto file = A4_TRY(find(volume, directory->number, name));
        if (file && !file->dangling() && !LINUX_S_ISREG(file->inode.i_mode)) {
            return fail(EEXIST, "/{}/{} exists and is not a regular file: move it away",
                        kDirectoryName, name);
        }
    }
    // Damaged metadata may fail only when it is changed: tried, and dropped.
    Transaction rehearsal(volume);
    A4_CHECK(volume.stage_attr(std::nullopt));
    for (const char* name : {kLogName, kLockName}) {
        const auto file = A4_TRY(find(volume, directory->number, name));
        if (file) A4_CHECK(stage_remove(volume, directory->number, name, *file));
    }
    if (A4_TRY(names_in(volume, directory->number)).empty())
        A4_CHECK(stage_remove(volume, EXT2_ROOT_INO, kDirectoryName, *directory));
    return {};
}

// Removes attribute, log, lock and /.atomic4: after an interrupted enable, or to disable. Other
// things in the directory are the user's, and stay.
//
// In three operations, each of which can be interrupted and run again. The attribute goes first:
// whoever meets a gate without it is told to run this again, and nobody looks for the log.
Result<> remove_parts(Volume& volume) {
    A4_CHECK(check_parts(volume));
    {
        Transaction transaction(volume);
        A4_CHECK(stage_delete_unnamed_log(volume));
        A4_CHECK(volume.stage_attr(std::nullopt));
        A4_CHECK(transaction.commit(Transaction::Order::Freeing));
    }
    const auto directory = A4_TRY(find(volume, EXT2_ROOT_INO, kDirectoryName));
    if (!directory) return {};
    if (!directory->dangling()) {
        Transaction transaction(volume);
        for (const char* name : {kLogName, kLockName}) {
            const auto file = A4_TRY(find(volume, directory->number, name));
            if (file) A4_CHECK(stage_remove(volume, directory->number, name, *file));
        }
        A4_CHECK(transaction.commit(Transaction::Order::Freeing));
        if (!A4_TRY(names_in(volume, directory->number)).empty()) return {};
    }
    Transaction transaction(volume);
    A4_CHECK(stage_remove(volume, EXT2_ROOT_INO, kDirectoryName, *directory));
    if (!directory->dangling()) {
        ext2_inode root{};
        A4_CHECK(check_errcode(ext2fs_read_inode(volume.fs(), EXT2_ROOT_INO, &root), "/"));
        --root.i_links_count;
        A4_CHECK(check_errcode(ext2fs_write_inode(volume.fs(), EXT2_ROOT_INO, &root), "/"));
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

Result<> stage_lock(Volume& volume, ext2_ino_t directory) {
    NewFile file;
    file.unit = volume.block_size();
    file.mode = 0600;
    const StagedFile lock = A4_TRY(stage_file(volume, directory, file, false));
    return link_name(volume, {directory, kLockName}, lock.number, EXT2_FT_REG_FILE);
}

// Directory, log, lock file and attribute, in one operation.
Result<> make_parts(Volume& volume, const EnablePlan& plan, Bytes log_unit) {
    Transaction transaction(volume);
    const StagedFile directory =
        A4_TRY(stage_directory(volume, EXT2_ROOT_INO, kDirectoryName, kDirectoryMode));
    NewFile log_file;
    log_file.size = plan.log_size;
    log_file.unit = log_unit;
    log_file.mode = 0600;
    const StagedFile log = A4_TRY(stage_file(volume, directory.number, log_file, true));
    A4_CHECK(link_name(volume, {directory.number, kLogName}, log.number, EXT2_FT_REG_FILE));
    A4_CHECK(stage_lock(volume, directory.number));

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

// Without the attribute nobody has looked into the log.
Result<> check_nothing_logged(Volume& volume) {
    if (volume.attr()) return {};
    bool live = volume.needs_replay();
    if (!live) {
        if (const auto found = find_log_by_name(volume)) {
            const auto log = A4_TRY(open_log_device(volume, *found));
            const auto contents = read_log(*log, found->log_id);
            if (!contents && contents.error().code == EIO) return fail(Error(contents.error()));
            live = contents && !contents->live.empty();
        } else if (found.error().code == EIO) {
            return fail(Error(found.error()));
        }
    }
    if (!live) return {};
    return fail(EUCLEAN,
                "{}: the redo log has to be replayed, but the volume attribute that leads to it is "
                "{}: run atomic4ctl recover first, which finds it by its name",
                volume.name(), volume.attr_error() ? "damaged" : "missing");
}

// Removed under a mount, by hand. (A damaged one is not gone, unless it has been given up.)
Result<bool> log_file_is_gone(Volume& volume, bool given_up) {
    const auto log = open_log_device(volume);
    const auto contents = log ? read_log(**log, volume.attr()->log_id)
                              : Result<LogContents>(tl::unexpect, log.error());
    if (contents) return given_up && contents->live.empty();
    if (log && !given_up) return false;
    if (contents.error().code == ESTALE) return true;
    if (contents.error().code == EUCLEAN) return given_up;
    return fail(Error(contents.error()));
}

// Unit and log stay as they are: what is asked for must agree with them.
Result<> check_same(const Volume& volume, const EnablePlan& there, const EnableOptions& options) {
    const bool same = (options.unit == Bytes(0) || options.unit == there.unit) &&
                      options.log_size.value_or(there.log_size) == there.log_size;
    if (same) return {};
    return fail(EEXIST,
                "{}: atomic4 is there already, with unit {} and a redo log of {}: disable it, then "
                "enable it with others",
                volume.name(), format_size(there.unit), format_size(there.log_size));
}

// What has a name but no inode is a name that is free.
Result<std::optional<Entry>> find_or_free(Volume& volume, ext2_ino_t directory, const char* name) {
    auto entry = A4_TRY(find(volume, directory, name));
    if (!entry || !entry->dangling()) return entry;
    A4_CHECK(unlink_name(volume, {directory, name}, entry->number));
    return std::optional<Entry>{};
}

bool is_lock(const ext2_inode& inode) {
    return LINUX_S_ISREG(inode.i_mode) && EXT2_I_SIZE(&inode) == 0;
}

// Whether the log and a lock file can be named there, or are.
Result<bool> takes_parts(Volume& volume, const Entry& directory) {
    if (!LINUX_S_ISDIR(directory.inode.i_mode)) return false;
    auto sound = check_entries(volume, directory.number);
    if (!sound && sound.error().code == EIO) return fail(std::move(sound).error());
    if (!sound) return false;
    const auto log = A4_TRY(find(volume, directory.number, kLogName));
    const auto lock = A4_TRY(find(volume, directory.number, kLockName));
    return (!log || log->dangling() || log->number == volume.attr()->log_inode) &&
           (!lock || lock->dangling() || is_lock(lock->inode));
}

int file_type(uint16_t mode) {
    switch (mode & LINUX_S_IFMT) {
        case LINUX_S_IFREG:
            return EXT2_FT_REG_FILE;
        case LINUX_S_IFDIR:
            return EXT2_FT_DIR;
        case LINUX_S_IFCHR:
            return EXT2_FT_CHRDEV;
        case LINUX_S_IFBLK:
            return EXT2_FT_BLKDEV;
        case LINUX_S_IFIFO:
            return EXT2_FT_FIFO;
        case LINUX_S_IFSOCK:
            return EXT2_FT_SOCK;
        case LINUX_S_IFLNK:
            return EXT2_FT_SYMLINK;
        default:
            return EXT2_FT_UNKNOWN;
    }
}

// What has the directory's name gets another one. Staged.
Result<> move_aside(Volume& volume, const Entry& entry) {
    A4_CHECK(check_entries(volume, EXT2_ROOT_INO));
    const std::string name = fmt::format("{}.{}", kDirectoryName, entry.number);
    if (A4_TRY(find(volume, EXT2_ROOT_INO, name)))
        return fail(EEXIST, "/{} and /{} exist, and neither is atomic4's: move them away",
                    kDirectoryName, name);
    A4_CHECK(unlink_name(volume, {EXT2_ROOT_INO, kDirectoryName}, entry.number));
    return link_name(volume, {EXT2_ROOT_INO, name}, entry.number, file_type(entry.inode.i_mode));
}

}  // namespace

// The attribute can stand without them: names are written last.
Result<bool> parts_are_named(Volume& volume) {
    const auto directory = A4_TRY(find(volume, EXT2_ROOT_INO, kDirectoryName));
    if (!directory || !LINUX_S_ISDIR(directory->inode.i_mode)) return false;
    const auto log = A4_TRY(find(volume, directory->number, kLogName));
    const auto lock = A4_TRY(find(volume, directory->number, kLockName));
    return log && volume.attr() && log->number == volume.attr()->log_inode && lock &&
           !lock->dangling() && is_lock(lock->inode);
}

Result<> name_parts(Volume& volume) {
    const ext2_ino_t number = volume.attr()->log_inode;
    FileState log = A4_TRY(read_file(volume, number, volume.attr()->log_generation));
    const bool has_a_name = !A4_TRY(paths_of(volume, {number})).empty();
    Transaction transaction(volume);
    auto directory = A4_TRY(find_or_free(volume, EXT2_ROOT_INO, kDirectoryName));
    if (directory && !A4_TRY(takes_parts(volume, *directory))) {
        A4_CHECK(move_aside(volume, *directory));
        directory.reset();
    }
    const ext2_ino_t parent =
        directory
            ? directory->number
            : A4_TRY(stage_directory(volume, EXT2_ROOT_INO, kDirectoryName, kDirectoryMode)).number;
    if (!A4_TRY(find_or_free(volume, parent, kLogName))) {
        A4_CHECK(link_name(volume, {parent, kLogName}, number, EXT2_FT_REG_FILE));
        if (has_a_name) ++log.inode.i_links_count;
        A4_CHECK(check_errcode(ext2fs_write_inode(volume.fs(), number, &log.inode), kLogName));
    }
    if (!A4_TRY(find_or_free(volume, parent, kLockName))) A4_CHECK(stage_lock(volume, parent));
    return transaction.commit();
}

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
    A4_CHECK(volume.usable());
    A4_CHECK(check_nothing_logged(volume));
    const bool enabled = volume.gate() && volume.attr() && volume.gate_in_primary();
    const bool log_is_gone =
        enabled && !volume.needs_replay() && A4_TRY(log_file_is_gone(volume, options.replace_log));
    if (enabled && !volume.gate_completed() && !log_is_gone)
        return fail(EEXIST, "{}: atomic4 is enabled already", volume.name());
    if (volume.attr_error() && volume.attr_error()->code == EOPNOTSUPP)
        return fail(Error(*volume.attr_error()));
    const Bytes volume_size(ext2fs_blocks_count(volume.fs()->super) * volume.block_size().value());
    EnablePlan plan = A4_TRY(plan_enable(volume.block_size(), volume_size, options));
    if (volume.attr()) {
        // Everything but the gate is there: an enable that was interrupted, or a gate that e2fsck
        // or debugfs took away. The log may hold acknowledged writes: it is kept as it is.
        const auto log = open_log_device(volume);
        const auto contents = log ? read_log(**log, volume.attr()->log_id)
                                  : Result<LogContents>(tl::unexpect, log.error());
        if (contents && !options.replace_log && (enabled || A4_TRY(parts_are_named(volume)))) {
            EnablePlan there{volume.attr()->unit, contents->superblock.log_size, true, true};
            A4_CHECK(check_same(volume, there, options));
            if (!enabled) A4_CHECK(volume.write_gate(true));
            return there;
        }
        if (!contents) {
            // Neither what can't be read now, nor what is no longer readable, is ours to throw
            // away.
            if ((enabled && !log_is_gone) || contents.error().code == EIO || volume.needs_replay())
                return fail(Error(contents.error()));
        } else if (!contents->live.empty()) {
            return fail(EEXIST,
                        "{}: the redo log holds {}, but /{} is not whole: run e2fsck -fy, then "
                        "enable it again",
                        volume.name(), counted(contents->live.size(), "record"), kDirectoryName);
        }
    }
    const auto directory = A4_TRY(find(volume, EXT2_ROOT_INO, kDirectoryName));
    if (volume.attr() || volume.attr_error() || directory) {
        // Left by an interrupted enable or disable, or not ours at all.
        if (!volume.attr() && !volume.attr_error() && !volume.gate() &&
            !A4_TRY(is_unfinished(volume, *directory))) {
            return fail(EEXIST, "{}: there is a /{} already: move it away", volume.name(),
                        kDirectoryName);
        }
        A4_CHECK(remove_parts(volume).context("removing what an interrupted operation left"));
        plan.after_interruption = true;
    }
    // One aligned run if there is one; alignment of the log matters less than having one.
    uint64_t unit = std::min<uint64_t>(kUnitMax, plan.log_size.value() & -plan.log_size.value());
    auto made = make_parts(volume, plan, Bytes(unit));
    while (!made && nothing_to_be_had(made.error()) && unit > volume.block_size().value()) {
        unit /= 2;
        made = make_parts(volume, plan, Bytes(unit));
    }
    // Single blocks would have done: then it isn't the volume that is full.
    const bool volume_has_room =
        volume.allocator().available() * volume.block_size().value() > 2 * plan.log_size.value();
    if (!made && made.error().code == ENOSPC && volume_has_room) {
        return fail(ENOSPC,
                    "{}: no space for the {} bytes of the redo log on what the image lies on: free "
                    "some there ({})",
                    volume.name(), plan.log_size, made.error().message);
    }
    if (!made && made.error().code == ENOSPC) {
        return fail(ENOSPC,
                    "{}: no room for a redo log of {} bytes: free some space, or give a "
                    "smaller log size",
                    volume.name(), plan.log_size);
    }
    A4_CHECK(std::move(made).context("enable"));
    if (auto done = volume.write_gate(true); !done) {
        // In doubt, everything stays for the next enable to complete.
        if (volume.usable()) A4_CHECK(remove_parts(volume).context("undoing an enable"));
        return fail(std::move(done).error());
    }
    plan.after_interruption = plan.after_interruption || !volume.block_bitmaps().damaged().empty();
    return plan;
}

Result<DisableReport> disable(Volume& volume, bool force) {
    A4_CHECK(check_nothing_logged(volume));
    if (!volume.gate()) {
        // The last thing that disable does is to write the backups; and e2fsck, where it was needed
        // in between, takes the gate away before the rest is gone.
        const auto left = A4_TRY(find(volume, EXT2_ROOT_INO, kDirectoryName));
        const bool unfinished =
            left && !volume.attr() && !volume.attr_error() && A4_TRY(is_unfinished(volume, *left));
        if (!unfinished && std::ranges::none_of(volume.backups(), &BackupSuperblock::torn))
            return fail(EINVAL, "{}: atomic4 is not enabled", volume.name());
    }
    // After an interrupted disable the log may be there without the attribute.
    ext2_ino_t log = volume.attr() ? volume.attr()->log_inode : 0;
    if (const auto directory = A4_TRY(find(volume, EXT2_ROOT_INO, kDirectoryName));
        log == 0 && directory && LINUX_S_ISDIR(directory->inode.i_mode) && !directory->dangling()) {
        if (const auto file = A4_TRY(find(volume, directory->number, kLogName))) log = file->number;
    }
    A4_CHECK(check_parts(volume).context(volume.name()));
    DisableReport report;
    report.after_interruption = !volume.gate() || !volume.attr();
    for (const ext2_ino_t inode : A4_TRY(find_atomic_inodes(volume))) {
        if (inode != log) report.released.push_back(inode);
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
    report.after_interruption =
        report.after_interruption || !volume.block_bitmaps().damaged().empty();
    return report;
}

}  // namespace atomic4
