#include "mount/mount.h"

#include <ext2fs/ext2fs.h>
#include <sys/stat.h>

#include <filesystem>

#include "base/text.h"
#include "device/ownership.h"
#include "ext4/format.h"
#include "mount/private_place.h"
#include "mount/run_program.h"
#include "redo/mounted_replay.h"
#include "writer/open_volume.h"

namespace atomic4::tools {

namespace {

// What the superblock says before anyone mounts the volume.
struct Unmounted {
    SessionStamp stamp;
    bool gate = false;
    bool needs_replay = false;
    bool clean = false;
    bool write_protected = false;
};

Result<Unmounted> look_at(const Context& context, const MountRequest& request) {
    struct stat st{};
    if (::stat(request.device.c_str(), &st) != 0)
        return fail(Error::from_errno(errno, request.device));
    if (!S_ISBLK(st.st_mode)) {
        return fail(ENOTBLK, "{} is no block device: mount -t atomic4 -o loop takes an image",
                    request.device);
    }
    Unmounted found;
    // For writing, which proves that it isn't mounted, here or in another namespace.
    auto device = context.open_device(request.device, Access::ReadWrite, Sharing::Exclusive);
    if (!device && device.error().code == EROFS && request.options.read_only) {
        found.write_protected = true;
        device = context.open_device(request.device, Access::ReadOnly, Sharing::Exclusive);
    }
    if (!device) return fail(Error(device.error()));
    ext2_super_block super;
    A4_CHECK((*device)->read(ByteOffset(1024), std::as_writable_bytes(std::span(&super, 1))));
    if (super.s_magic != EXT2_SUPER_MAGIC)
        return fail(EINVAL, "{} holds no ext4: mkfs.atomic4 makes a volume", request.device);
    found.stamp = {super.s_mtime, super.s_mnt_count};
    found.gate = (super.s_feature_compat & kFeatureCompatAtomic4) != 0;
    found.needs_replay = (super.s_feature_incompat & kFeatureIncompatNeedsReplay) != 0;
    found.clean = (super.s_state & EXT2_VALID_FS) != 0 &&
                  (super.s_feature_incompat & EXT3_FEATURE_INCOMPAT_RECOVER) == 0;
    return found;
}

class Mounting {
  public:
    Mounting(const Context& context, const MountRequest& request)
        : context_(context), request_(request) {}

    Result<> run();

  private:
    Result<> recover_unmounted();
    Result<> remount();
    Result<> mount_read_only_at_once();
    Result<> replay(const std::string& where, const Unmounted& before);
    Result<> start_daemon();
    void say(const std::string& text) const {
        if (request_.verbose) context_.print(text + "\n");
    }
    void tell(const ReplayReport& report) const;
    // mount(8) without helpers.
    Result<> call_mount(std::vector<std::string> arguments) const;

    const Context& context_;
    const MountRequest& request_;
    std::string daemon_;
};

Result<> Mounting::call_mount(std::vector<std::string> arguments) const {
    std::vector<std::string> command{"mount"};
    if (request_.no_mtab) command.emplace_back("-n");
    if (request_.sloppy) command.emplace_back("-s");
    command.insert(command.end(), arguments.begin(), arguments.end());
    const int status = A4_TRY(run_program(command));
    if (status == 0) return {};
    // It has said why, on our stderr.
    return fail(EIO, "{}: not mounted: mount(8) ended with status {}", request_.device, status);
}

void Mounting::tell(const ReplayReport& report) const {
    for (const std::string& notice : report.notices)
        context_.warn(fmt::format("{}: {}", request_.device, notice));
    if (report.records > 0) {
        context_.warn(fmt::format("{}: replayed {} ({} bytes) that a crash had left",
                                  request_.device, counted(report.records, "record"),
                                  report.bytes));
    }
    for (const std::string& skipped : report.skipped)
        context_.warn(fmt::format("{}: not replayed: {}", request_.device, skipped));
}

Result<> Mounting::recover_unmounted() {
    say(fmt::format("{}: replaying the redo log of an owned session", request_.device));
    auto device =
        A4_TRY(context_.open_device(request_.device, Access::ReadWrite, Sharing::Exclusive));
    const ReplayReport report = A4_TRY(recover(std::move(device), OnConflict::Keep));
    tell(report);
    if (report.log_emptied) return {};
    return fail(EUCLEAN,
                "{}: not mounted: {}: run atomic4ctl recover {} (it explains; --force or --discard "
                "decide)",
                request_.device,
                !report.failed.empty()      ? report.failed.front()
                : !report.conflicts.empty() ? report.conflicts.front()
                                            : "the redo log is corrupt: " + report.end_detail,
                request_.device);
}

Result<> Mounting::remount() {
    return call_mount({"-i", "-t", "ext4", "-o",
                       request_.options.to_text({request_.options.read_only ? "ro" : "rw"}),
                       request_.device, request_.directory});
}

// Nothing may be written, so nothing can be replayed: what is read must need no replay.
Result<> Mounting::mount_read_only_at_once() {
    {
        auto device =
            A4_TRY(context_.open_device(request_.device, Access::ReadOnly, Sharing::Exclusive));
        auto opened = open_for_reading(std::move(device));
        if (!opened) return fail(std::move(opened).error().with_context("not mounted"));
    }
    return call_mount({"-i", "-t", "ext4", "-o", request_.options.to_text({"ro", "helper=atomic4"}),
                       request_.device, request_.directory});
}

Result<> Mounting::replay(const std::string& where, const Unmounted& before) {
    const auto volume = A4_TRY(MountedVolume::open(where));
    const MountStamp now = A4_TRY(volume->stamp());
    MountHistory history;
    // One mount since we looked, so ours; 16 bits on disk.
    if (now.count == ((before.stamp.fs_mnt_count + 1) & 0xffff))
        history.before_private_mount = {before.stamp, before.clean};
    const MountedLog log = A4_TRY(recover_mounted_log(*volume, history));
    if (log.replayed) tell(*log.replayed);
    return {};
}

Result<> Mounting::start_daemon() {
    say(fmt::format("starting {} {}", daemon_, request_.directory));
    // It goes into the background, and to another directory.
    std::error_code error;
    auto directory = std::filesystem::canonical(request_.directory, error).string();
    if (error) directory = request_.directory;
    const auto status = run_program({daemon_, directory});
    if (status && *status == 0) return {};
    // Unmounted again: nobody may take the volume for one that is served.
    const auto undone = run_program({"umount", "-i", request_.directory});
    const char* what = undone && *undone == 0 ? "not mounted" : "mounted, but not served";
    if (!status) return fail(Error(status.error()).with_context(request_.device + ": " + what));
    return fail(EIO, "{}: {}: atomic4d ended with status {} (-o noatomic4d mounts without it)",
                request_.device, what, *status);
}

Result<> Mounting::run() {
    struct stat st{};
    if (::stat(request_.directory.c_str(), &st) != 0)
        return fail(Error::from_errno(errno, request_.directory));
    if (!S_ISDIR(st.st_mode)) return fail(ENOTDIR, "{} is not a directory", request_.directory);
    if (request_.options.remount) return request_.fake ? Result<>() : remount();

    const bool read_only = request_.options.read_only;
    const bool serve = request_.options.start_daemon && !read_only;
    if (serve && !request_.fake)
        daemon_ = A4_TRY(find_own_program("atomic4d").context("not mounted"));
    Unmounted before = A4_TRY(look_at(context_, request_));
    if (!before.gate) {
        return fail(EINVAL,
                    "{} is not an atomic4 volume: mount it with -t ext4, or run atomic4ctl enable "
                    "{} first",
                    request_.device, request_.device);
    }
    if (request_.fake) return {};
    if (read_only && (before.write_protected || request_.options.no_recovery))
        return mount_read_only_at_once();
    if (before.needs_replay) {
        A4_CHECK(recover_unmounted());
        before = A4_TRY(look_at(context_, request_));
    }
    PrivatePlace place;
    A4_CHECK(place.make().context("not mounted"));
    say(fmt::format("mounting {} on {}", request_.device, place.volume()));
    A4_CHECK(
        call_mount({"-i", "-t", "ext4", "-o", request_.options.to_text({"rw", "helper=atomic4"}),
                    request_.device, place.volume()}));
    place.set_mounted(true);
    A4_CHECK(replay(place.volume(), before).context("not mounted"));
    if (read_only) A4_CHECK(call_mount({"-i", "-o", "remount,ro", place.volume()}));
    say(fmt::format("moving it to {}", request_.directory));
    A4_CHECK(call_mount({"--move", place.volume(), request_.directory}));
    place.set_mounted(false);
    return serve ? start_daemon() : Result<>();
}

}  // namespace

Result<> mount_volume(const Context& context, const MountRequest& request) {
    return Mounting(context, request).run();
}

}  // namespace atomic4::tools
