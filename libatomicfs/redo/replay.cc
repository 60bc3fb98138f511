#include "redo/replay.h"

#include <algorithm>
#include <map>

#include "ext4/bitmap_rebuild.h"
#include "ext4/layout.h"
#include "redo/place.h"
#include "redo/redo_log.h"
#include "redo/volume_log.h"

namespace atomic4 {

namespace {

// One range of a record. A file that is gone is no error.
Result<> replay_range(Volume& volume, const RangeRef& range, std::span<const std::byte> data,
                      ReplayReport& report) {
    auto file = read_file(volume, range.inode, range.generation);
    if (!file && file.error().code == ESTALE) {
        report.skipped.push_back(
            fmt::format("{} bytes at {}: {}", range.length, range.offset, file.error().message));
        return {};
    }
    A4_CHECK(file);
    if (!LINUX_S_ISREG(file->inode.i_mode)) {
        report.skipped.push_back(fmt::format("inode {}: not a regular file any more", range.inode));
        return {};
    }
    const Bytes new_size = std::max(range.new_size, file->size);
    if (range.offset.value() >= new_size.value()) {
        report.skipped.push_back(fmt::format("inode {}: {} bytes at {} lie beyond EOF ({})",
                                             range.inode, range.length, range.offset, new_size));
        return {};
    }
    data = data.first(std::min<uint64_t>(data.size(), new_size.value() - range.offset.value()));
    const Bytes length(data.size());
    A4_CHECK(make_ready(volume, *file, range.offset, length, volume.block_size()));
    file = A4_TRY(read_file(volume, range.inode, range.generation));
    A4_CHECK(zero_gap(volume, *file, range.offset, length, new_size));
    A4_CHECK(place(volume, *file, range.offset, data));
    if (new_size > file->size) {
        A4_CHECK(volume.device().flush());
        A4_CHECK(finish_growth(volume, *file, range.offset, length, new_size));
    }
    report.bytes += length;
    return {};
}

Result<> replay_record(Volume& volume, const LoggedRecord& record,
                       std::span<const std::byte> payload, ReplayReport& report) {
    for (const RangeRef& range : record.ranges) {
        A4_CHECK(replay_range(volume, range, payload.first(range.length.value()), report));
        payload = payload.subspan(range.length.value());
    }
    return {};
}

// When each file was last written by a live record, in seconds.
using LastRecords = std::map<std::pair<uint32_t, uint32_t>, uint64_t>;  // by inode, generation

LastRecords last_records(const LogContents& contents) {
    LastRecords last;
    for (const LoggedRecord& record : contents.live) {
        for (const RangeRef& range : record.ranges) {
            uint64_t& time = last[{range.inode, range.generation}];
            time = std::max(time, record.time / 1'000'000'000);
        }
    }
    return last;
}

// Without the needs-replay bit the session was on a mounted volume: the kernel let others write.
bool mounted_session(const Volume& volume) {
    return !volume.needs_replay();
}

// The kernel unmounted the volume after the daemon had died: what was placed is stored, and perhaps
// overwritten since.
bool needs_nothing(const Volume& volume, const LogContents& contents, const LoggedRecord& record) {
    return mounted_session(volume) && session_stamp(volume) == contents.superblock.stamp &&
           (contents.superblock.flags & kLogInDoubt) == 0 && record.sequence <= contents.placed;
}

// Whether one of the record's files may hold newer bytes.
Result<std::optional<std::string>> conflict_of(Volume& volume, const LoggedRecord& record,
                                               const SessionStamp& stamp, const LastRecords& last) {
    const SessionStamp now = session_stamp(volume);
    if (now == stamp && !mounted_session(volume)) return std::optional<std::string>{};
    for (const RangeRef& range : record.ranges) {
        const auto file = read_file(volume, range.inode, range.generation);
        if (!file && file.error().code == ESTALE) continue;
        A4_CHECK(file);
        const uint64_t changed = file->inode.i_ctime;
        const std::string what =
            fmt::format("{} bytes at {} are not replayed over it", range.length, range.offset);
        // Seconds: an equal second counts as later.
        if (now != stamp && changed >= static_cast<uint32_t>(now.fs_mtime)) {
            return std::optional(fmt::format(
                "record {}: inode {} was changed after the volume was mounted again: {}",
                record.sequence, range.inode, what));
        }
        if (mounted_session(volume) &&
            changed > last.at({range.inode, range.generation}) + kClockSlackSeconds) {
            return std::optional(fmt::format(
                "record {}: inode {} was changed after its last record: {} (mount -t atomic4 "
                "compares the bytes)",
                record.sequence, range.inode, what));
        }
    }
    return std::optional<std::string>{};
}

}  // namespace

Result<ReplayReport> replay(Volume& volume, Device& log, const LogContents& contents,
                            OnConflict policy) {
    ReplayReport report;
    report.end = contents.end;
    report.end_detail = contents.end_detail;
    if (policy == OnConflict::Discard) {
        report.discarded = contents.live.size();
    } else {
        // Conflicts are found before anything is placed: replaying touches ctimes itself.
        std::vector<const LoggedRecord*> to_replay;
        const LastRecords last = last_records(contents);
        for (const LoggedRecord& record : contents.live) {
            if (needs_nothing(volume, contents, record)) continue;
            const auto conflict = A4_TRY(
                conflict_of(volume, record, contents.superblock.stamp, last).context("replay"));
            if (conflict) report.conflicts.push_back(*conflict);
            if (!conflict || policy == OnConflict::Force) to_replay.push_back(&record);
        }
        for (const LoggedRecord* record : to_replay) {
            const std::string what = fmt::format("replay: record {}", record->sequence);
            const auto payload = A4_TRY(read_payload(log, *record).context(what));
            auto done = replay_record(volume, *record, payload, report);
            if (!done && done.error().code == EUCLEAN &&
                !volume.block_bitmaps().damaged().empty()) {
                auto rebuilt = rebuild_damaged_bitmaps(volume);
                if (rebuilt) {
                    report.rebuilt.insert(report.rebuilt.end(), rebuilt->begin(), rebuilt->end());
                    done = replay_record(volume, *record, payload, report);
                } else if (rebuilt.error().code != EUCLEAN) {
                    return fail(std::move(rebuilt).error().with_context(what));
                }
            }
            if (done) {
                ++report.records;
            } else if (done.error().code == ENOSPC || done.error().code == EUCLEAN) {
                report.failed.push_back(fmt::format("{}: {}", what, done.error().message));
            } else {
                return fail(std::move(done).error().with_context(what));
            }
        }
    }
    // The placed bytes are durable before the records that could place them again are dropped, and
    // those are dropped before stock tools are let in.
    A4_CHECK(volume.device().flush().context("replay"));
    const bool keep = policy == OnConflict::Keep &&
                      (!report.conflicts.empty() || contents.end == LogEnd::Corrupt);
    if (keep || !report.failed.empty()) return report;
    A4_CHECK(reset_log(log, contents, session_stamp(volume)).context("replay"));
    if (volume.needs_replay()) A4_CHECK(volume.write_needs_replay(false).context("replay"));
    report.log_emptied = true;
    return report;
}

}  // namespace atomic4
