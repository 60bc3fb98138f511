#include "daemon/volume_service.h"

#include <sys/stat.h>

#include "base/text.h"
#include "daemon/foreign_descriptor.h"
#include "device/ownership.h"
#include "redo/mounted_replay.h"
#include "writer/mounted_target.h"
#include "writer/open_volume.h"
#include "writer/owned_target.h"

namespace atomic4 {
namespace {

void tell(const ReplayReport& replay, const VolumeService::Report& report) {
    for (const std::string& notice : replay.notices) report(notice);
    if (replay.records > 0) {
        report(
            fmt::format("replayed {} ({} bytes)", counted(replay.records, "record"), replay.bytes));
    }
    if (!replay.end_detail.empty())
        report(fmt::format("the redo log's end: {} ({})", to_text(replay.end), replay.end_detail));
    for (const auto* lines : {&replay.skipped, &replay.rebuilt, &replay.conflicts, &replay.failed})
        for (const std::string& line : *lines) report(line);
}

class MountedService final : public VolumeService {
  public:
    static Result<std::unique_ptr<VolumeService>> open(EventLoop& loop, ServiceOptions options,
                                                       const Report& report) {
        auto volume = A4_TRY(MountedVolume::open(options.target));
        const std::string name = volume->mount_point();
        MountHistory history;
        history.guard_unbroken = options.guard_unbroken;
        const MountedLog log = A4_TRY(recover_mounted_log(*volume, history).context(name));
        if (log.replayed) tell(*log.replayed, report);
        auto service = std::make_unique<MountedService>();
        service->uuid_ = volume->uuid();
        MountedTarget::Options target;
        target.openers = std::move(options.openers);
        target.why_no_openers = std::move(options.why_no_openers);
        service->target_ =
            A4_TRY(MountedTarget::open(loop, std::move(volume), log.contents, std::move(target)));
        return std::unique_ptr<VolumeService>(std::move(service));
    }

    Target& target() override { return *target_; }
    wire::TargetKind kind() const override { return wire::TargetKind::Mounted; }
    const std::array<uint8_t, 16>& uuid() const override { return uuid_; }

    void open_file(const Peer& peer, OpenWish wish,
                   std::function<void(Result<FileRef>)> done) override {
        const auto grant = authorize_descriptor(peer, wish.descriptor.get(),
                                                target_->volume().dev(), wish.read, wish.write);
        if (!grant) {
            close_foreign(std::move(wish.descriptor), peer.uid);
            return done(fail(Error(grant.error())));
        }
        target_->open_file(std::move(wish.descriptor), peer.pid, wish.cooperative, std::move(done));
    }

  private:
    std::unique_ptr<MountedTarget> target_;
    std::array<uint8_t, 16> uuid_{};
};

class OwnedService final : public VolumeService {
  public:
    static Result<std::unique_ptr<VolumeService>> open(EventLoop& loop, ServiceOptions options,
                                                       const Report& report) {
        FileDeviceOptions access;
        access.access = Access::ReadWrite;
        A4_CHECK(refuse_if_in_use(options.target));
        std::unique_ptr<Device> device = A4_TRY(FileDevice::open(options.target, access));
        // Between the first look and the lock somebody may have come.
        A4_CHECK(refuse_if_in_use(options.target));
        OpenVolume opened = A4_TRY(open_for_writing(std::move(device)));
        for (const std::string& notice : opened.volume->notices()) report(notice);
        if (opened.replayed) tell(*opened.replayed, report);
        auto service = std::make_unique<OwnedService>();
        const auto& super = *opened.volume->fs()->super;
        std::copy(std::begin(super.s_uuid), std::end(super.s_uuid), service->uuid_.begin());
        service->target_ = A4_TRY(OwnedTarget::open(loop, std::move(opened)));
        return std::unique_ptr<VolumeService>(std::move(service));
    }

    Target& target() override { return *target_; }
    wire::TargetKind kind() const override { return wire::TargetKind::Owned; }
    const std::array<uint8_t, 16>& uuid() const override { return uuid_; }

    void open_file(const Peer& peer, OpenWish wish,
                   std::function<void(Result<FileRef>)> done) override {
        const auto open = [&]() -> Result<FileRef> {
            const AuthorizedFile file =
                A4_TRY(authorize_path(target_->volume(), peer, wish.path, wish.read, wish.write));
            return target_->open_file(file.inode);
        };
        done(open().context(wish.path));
    }

  private:
    std::unique_ptr<OwnedTarget> target_;
    std::array<uint8_t, 16> uuid_{};
};

}  // namespace

bool is_mounted_target(const std::string& target) {
    struct stat st{};
    if (::stat(target.c_str(), &st) != 0) return false;
    return S_ISDIR(st.st_mode) || (S_ISBLK(st.st_mode) && mounted_on(target));
}

Result<std::array<uint8_t, 16>> uuid_of_target(const std::string& target) {
    if (is_mounted_target(target)) return A4_TRY(MountedVolume::open(target))->uuid();
    std::array<uint8_t, 16> uuid{};
    VolumeOptions inspect;
    inspect.purpose = OpenFor::Inspect;
    FileDeviceOptions access;
    access.exclusive = false;
    const auto volume = A4_TRY(Volume::open(A4_TRY(FileDevice::open(target, access)), inspect));
    const auto& super = *volume->fs()->super;
    std::copy(std::begin(super.s_uuid), std::end(super.s_uuid), uuid.begin());
    return uuid;
}

Result<> note_unguarded(const std::string& mounted_target) {
    const auto volume = A4_TRY(MountedVolume::open(mounted_target));
    return mark_log(volume->log(), volume->attr().log_id, kLogUnguarded);
}

Result<std::unique_ptr<VolumeService>> VolumeService::open(EventLoop& loop, ServiceOptions options,
                                                           const Report& report) {
    return is_mounted_target(options.target)
               ? MountedService::open(loop, std::move(options), report)
               : OwnedService::open(loop, std::move(options), report);
}

}  // namespace atomic4
