#include "redo/mounted_replay.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <ranges>

#include "base/text.h"
#include "ext4/handle_files.h"
#include "redo/payload_stream.h"
#include "redo/range_cover.h"
#include "redo/redo_log.h"

namespace atomic4 {

namespace {

constexpr uint64_t kNanoseconds = 1'000'000'000;  // of a second
// More files are flushed by one syncfs than one by one: each fdatasync may be a journal commit.
constexpr size_t kFlushedSingly = 8;

// The kernel takes a direct write of so many bytes in one piece, even where each page is its own.
constexpr uint64_t kWholeWrite = uint64_t{1} << 20;

struct ReplayFile {
    bool usable = false;  // it is there, and takes records
    uint64_t size = 0;
    uint64_t changed = 0;      // ctime, ns
    uint64_t last_record = 0;  // ns
    bool suspicious = false;   // others may have written it since
    uint64_t end = 0;          // the size, as records grow it
    uint64_t grow_to = 0;      // by records that are placed
    RangeCover cover;
    bool failed = false;
    uint64_t lost_ranges = 0, lost_bytes = 0;    // it is gone
    uint64_t conflicts = 0, conflict_bytes = 0;  // operations, bytes in them
    uint64_t clipped_ranges = 0;
};

struct OperationRange {
    ReplayFile* file;
    FileKey key;
    FilePiece bytes;   // clipped to where the file ends
    uint64_t payload;  // where its bytes start, counted from the payload's first
    uint64_t new_size;
    std::vector<FilePiece> pieces;  // to be written, if the operation is placed
};
struct Operation {
    std::vector<OperationRange> ranges;
    bool begun = false;  // more of it than this was placed before
};
struct RecordPlan {
    const LoggedRecord* record;
    std::vector<Operation> operations;
    bool place = false;
};

Result<> grow_file(int fd, uint64_t size) {
    struct stat st{};
    if (::fstat(fd, &st) != 0) return fail(Error::from_errno(errno, "its size"));
    if (static_cast<uint64_t>(st.st_size) >= size) return {};
    if (::ftruncate(fd, static_cast<off_t>(size)) == 0) return {};
    return fail(Error::from_errno(errno, fmt::format("growing to {}", size)));
}

// A fault of the file, not of the device: the other files are replayed all the same.
bool concerns_the_file(int code) {
    switch (code) {
        case ENOSPC:
        case EDQUOT:
        case EFBIG:
        case EPERM:
        case EACCES:
        case ETXTBSY:
        case EUCLEAN:
        case ENOKEY:
            return true;
        default:
            return false;
    }
}

class MountedReplay {
  public:
    MountedReplay(MountedVolume& volume, const LogContents& contents, OnConflict policy,
                  const MountHistory& history, SessionStamp now)
        : volume_(volume),
          contents_(contents),
          policy_(policy),
          history_(history),
          now_(now),
          readable_(volume, O_RDONLY),
          writable_(volume, O_RDWR) {
        const SessionStamp& session = contents.superblock.stamp;
        const auto& before = history.before_private_mount;
        only_ours_ = before && *before == session;
        replaying_ = (contents.superblock.flags & kLogReplaying) != 0;
        went_on_ = now == session && !replaying_;
        in_doubt_ = (contents.superblock.flags & kLogInDoubt) != 0;
        report_.end = contents.end;
        report_.end_detail = contents.end_detail;
    }

    Result<ReplayReport> run() {
        if (policy_ == OnConflict::Discard) {
            report_.discarded = contents_.live.size();
        } else {
            A4_CHECK(find_files());
            plan();
            A4_CHECK(judge());
            A4_CHECK(begin_placing());
            A4_CHECK(place());
            A4_CHECK(flush());
            tell();
        }
        const bool keep = policy_ == OnConflict::Keep &&
                          (!report_.conflicts.empty() || contents_.end == LogEnd::Corrupt);
        if (keep || !report_.failed.empty()) return report_;
        A4_CHECK(reset_log(volume_.log(), contents_, now_));
        report_.log_emptied = true;
        return report_;
    }

  private:
    Result<> find_files();
    Result<> look_at(FileKey key, ReplayFile& file) const;
    bool is_suspicious(const ReplayFile& file) const;
    void plan();
    bool known_placed(const LoggedRecord& record) const {
        return inspecting() && record.sequence <= contents_.placed;
    }
    // Only the daemon died: files are looked at, not written, unless an operation is half there.
    bool inspecting() const { return went_on_ && !in_doubt_; }
    struct Comparison {
        uint64_t equal = 0, differing = 0, differing_suspicious = 0;  // blocks
    };
    Result<Comparison> compare(const Operation& operation, std::span<const std::byte> payload);
    enum class Verdict {
        Settled,   // it is there, or later ones are in its place
        Leave,     // nothing of it is there
        Place,     // its pieces are to be written
        Conflict,  // others' newer bytes may be there
    };
    Result<Verdict> decide(const Operation& operation, const LoggedRecord& record,
                           std::vector<std::byte>& payload);
    Result<> judge();
    Result<bool> gave_up(FileKey key, ReplayFile& file, Error error);
    Result<> place_range(const OperationRange& range, std::span<const std::byte> payload);
    Result<> begin_placing();
    Result<> place();
    Result<> grow();
    Result<> flush();
    void tell();

    MountedVolume& volume_;
    const LogContents& contents_;
    OnConflict policy_;
    MountHistory history_;
    SessionStamp now_;
    bool only_ours_ = false;
    bool went_on_ = false;
    bool replaying_ = false;
    bool in_doubt_ = false;
    HandleFiles readable_;
    HandleFiles writable_;
    std::map<FileKey, ReplayFile> files_;
    std::vector<RecordPlan> plans_;  // in the order of the log
    ReplayReport report_;
};

Result<> MountedReplay::look_at(FileKey key, ReplayFile& file) const {
    // O_PATH: no lease is broken, no guard asked, and a FIFO doesn't wait.
    const auto fd = volume_.open_by_handle(key.first, key.second, O_PATH);
    if (!fd && fd.error().code == ESTALE) return {};
    if (!fd) return fail(Error(fd.error()).with_context("replay"));
    struct stat st{};
    if (::fstat(fd->get(), &st) != 0)
        return fail(Error::from_errno(errno, fmt::format("inode {}", key.first)));
    if (!S_ISREG(st.st_mode) || key.first == volume_.attr().log_inode ||
        key.first == volume_.lock_inode())
        return {};
    file.usable = true;
    file.size = static_cast<uint64_t>(st.st_size);
    file.end = file.size;
    file.changed = static_cast<uint64_t>(st.st_ctim.tv_sec) * kNanoseconds +
                   static_cast<uint64_t>(st.st_ctim.tv_nsec);
    return {};
}

Result<> MountedReplay::find_files() {
    for (const LoggedRecord& record : contents_.live) {
        for (const RangeRef& range : record.ranges) {
            ReplayFile& file = files_[{range.inode, range.generation}];
            file.last_record = std::max(file.last_record, record.time);
        }
    }
    for (auto& [key, file] : files_) {
        A4_CHECK(look_at(key, file));
        file.suspicious = is_suspicious(file);
    }
    return {};
}

bool MountedReplay::is_suspicious(const ReplayFile& file) const {
    if (policy_ == OnConflict::Force) return false;
    if (file.changed <= file.last_record + kClockSlackSeconds * kNanoseconds) return false;
    // Nobody but an earlier replay, which had judged.
    if (only_ours_ && replaying_) return false;
    if (went_on_) {
        // Who was told "in doubt" may have written again by other means.
        const bool unguarded = (contents_.superblock.flags & kLogUnguarded) != 0;
        return unguarded || !history_.guard_unbroken || in_doubt_;
    }
    // Changed under our own mount that nobody saw: ext4 finished a truncation of before the crash.
    if (only_ours_) return file.changed < now_.fs_mtime * kNanoseconds;
    return true;
}

// Oldest first, for the sizes.
void MountedReplay::plan() {
    for (const LoggedRecord& record : contents_.live) {
        if (known_placed(record)) continue;
        RecordPlan plan{&record, {}, false};
        std::map<uint32_t, size_t> operations;  // by number
        uint64_t payload = 0;
        for (const RangeRef& range : record.ranges) {
            const FileKey key{range.inode, range.generation};
            ReplayFile& file = files_.at(key);
            const uint64_t begin = range.offset.value();
            const uint64_t length = range.length.value();
            const uint64_t from = std::exchange(payload, payload + length);
            if (!file.usable) {
                ++file.lost_ranges;
                file.lost_bytes += length;
                continue;
            }
            file.end = std::max(file.end, range.new_size.value());
            if (begin + length > file.end) ++file.clipped_ranges;
            const auto [at, fresh] = operations.emplace(range.operation, plan.operations.size());
            if (fresh) plan.operations.emplace_back();
            plan.operations[at->second].begun = (range.operation & kOperationBegun) != 0;
            plan.operations[at->second].ranges.push_back(
                {&file,
                 key,
                 {begin, std::max(begin, std::min(begin + length, file.end))},
                 from,
                 range.new_size.value(),
                 {}});
        }
        plans_.push_back(std::move(plan));
    }
}

Result<MountedReplay::Comparison> MountedReplay::compare(const Operation& operation,
                                                         std::span<const std::byte> payload) {
    Comparison result;
    const uint64_t block = volume_.block_size().value();
    std::vector<std::byte> stored(block);
    for (const OperationRange& range : operation.ranges) {
        const auto fd = readable_.get(range.key);
        if (!fd && fd.error().code == ESTALE) continue;  // deleted at this moment
        A4_CHECK(fd);
        for (const FilePiece& piece : range.pieces) {
            for (uint64_t at = piece.begin; at < piece.end;) {
                const uint64_t end = std::min(piece.end, round_down(at, block) + block);
                const auto part = std::span(stored).first(end - at);
                bool equal = end <= range.file->size;
                if (equal) {
                    A4_CHECK(read_all(*fd, part, ByteOffset(at)));
                    equal = std::memcmp(part.data(),
                                        payload.data() + range.payload + (at - range.bytes.begin),
                                        part.size()) == 0;
                }
                ++(equal ? result.equal : result.differing);
                if (!equal && range.file->suspicious) ++result.differing_suspicious;
                at = end;
            }
        }
    }
    return result;
}

// What is to be done with an operation; its pieces are what later ones have left of it.
Result<MountedReplay::Verdict> MountedReplay::decide(const Operation& operation,
                                                     const LoggedRecord& record,
                                                     std::vector<std::byte>& payload) {
    bool anything = false;
    bool suspicious = false;
    for (const OperationRange& range : operation.ranges) {
        anything = anything || !range.pieces.empty();
        suspicious = suspicious || (range.file->suspicious && !range.pieces.empty());
    }
    if (!anything) return Verdict::Settled;
    if (!inspecting() && !suspicious) return Verdict::Place;
    if (payload.empty()) payload = A4_TRY(read_payload(volume_.log(), record));
    const Comparison found = A4_TRY(compare(operation, payload));
    if (inspecting()) {
        if (found.differing == 0) return Verdict::Settled;
        if (found.equal == 0 && !operation.begun) return Verdict::Leave;
        // A single write that was given to the kernel is there as a whole, whatever became of the
        // daemon. If others could open the file since, what differs is theirs.
        if (policy_ == OnConflict::Keep && !history_.guard_unbroken && found.equal > 0 &&
            found.differing_suspicious == 0 && operation.ranges.size() == 1 &&
            operation.ranges[0].bytes.length() <= kWholeWrite)
            return Verdict::Leave;
    }
    return found.differing_suspicious > 0 ? Verdict::Conflict : Verdict::Place;
}

// Newest first: what a later operation settles, an earlier one has no say in.
Result<> MountedReplay::judge() {
    for (auto plan = plans_.rbegin(); plan != plans_.rend(); ++plan) {
        std::vector<std::byte> payload;  // read if it is needed
        for (Operation& operation : plan->operations | std::views::reverse) {
            for (OperationRange& range : operation.ranges)
                range.pieces = range.file->cover.missing(range.bytes);
            const Verdict verdict =
                A4_TRY(decide(operation, *plan->record, payload)
                           .context(fmt::format("replay: record {}", plan->record->sequence)));
            plan->place = plan->place || verdict == Verdict::Place;
            for (OperationRange& range : operation.ranges) {
                ReplayFile& file = *range.file;
                if (verdict == Verdict::Conflict) {
                    ++file.conflicts;
                    file.conflict_bytes += range.bytes.length();
                }
                if (verdict == Verdict::Place || verdict == Verdict::Settled) {
                    file.cover.add(range.bytes);
                    // Where the kernel went on and all is there, the size is too, or was cut since.
                    if (verdict == Verdict::Place || !inspecting())
                        file.grow_to = std::max(file.grow_to, range.new_size);
                }
                if (verdict != Verdict::Place) range.pieces.clear();
            }
        }
    }
    return {};
}

// True: the file's own fault, which is noted; the others are replayed all the same.
Result<bool> MountedReplay::gave_up(FileKey key, ReplayFile& file, Error error) {
    if (error.code != ESTALE && !concerns_the_file(error.code)) return fail(std::move(error));
    file.failed = true;
    if (error.code == ESTALE)
        file.usable = false;  // deleted at this moment
    else
        report_.failed.push_back(fmt::format("inode {}: {}", key.first, error.message));
    return true;
}

Result<> MountedReplay::place_range(const OperationRange& range,
                                    std::span<const std::byte> payload) {
    ReplayFile& file = *range.file;
    for (const FilePiece& piece : range.pieces) {
        if (file.failed) return {};
        const auto bytes =
            payload.subspan(range.payload + (piece.begin - range.bytes.begin), piece.length());
        const auto fd = writable_.get(range.key);
        auto done =
            fd ? write_all(*fd, bytes, ByteOffset(piece.begin)) : Result<>(fail(Error(fd.error())));
        if (!done && A4_TRY(gave_up(range.key, file, std::move(done).error()))) return {};
        report_.bytes += Bytes(bytes.size());
    }
    return {};
}

// Only where nobody else can write meanwhile.
Result<> MountedReplay::begin_placing() {
    const bool conflicts =
        std::ranges::any_of(files_, [](const auto& file) { return file.second.conflicts > 0; });
    if (!only_ours_ || conflicts || contents_.end == LogEnd::Corrupt) return {};
    LogState state = contents_.superblock;
    state.flags |= kLogReplaying;
    state.stamp = now_;
    return store_superblocks(volume_.log(), state, contents_.slot);
}

Result<> MountedReplay::place() {
    PayloadStream stream(volume_.log(), contents_.superblock.end());
    for (const RecordPlan& plan : plans_) {
        if (!plan.place) continue;
        const std::string what = fmt::format("replay: record {}", plan.record->sequence);
        const auto payload = A4_TRY(stream.payload(*plan.record).context(what));
        for (const Operation& operation : plan.operations) {
            for (const OperationRange& range : operation.ranges)
                A4_CHECK(place_range(range, payload).context(what));
        }
        ++report_.records;
    }
    return grow();
}

// A record's new size may lie beyond its bytes.
Result<> MountedReplay::grow() {
    for (auto& [key, file] : files_) {
        if (file.failed || file.grow_to <= file.size) continue;
        const auto fd = writable_.get(key);
        auto done = fd ? grow_file(*fd, file.grow_to) : Result<>(fail(Error(fd.error())));
        if (!done) A4_TRY(gave_up(key, file, std::move(done).error().with_context("replay")));
    }
    return {};
}

// The placed bytes, ours and those of before, are durable before the records that could place them
// again are dropped.
Result<> MountedReplay::flush() {
    std::vector<FileKey> keys;
    for (const auto& [key, file] : files_) {
        if (file.usable) keys.push_back(key);
    }
    const auto confirm = [&] {
        return volume_.check_journal().context("replay: what was placed is in doubt");
    };
    if (keys.size() > kFlushedSingly || !writable_.kept_all()) {
        if (::syncfs(volume_.root_fd()) == 0) return confirm();
        return fail(EIO, "replay: flush of {}: {}; what was placed is in doubt",
                    volume_.mount_point(), std::strerror(errno));
    }
    for (const FileKey& key : keys) {
        // The descriptor that wrote, if there is one: it hears of every error since.
        const auto fd = writable_.has(key) ? writable_.get(key) : readable_.get(key);
        if (!fd && fd.error().code == ESTALE) continue;
        if (!fd) return fail(Error(fd.error()).with_context("replay"));
        if (::fdatasync(*fd) == 0) continue;
        return fail(EIO, "replay: flush of inode {}: {}; what was placed is in doubt", key.first,
                    std::strerror(errno));
    }
    return confirm();
}

void MountedReplay::tell() {
    for (const auto& [key, file] : files_) {
        if (!file.usable && file.lost_ranges > 0) {
            report_.skipped.push_back(fmt::format("inode {}: the file is gone: {} ({} bytes)",
                                                  key.first, counted(file.lost_ranges, "range"),
                                                  file.lost_bytes));
        } else if (file.clipped_ranges > 0) {
            report_.skipped.push_back(fmt::format("inode {}: {} beyond EOF ({})", key.first,
                                                  counted(file.clipped_ranges, "range"), file.end));
        }
        if (file.conflicts > 0) {
            report_.conflicts.push_back(fmt::format(
                "inode {}: it was changed by others after its last record: {} ({} bytes) not "
                "replayed over it",
                key.first, counted(file.conflicts, "write"), file.conflict_bytes));
        }
    }
}

}  // namespace

Result<SessionStamp> session_stamp(const MountedVolume& volume) {
    const MountStamp stamp = A4_TRY(volume.stamp());
    return SessionStamp{stamp.mtime, stamp.count};
}

Result<ReplayReport> replay_mounted(MountedVolume& volume, const LogContents& contents,
                                    OnConflict policy, const MountHistory& history) {
    const SessionStamp now = A4_TRY(session_stamp(volume).context("replay"));
    return MountedReplay(volume, contents, policy, history, now).run();
}

Result<MountedLog> recover_mounted_log(MountedVolume& volume, const MountHistory& history) {
    const std::string& name = volume.device();
    MountedLog result;
    auto contents = read_log(volume.log(), volume.attr().log_id);
    if (!contents && contents.error().code == EUCLEAN) {
        return fail(EUCLEAN,
                    "{}: {}: unmounted, atomic4ctl recover --discard {} gives up whatever it held",
                    name, contents.error().message, name);
    }
    result.contents = A4_TRY(std::move(contents).context(name));
    if (result.contents.live.empty() && result.contents.end != LogEnd::Corrupt) return result;
    result.replayed =
        A4_TRY(replay_mounted(volume, result.contents, OnConflict::Keep, history).context(name));
    const ReplayReport& report = *result.replayed;
    if (!report.log_emptied) {
        return fail(EUCLEAN,
                    "{}: {}: unmounted, run atomic4ctl recover {} (it explains; --force or "
                    "--discard decide)",
                    name,
                    !report.failed.empty()      ? report.failed.front()
                    : !report.conflicts.empty() ? report.conflicts.front()
                                                : "the redo log is corrupt: " + report.end_detail,
                    name);
    }
    result.contents = A4_TRY(read_log(volume.log(), volume.attr().log_id).context(name));
    return result;
}

}  // namespace atomic4
