#include "redo/replay.h"

#include <algorithm>
#include <map>
#include <utility>

#include "ext4/bitmap_rebuild.h"
#include "ext4/layout.h"
#include "redo/gathered_writes.h"
#include "redo/place.h"
#include "redo/redo_log.h"
#include "redo/volume_log.h"

namespace atomic4 {

namespace {

// Not mapped by extents any more, or unreadable.
bool is_damage(const Error& error) {
    return error.code == EOPNOTSUPP || error.code == EUCLEAN;
}
// A record that such an error keeps; others stop the replay.
bool is_kept(const Error& error) {
    return is_damage(error) || error.code == ENOSPC;
}

// Replays records in order. What only overwrites mapped, written blocks, as most do, is gathered
// and written in large pieces; whatever else there is to do happens after all that came before it.
class Replayer {
  public:
    Replayer(Volume& volume, ReplayReport& report)
        : volume_(volume), report_(report), gathered_(volume.device()) {}

    Result<> record(const LoggedRecord& record, const Payload& payload) {
        gathered_.keep(payload);
        std::span<const std::byte> rest = payload.bytes;
        Result<> done;
        for (const RangeRef& range : record.ranges) {
            auto replayed = replay(range, rest.first(range.length.value()));
            rest = rest.subspan(range.length.value());
            if (replayed) continue;
            // The others are other files', whose writes it holds, too.
            if (lost_ || !is_kept(replayed.error())) return replayed;
            if (done) done = std::move(replayed);
        }
        A4_CHECK(std::move(done));
        return gathered_.kept() < kGatherMax ? Result<>() : write_gathered();
    }
    Result<> write_gathered() {
        auto written = gathered_.write();
        lost_ = lost_ || !written;
        return written;
    }
    // What was gathered of earlier records could not be written.
    bool lost() const { return lost_; }

  private:
    static constexpr Bytes kGatherMax{uint64_t{16} << 20};
    static constexpr Bytes kChunk{uint64_t{64} << 20};
    static constexpr size_t kChunksMax = 1024;
    static constexpr size_t kChunkMappingsMax = 4096;

    // One range of a record. A file that is gone is no error.
    Result<> replay(const RangeRef& range, std::span<const std::byte> data) {
        auto file = this->file(range);
        if (!file && file.error().code == ESTALE) {
            report_.skipped.push_back(fmt::format("{} bytes at {}: {}", range.length, range.offset,
                                                  file.error().message));
            return {};
        }
        A4_CHECK(file);
        if (!LINUX_S_ISREG(file->inode.i_mode)) {
            report_.skipped.push_back(
                fmt::format("inode {}: not a regular file any more", range.inode));
            return {};
        }
        const Bytes new_size = std::max(range.new_size, file->size);
        if (range.offset.value() >= new_size.value()) {
            report_.skipped.push_back(fmt::format("inode {}: {} bytes at {} lie beyond EOF ({})",
                                                  range.inode, range.length, range.offset,
                                                  new_size));
            return {};
        }
        data = data.first(std::min<uint64_t>(data.size(), new_size.value() - range.offset.value()));
        if (new_size > file->size || !A4_TRY(gather(*file, range.offset, data)))
            A4_CHECK(prepare_and_place(range, *file, data, new_size));
        report_.bytes += Bytes(data.size());
        return {};
    }

    // With holes to fill or a size to set.
    Result<> prepare_and_place(const RangeRef& range, FileState file,
                               std::span<const std::byte> data, Bytes new_size) {
        A4_CHECK(write_gathered());
        files_.clear();
        chunks_.clear();
        mappings_ = 0;
        const Bytes length(data.size());
        A4_CHECK(make_ready(volume_, file, range.offset, length, volume_.block_size()));
        file = A4_TRY(read_file(volume_, range.inode, range.generation));
        A4_CHECK(zero_gap(volume_, file, range.offset, length, new_size));
        A4_CHECK(place(volume_, file, range.offset, data));
        if (new_size > file.size) {
            A4_CHECK(volume_.device().flush());
            A4_CHECK(finish_growth(volume_, file, range.offset, length, new_size));
        }
        return {};
    }

    // False, and nothing gathered, unless all of the range is written blocks.
    Result<bool> gather(const FileState& file, ByteOffset offset, std::span<const std::byte> data) {
        const uint64_t block = volume_.block_size().value();
        struct Part {
            ByteOffset at;
            std::span<const std::byte> bytes;
        };
        std::vector<Part> parts;
        while (!data.empty()) {
            const auto* mapping = A4_TRY(this->mapping(file, Lblk(offset.value() / block)));
            if (mapping == nullptr || mapping->state != MapState::Written) return false;
            const uint64_t skip = offset.value() - mapping->lblk.value() * block;
            const uint64_t n =
                std::min<uint64_t>(data.size(), mapping->length.value() * block - skip);
            parts.push_back({ByteOffset(mapping->pblk.value() * block + skip), data.first(n)});
            data = data.subspan(n);
            offset += Bytes(n);
        }
        for (const Part& part : parts) gathered_.add(part.at, part.bytes);
        return true;
    }

    Result<FileState> file(const RangeRef& range) {
        const std::pair key(range.inode, range.generation);
        if (const auto found = files_.find(key); found != files_.end()) return found->second;
        if (files_.size() >= kChunksMax) files_.clear();
        const FileState state = A4_TRY(read_file(volume_, range.inode, range.generation));
        files_.emplace(key, state);
        return state;
    }

    // The mapping that has this block; null beyond what can be mapped. Valid until the next call.
    Result<const Mapping*> mapping(const FileState& file, Lblk lblk) {
        const uint64_t blocks = kChunk.value() / volume_.block_size().value();
        const std::pair key(file.number, lblk.value() / blocks);
        auto found = chunks_.find(key);
        if (found == chunks_.end()) {
            if (chunks_.size() >= kChunksMax || mappings_ >= kChunksMax * kChunkMappingsMax) {
                chunks_.clear();
                mappings_ = 0;
            }
            auto mapped = A4_TRY(map_range(volume_, file.number, file.inode,
                                           Lblk(key.second * blocks), Blocks(blocks)));
            mappings_ += mapped.size();
            found = chunks_.emplace(key, std::move(mapped)).first;
        }
        const auto it = std::ranges::upper_bound(found->second, lblk, {},
                                                 [](const Mapping& m) { return m.end(); });
        return it == found->second.end() ? nullptr : &*it;
    }

    Volume& volume_;
    ReplayReport& report_;
    GatheredWrites gathered_;
    bool lost_ = false;
    // Read again after every change.
    std::map<std::pair<ext2_ino_t, uint32_t>, FileState> files_;
    std::map<std::pair<ext2_ino_t, uint64_t>, std::vector<Mapping>> chunks_;
    size_t mappings_ = 0;
};

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

// A replay that was cut had judged already, and what changed since was itself.
bool replaying(const Volume& volume, const LogState& log) {
    return (log.flags & kLogReplaying) != 0 && session_stamp(volume) == log.stamp;
}

// Said in the log before anything is placed, where times will be asked: a replay changes them.
Result<> begin_placing(const Volume& volume, Device& log, const LogContents& contents) {
    LogState state = contents.superblock;
    const SessionStamp now = session_stamp(volume);
    if (!mounted_session(volume) && now == state.stamp) return {};
    if (replaying(volume, state) || contents.end == LogEnd::Corrupt) return {};
    state.flags |= kLogReplaying;
    state.stamp = now;
    return store_superblocks(log, state, contents.slot);
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

Result<> replay_records(Volume& volume, Device& log, const LogContents& contents,
                        const std::vector<const LoggedRecord*>& to_replay, Replayer& replayer,
                        ReplayReport& report) {
    PayloadReader reader(log, contents.windows);
    for (const LoggedRecord* record : to_replay) {
        const std::string what = fmt::format("replay: record {}", record->sequence);
        const Payload payload = A4_TRY(reader.read(*record).context(what));
        auto done = replayer.record(*record, payload);
        if (replayer.lost()) return std::move(done).context(what);
        if (!done && done.error().code == EUCLEAN && !volume.block_bitmaps().damaged().empty()) {
            auto rebuilt = rebuild_damaged_bitmaps(volume);
            if (rebuilt) {
                report.rebuilt.insert(report.rebuilt.end(), rebuilt->begin(), rebuilt->end());
                done = replayer.record(*record, payload);
                if (replayer.lost()) return std::move(done).context(what);
            } else if (rebuilt.error().code != EUCLEAN) {
                return fail(std::move(rebuilt).error().with_context(what));
            }
        }
        if (done) {
            ++report.records;
            continue;
        }
        if (!is_kept(done.error())) return fail(std::move(done).error().with_context(what));
        report.failed.push_back(fmt::format("{}: {}", what, done.error().message));
        if (is_damage(done.error()) && volume.block_bitmaps().damaged().empty())
            report.damaged.push_back(report.failed.back());
    }
    return {};
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
            std::optional<std::string> conflict;
            if (!replaying(volume, contents.superblock)) {
                conflict = A4_TRY(
                    conflict_of(volume, record, contents.superblock.stamp, last).context("replay"));
            }
            if (conflict) report.conflicts.push_back(*conflict);
            if (!conflict || policy == OnConflict::Force) to_replay.push_back(&record);
        }
        if (!to_replay.empty() && report.conflicts.empty())
            A4_CHECK(begin_placing(volume, log, contents).context("replay"));
        Replayer replayer(volume, report);
        auto replayed = replay_records(volume, log, contents, to_replay, replayer, report);
        // Also in case of an error: what follows may be a decision to discard.
        auto written = replayer.write_gathered();
        A4_CHECK(std::move(replayed));
        A4_CHECK(std::move(written).context("replay"));
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
