#include "writer/open_volume.h"

#include "base/text.h"
#include "redo/volume_log.h"

namespace atomic4 {

namespace {

Result<OpenVolume> open(std::unique_ptr<Device> device, const VolumeOptions& options) {
    OpenVolume open;
    open.volume = A4_TRY(Volume::open(std::move(device), options));
    open.log = A4_TRY(open_log_device(*open.volume).context(open.volume->name()));
    open.log_contents =
        A4_TRY(read_log(*open.log, open.volume->attr()->log_id).context(open.volume->name()));
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

Result<ReplayReport> recover(std::unique_ptr<Device> device, OnConflict policy) {
    VolumeOptions options;
    options.purpose = OpenFor::Write;
    options.recovering = true;
    OpenVolume opened = A4_TRY(open(std::move(device), options));
    ReplayReport report;
    if (pending(opened)) {
        report = A4_TRY(replay(*opened.volume, *opened.log, opened.log_contents, policy)
                            .context(opened.volume->name()));
    } else {
        report.end = opened.log_contents.end;
        report.log_emptied = true;
    }
    report.notices = opened.volume->notices();
    return report;
}

}  // namespace atomic4
