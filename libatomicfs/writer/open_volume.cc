#include "writer/open_volume.h"

#include "base/text.h"
#include "ext4/bitmap_rebuild.h"
#include "ext4/transaction.h"
#include "redo/redo_log.h"
#include "redo/volume_log.h"

namespace atomic4 {

namespace {

Result<> open_log(OpenVolume& open) {
    open.log = A4_TRY(open_log_device(*open.volume).context(open.volume->name()));
    open.log_contents =
        A4_TRY(read_log(*open.log, open.volume->attr()->log_id).context(open.volume->name()));
    return {};
}

// What to do about a log that is gone or damaged beyond reading.
Error with_advice(Error error, const Volume& volume) {
    if (error.code != ESTALE && error.code != EUCLEAN) return error;
    if (volume.needs_replay() || error.code == EUCLEAN)
        error.message += ": atomic4ctl recover --discard gives up whatever it held";
    else
        error.message += ": atomic4ctl enable makes a new one";
    return error;
}

Result<OpenVolume> open(std::unique_ptr<Device> device, const VolumeOptions& options) {
    OpenVolume open;
    open.volume = A4_TRY(Volume::open(std::move(device), options));
    if (auto done = open_log(open); !done)
        return fail(with_advice(std::move(done).error(), *open.volume));
    return open;
}

bool pending(const OpenVolume& open) {
    return !open.log_contents.live.empty() || open.volume->needs_replay() ||
           open.log_contents.end == LogEnd::Corrupt;
}

}  // namespace

Result<OpenVolume> open_for_writing(std::unique_ptr<Device> device,
                                    std::optional<bool> may_use_reserved) {
    VolumeOptions options;
    options.purpose = OpenFor::Write;
    options.may_use_reserved = may_use_reserved;
    OpenVolume opened = A4_TRY(open(std::move(device), options));
    if (!pending(opened)) return opened;
    const std::string name = opened.volume->name();
    ReplayReport report = A4_TRY(
        replay(*opened.volume, *opened.log, opened.log_contents, OnConflict::Keep).context(name));
    if (!report.log_emptied) {
        return fail(EUCLEAN,
                    "{}: {}: run atomic4ctl recover (it explains; --force or --discard decide)",
                    name,
                    !report.failed.empty()      ? report.failed.front()
                    : !report.conflicts.empty() ? report.conflicts.front()
                                                : "the redo log is corrupt: " + report.end_detail);
    }
    opened.log_contents =
        A4_TRY(read_log(*opened.log, opened.volume->attr()->log_id).context(name));
    opened.replayed = std::move(report);
    return opened;
}

Result<OpenVolume> open_for_reading(std::unique_ptr<Device> device) {
    OpenVolume opened = A4_TRY(open(std::move(device), VolumeOptions{}));
    if (!opened.log_contents.live.empty() || opened.log_contents.end == LogEnd::Corrupt) {
        return fail(EBUSY, "{}: the redo log holds {} to replay: run atomic4ctl recover first",
                    opened.volume->name(), counted(opened.log_contents.live.size(), "record"));
    }
    return opened;
}

namespace {

Result<ReplayReport> recover(std::unique_ptr<Device> device, OnConflict policy,
                             VolumeOptions options) {
    options.purpose = OpenFor::Write;
    options.recovering = true;
    OpenVolume opened;
    opened.volume = A4_TRY(Volume::open(std::move(device), options));
    Volume& volume = *opened.volume;
    ReplayReport report;
    if (!volume.attr()) {
        // The log has its name still; afterwards everything is as it should be.
        const auto found = find_log_by_name(volume);
        if (found) {
            Transaction transaction(volume);
            A4_CHECK(volume.stage_attr(*found));
            A4_CHECK(transaction.commit().context(volume.name()));
        } else if (found.error().code != EIO && !volume.needs_replay()) {
            return fail(EUCLEAN,
                        "{}: the volume attribute is {} and there is no redo log: atomic4ctl "
                        "enable or disable was interrupted; run it again",
                        volume.name(), volume.attr_error() ? "damaged" : "missing");
        } else if (policy != OnConflict::Discard || found.error().code == EIO) {
            return fail(with_advice(Error(found.error()), volume));
        }
    }
    if (auto done = volume.attr() ? open_log(opened)
                                  : Result<>(fail(EUCLEAN, "the redo log can't be found"));
        !done) {
        // An I/O error may pass; what is gone or damaged won't come back.
        const bool lost = done.error().code == ESTALE || done.error().code == EUCLEAN;
        if (policy != OnConflict::Discard || !lost)
            return fail(with_advice(std::move(done).error(), volume));
        report.end = LogEnd::Corrupt;
        report.end_detail = done.error().message;
        if (opened.log)
            A4_CHECK(RedoLog::format(*opened.log, volume.attr()->log_id, session_stamp(volume)));
        else
            report.end_detail += "; atomic4ctl enable makes a new one";
        if (volume.needs_replay()) A4_CHECK(volume.write_needs_replay(false));
        report.log_emptied = true;
        report.notices = volume.notices();
        return report;
    }
    // One superblock is damaged, and nothing else: both are written anew.
    if (policy == OnConflict::Discard && !pending(opened) &&
        !opened.log_contents.superblock_damage.empty()) {
        A4_CHECK(reset_log(*opened.log, opened.log_contents, session_stamp(volume)));
    }
    if (pending(opened)) {
        if (options.damaged_too && volume.needs_checking() && !opened.log_contents.live.empty())
            A4_CHECK(prove_all_bitmaps(volume).context(volume.name()));
        report = A4_TRY(replay(*opened.volume, *opened.log, opened.log_contents, policy)
                            .context(opened.volume->name()));
    } else {
        report.end = opened.log_contents.end;
        report.log_emptied = true;
    }
    report.notices = opened.volume->notices();
    return report;
}

}  // namespace

Result<ReplayReport> recover(std::unique_ptr<Device> device, OnConflict policy, bool clear_mmp) {
    VolumeOptions options;
    options.clear_mmp = clear_mmp;
    return recover(std::move(device), policy, options);
}

Result<ReplayReport> recover_damaged(std::unique_ptr<Device> device, OnConflict policy) {
    VolumeOptions options;
    options.damaged_too = true;
    return recover(std::move(device), policy, options);
}

}  // namespace atomic4
