#include "fsck/log_step.h"

#include <algorithm>
#include <map>

#include "base/text.h"
#include "device/forwarding_device.h"
#include "ext4/errcode.h"
#include "ext4/format.h"
#include "ext4/transaction.h"
#include "ext4/xattr.h"
#include "redo/log_file_repair.h"
#include "redo/volume_log.h"
#include "writer/enable.h"
#include "writer/open_volume.h"

namespace atomic4::tools {

namespace {

bool may_discard(FindingId id) {
    return id == FindingId::LogDamaged || id == FindingId::LogCorrupt ||
           id == FindingId::LogSuperblock;
}

// A record that would lose its end by the file's size, although blocks say that it is wrong:
// one that the kernel cut shorter has none there.
bool cuts_short(const LogContents& contents, const FileState& file,
                const std::vector<Mapping>& mapped, Bytes block_size) {
    const auto beyond = [&](uint64_t end) {
        return std::ranges::any_of(mapped, [&](const Mapping& mapping) {
            const uint64_t last = mapping.end().value() * block_size.value();
            return mapping.state == MapState::Written &&
                   mapping.lblk.value() * block_size.value() < end &&
                   last >= file.size.value() + block_size.value();
        });
    };
    for (const LoggedRecord& record : contents.live) {
        for (const RangeRef& range : record.ranges) {
            const uint64_t end = (range.offset + range.length).value();
            if (range.inode == file.number && range.new_size <= file.size &&
                end > file.size.value() && beyond(end))
                return true;
        }
    }
    return false;
}

// As large as it was, if that can be told.
std::optional<Bytes> size_of_log(Volume& volume) {
    const auto file = read_file(volume, volume.attr()->log_inode);
    EnableOptions as_it_was;
    if (file) as_it_was.log_size = file->size;
    const Bytes all(ext2fs_blocks_count(volume.fs()->super) * volume.block_size().value());
    if (!file || !plan_enable(volume.block_size(), all, as_it_was)) return std::nullopt;
    return file->size;
}

}  // namespace

void LogStep::note(FindingId id, std::string detail) {
    judge({id, "redo log", std::move(detail)}, session_.command.mode, session_.talk);
}

void LogStep::say_what_was_replayed(const ReplayReport& report) {
    if (report.records > 0) {
        note(FindingId::RecordsReplayed,
             fmt::format("{}, {} bytes", counted(report.records, "record"), report.bytes));
    }
    for (const std::string& line : report.skipped) note(FindingId::RecordsOfGoneFiles, line);
    if (report.end == LogEnd::TornTail) note(FindingId::TornTail, report.end_detail);
    for (const std::string& line : report.rebuilt) session_.talk.say(line);
    for (const std::string& line : report.failed) note(FindingId::RecordNotReplayed, line);
    for (const std::string& line : report.notices) session_.talk.say(line);
}

bool LogStep::wants(const Finding& finding) {
    const Verdict verdict = judge(finding, session_.command.mode, session_.talk);
    if (verdict == Verdict::Stop) session_.end(kFsckUncorrected);
    if (verdict == Verdict::Leave) left_ = true;
    return verdict == Verdict::Fix;
}

Result<> LogStep::replay() {
    if (session_.stop_if_told()) return {};
    left_ = false;
    records_left_ = false;
    bool replay = false;
    bool discard = false;
    bool corrupt = false;  // and to be given up
    for (const Finding& finding : A4_TRY(look()).findings) {
        if (finding.id == FindingId::LogUnknown) {
            judge(finding, session_.command.mode, session_.talk);
            session_.end(kFsckOperational);
            return {};
        }
        if (finding.id == FindingId::PartsUnnamed) continue;  // last
        const bool fix = wants(finding);
        if (session_.ended()) return {};
        if (fix &&
            (finding.id == FindingId::LogDamaged || finding.id == FindingId::AttributeDamaged))
            A4_CHECK(repair());
        if (fix && finding.id == FindingId::AttributeDamaged && A4_TRY(records_are_nowhere())) {
            discard = wants({FindingId::LogDamaged, "redo log", "nothing leads to it"}) || discard;
            if (session_.ended()) return {};
        }
        discard = discard || (fix && may_discard(finding.id));
        corrupt = corrupt || (fix && finding.id == FindingId::LogCorrupt);
        // There is none that could be lost, or it would have been found by its name.
        given_up_ = given_up_ || (fix && finding.id == FindingId::AttributeDamaged);
        replay = replay || fix;
    }
    if (!replay) return {};
    if (!A4_TRY(is_safe_to_replay())) {
        records_left_ = true;
        return {};
    }
    if (session_.ended()) return {};
    auto report = recover_damaged(lent(session_.device), OnConflict::Keep);
    if (!report && report.error().code == EIO) return fail(std::move(report).error());
    if (!report) {
        session_.talk.say(report.error().message);
        records_left_ = true;
        if (discard && last_) return give_up();
        return {};
    }
    session_.corrected = session_.corrected || report->records > 0 || report->log_emptied;
    say_what_was_replayed(*report);
    records_left_ = !report->failed.empty();
    std::vector<Finding> to_drop;
    for (const std::string& line : report->conflicts)
        to_drop.push_back({FindingId::RecordConflict, "redo log", line});
    if (last_) {
        for (const std::string& line : report->damaged)
            to_drop.push_back({FindingId::RecordOfDamagedFile, "redo log", line});
    }
    // There is one log: what somebody wants kept, only lacks space, or has come to light just now
    // keeps all of it.
    const bool asked = report->end != LogEnd::Corrupt || corrupt;
    records_left_ = records_left_ || !asked;
    bool keep = !asked || report->failed.size() > report->damaged.size();
    for (const Finding& finding : to_drop) {
        (wants(finding) ? discard : keep) = true;
        if (session_.ended()) return {};
    }
    if (discard && !keep && (last_ || !records_left_)) return give_up();
    return {};
}

Result<bool> LogStep::is_unnamed() {
    const auto volume = A4_TRY(session_.open(OpenFor::Inspect));
    if (!volume->attr() || !open_log_device(*volume)) return false;
    const auto named = parts_are_named(*volume);
    return named && !*named;
}

Result<> LogStep::name_parts() {
    unnamed_ = false;
    if (!A4_TRY(is_unnamed())) return {};
    if (!wants({FindingId::PartsUnnamed, "redo log", "neither a mount nor a daemon finds it"}))
        return {};
    const auto volume = A4_TRY(session_.open(OpenFor::Write));
    auto done = atomic4::name_parts(*volume);
    if (!done && done.error().code == EIO) return done;
    if (!done) session_.talk.say(done.error().message);
    unnamed_ = !done;
    session_.corrected = session_.corrected || done;
    return {};
}

Result<bool> LogStep::records_are_nowhere() {
    const auto volume = A4_TRY(session_.open(OpenFor::Inspect));
    return volume->needs_replay() && !volume->attr();
}

Result<CheckReport> LogStep::look() {
    const auto volume = A4_TRY(session_.open(OpenFor::Inspect));
    return check_log(*volume);
}

Result<bool> LogStep::is_damaged_rather_than_gone(Volume& volume, ext2_ino_t number,
                                                  uint32_t generation) {
    ext2_inode inode{};
    if (last_ || ext2fs_read_inode(volume.fs(), number, &inode) != 0) return false;
    if ((inode.i_flags & kInodeFlagAtomic) == 0 || inode.i_dtime != 0) return false;
    const auto unit = read_xattr(volume.fs(), number, kUnitXattr);
    if (!unit || !unit->has_value()) return false;
    if (inode.i_generation == generation) return true;
    if (inode.i_generation != 0) return false;
    if (!wants({FindingId::GenerationZero, "redo log",
                fmt::format("inode {}, by its records {}", number, generation)}))
        return true;
    const auto writable = A4_TRY(session_.open(OpenFor::Write));
    const std::string what = fmt::format("inode {}", number);
    A4_CHECK(check_errcode(ext2fs_read_inode(writable->fs(), number, &inode), what));
    Transaction transaction(*writable);
    inode.i_generation = generation;
    A4_CHECK(check_errcode(ext2fs_write_inode(writable->fs(), number, &inode), what));
    A4_CHECK(transaction.commit());
    session_.corrected = true;
    return true;
}

Result<bool> LogStep::is_safe_to_replay() {
    const auto volume = A4_TRY(session_.open(OpenFor::Inspect));
    if (!volume->attr()) return true;
    const auto log = open_log_device(*volume);
    if (!log) return true;
    const auto contents = read_log(**log, volume->attr()->log_id);
    if (!contents) return true;
    std::map<ext2_ino_t, uint32_t> files;
    for (const LoggedRecord& record : contents->live) {
        for (const RangeRef& range : record.ranges) files[range.inode] = range.generation;
    }
    std::set<ext2_ino_t> inodes;
    for (const auto& [inode, generation] : files) {
        const auto file = read_file(*volume, inode, generation);
        if (!file && file.error().code == EUCLEAN) damaged_.insert(inode);
        if (!file && file.error().code == ESTALE && damaged_.contains(inode)) {
            if (!wants({FindingId::RecordOfDamagedFile, "redo log", file.error().message}))
                return false;
        }
        if (!file && A4_TRY(is_damaged_rather_than_gone(*volume, inode, generation))) {
            note(FindingId::RecordNotSafe, fmt::format("inode {} is damaged", inode));
            return false;
        }
        if (!file) continue;
        if (!last_ && file->atomic && !LINUX_S_ISREG(file->inode.i_mode)) {
            note(FindingId::RecordNotSafe,
                 fmt::format("inode {} is no regular file by its mode", inode));
            return false;
        }
        const auto mapped = map_range(*volume, inode, file->inode, Lblk(0), kWholeFile);
        if (!mapped && mapped.error().code == EUCLEAN) damaged_.insert(inode);
        if (!last_ && mapped && cuts_short(*contents, *file, *mapped, volume->block_size())) {
            note(FindingId::RecordNotSafe,
                 fmt::format("inode {} has written blocks beyond its size", inode));
            return false;
        }
        inodes.insert(inode);
    }
    if (inodes.empty()) return true;
    const auto lines = A4_TRY(shared_blocks_of(*volume, inodes));
    for (const std::string& line : lines) note(FindingId::RecordNotSafe, line);
    return lines.empty();
}

Result<> LogStep::repair() {
    const auto volume = A4_TRY(session_.open(OpenFor::Write));
    auto repaired = volume->attr() ? repair_log_file(*volume) : Result<bool>(false);
    if (repaired && !*repaired) repaired = repair_way_to_log(*volume);
    if (!repaired && repaired.error().code == EIO) return fail(std::move(repaired).error());
    session_.corrected = session_.corrected || (repaired && *repaired);
    return {};
}

Result<> LogStep::give_up() {
    given_up_ = true;
    if (A4_TRY(is_lost())) {
        session_.talk.say(
            "what the redo log held can't be read: writes that were acknowledged last "
            "may be lost");
        const auto volume = A4_TRY(session_.open(OpenFor::Write));
        if (volume->needs_replay()) A4_CHECK(volume->write_needs_replay(false));
    } else {
        const ReplayReport report =
            A4_TRY(recover_damaged(lent(session_.device), OnConflict::Discard));
        if (report.discarded > 0)
            session_.talk.say(fmt::format("{} given up", counted(report.discarded, "record")));
    }
    session_.corrected = true;
    records_left_ = false;
    return {};
}

Result<bool> LogStep::is_lost() {
    const CheckReport report = A4_TRY(look());
    return std::ranges::any_of(report.findings, [](const Finding& finding) {
        return finding.id == FindingId::LogDamaged || finding.id == FindingId::AttributeDamaged;
    });
}

Result<bool> LogStep::renew(bool broken) {
    if (!broken && !given_up_) return false;
    if (!broken && !A4_TRY(is_lost())) return false;
    const auto volume = A4_TRY(session_.open(OpenFor::Write));
    EnableOptions options;
    options.replace_log = true;
    if (volume->attr()) {
        options.unit = volume->attr()->unit;
        options.log_size = size_of_log(*volume);
    }
    auto enabled = enable(*volume, options);
    if (!enabled && enabled.error().code == EIO) return fail(std::move(enabled).error());
    session_.talk.say(enabled ? "it has a new redo log" : enabled.error().message);
    session_.corrected = session_.corrected || enabled;
    left_ = !enabled;
    if (enabled) records_left_ = false;  // they were in the old one
    return enabled.has_value();
}

Result<bool> LogStep::is_left() {
    left_ = left_ || records_left_ || A4_TRY(is_lost());
    return left();
}

std::optional<SessionStamp> live_session(Volume& volume) {
    if (!volume.attr()) return std::nullopt;
    const auto log = open_log_device(volume);
    if (!log) return std::nullopt;
    const auto contents = read_log(**log, volume.attr()->log_id);
    if (!contents || contents->live.empty()) return std::nullopt;
    return contents->superblock.stamp;
}

}  // namespace atomic4::tools
