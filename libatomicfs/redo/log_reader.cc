#include "redo/log_reader.h"

#include <algorithm>
#include <cstring>

#include "base/crc32c.h"
#include "redo/log_buffer.h"

namespace atomic4 {
namespace {

constexpr Bytes kReadAhead{uint64_t{4} << 20};

using Block = std::span<const std::byte, kLogBlock>;

Error read_error(Error error) {
    error.code = EIO;
    return error;
}

// The log block by block, read ahead in large pieces.
class BlockWindow {
  public:
    BlockWindow(Device& log, ByteOffset end) : log_(log), end_(end) {}

    // Puts what is read from here on into `windows` too, while there is room; null: no more.
    void keep_in(std::vector<LogWindow>* windows) { keep_ = windows; }

    // Valid until the next call. position is a log block before the end.
    Result<Block> block(ByteOffset position) {
        if (position < start_ || position >= start_ + length_) A4_CHECK(fill(position));
        return Block(memory_.subspan((position - start_).value()).first<kLogBlock>());
    }

  private:
    static constexpr Bytes kWindow{4 << 20};
    static constexpr size_t kWindowsMax = 32;

    Result<> fill(ByteOffset position) {
        // What is kept must not be read over.
        if (keep_ || !own_ || own_.use_count() > 1) own_ = std::make_shared<PayloadMemory>();
        length_ = Bytes(0);  // what memory_ showed is gone, also if get() fails
        const Bytes length = std::min(kWindow, end_ - position);
        memory_ = A4_TRY(own_->get(length));
        start_ = position;
        length_ = length;
        if (log_.read(position, memory_)) {
            if (keep_ && keep_->size() < kWindowsMax) keep_->push_back({position, memory_, own_});
            return {};
        }
        // The block itself may be readable: the error must name the place that isn't, and must not
        // depend on how far ahead we read.
        length_ = Bytes(0);
        auto read = log_.read(position, memory_.first(kLogBlock));
        if (!read)
            return fail(read_error(std::move(read).error())
                            .with_context(fmt::format("block at {}", position)));
        length_ = Bytes(kLogBlock);
        return {};
    }

    Device& log_;
    ByteOffset end_;
    std::shared_ptr<PayloadMemory> own_;
    std::vector<LogWindow>* keep_ = nullptr;
    std::span<std::byte> memory_;
    ByteOffset start_;
    Bytes length_;
};

enum class Verdict {
    Absent,      // no record of this epoch and sequence
    Torn,        // one that was not completely written, or was damaged since
    Impossible,  // proven to be ours by its checksum, but it says what no writer would
    Valid,
};

struct Checked {
    Verdict verdict = Verdict::Absent;
    std::string detail;
    LoggedRecord record;  // Valid only: ranges are empty for a pad
    bool pad = false;
    uint64_t retired = 0;
    uint64_t placed = 0;
};

struct RecordAt {
    ByteOffset position;
    uint64_t sequence;
    Bytes room;  // how long it can be at most
};

RecordHeader header_in(Block block) {
    RecordHeader header;
    std::memcpy(&header, block.data(), sizeof header);
    return header;
}

// Decides on the lengths without ever adding two numbers from the disk that could overflow. Empty:
// they are consistent.
std::string check_lengths(const RecordHeader& header, const LogState& log, const RecordAt& at) {
    const uint64_t total = header.total_length;
    const uint64_t head = header.header_length;
    const uint64_t payload = header.payload_length;
    if (total > at.room.value())
        return fmt::format("total length {} is beyond the log's end", total);
    if (header.type == kRecordPad) {
        if (at.position + Bytes(total) != log.end()) return "a pad that doesn't reach the end";
        if (head != kLogBlock || header.range_count != 0 || payload != 0 || header.payload_crc != 0)
            return "a pad with contents";
        return {};
    }
    if (header.range_count == 0) return "no ranges";
    if (head != record_header_length(header.range_count).value() || head > total)
        return fmt::format("header length {} for {} ranges", head, uint32_t{header.range_count});
    if (payload > total - head || record_padded(Bytes(payload)).value() != total - head)
        return fmt::format("payload length {} in a record of {}", payload, total);
    return {};
}

std::string check_fields(const RecordHeader& header, const LogState& log, const RecordAt& at) {
    if (header.type != kRecordData && header.type != kRecordPad)
        return fmt::format("unknown type {}", uint32_t{header.type});
    if (header.flags != 0) return fmt::format("unknown flags {:#x}", uint32_t{header.flags});
    if (header.log_id != log.log_id) return "another log's id";
    if (header.position != at.position.value())
        return fmt::format("it was written for position {}", uint64_t{header.position});
    if (header.retired >= at.sequence)
        return fmt::format("it retires record {}, which came later", uint64_t{header.retired});
    if (header.placed >= at.sequence)
        return fmt::format("it says that record {} is placed, which came later",
                           uint64_t{header.placed});
    return check_lengths(header, log, at);
}

// A record's ranges, from its header's blocks. Empty: they don't add up to payload_length.
Result<std::vector<RangeRef>> read_ranges(BlockWindow& window, const RecordHeader& header,
                                          ByteOffset position) {
    std::vector<RangeRef> ranges;
    ranges.reserve(header.range_count);
    uint64_t left = header.payload_length;
    for (uint64_t i = 0; i < header.range_count; ++i) {
        const uint64_t at = sizeof(RecordHeader) + i * sizeof(RecordRange);
        const Block block = A4_TRY(window.block(position + Bytes(round_down(at, kLogBlock))));
        RecordRange raw;
        std::memcpy(&raw, block.data() + at % kLogBlock, sizeof raw);
        const uint64_t length = raw.length;
        if (length == 0 || length > left || raw.offset + length < length)
            return std::vector<RangeRef>{};
        left -= length;
        ranges.push_back({raw.inode, raw.generation, ByteOffset(raw.offset), Bytes(length),
                          Bytes(raw.new_size), raw.operation});
    }
    if (left != 0) ranges.clear();
    return ranges;
}

Result<uint32_t> crc_of_blocks(BlockWindow& window, ByteOffset from, Bytes length, uint32_t crc) {
    for (const ByteOffset end = from + length; from < end; from += Bytes(kLogBlock))
        crc = crc32c(crc, A4_TRY(window.block(from)));
    return crc;
}

// Is there a valid record `at.sequence` at `at.position`?
Result<Checked> check_record(BlockWindow& window, const LogState& log, const RecordAt& at) {
    Checked result;
    const auto found = [&](Verdict verdict, std::string detail) {
        result.verdict = verdict;
        result.detail = std::move(detail);
        return std::move(result);
    };

    const Block first = A4_TRY(window.block(at.position));
    const RecordHeader header = header_in(first);
    if (header.magic != kRecordMagic || header.epoch != log.epoch || header.sequence != at.sequence)
        return found(Verdict::Absent, {});

    // Before the checksum is known to hold, the length only bounds what it is computed over.
    const Bytes head{header.header_length};
    if (!is_aligned(head.value(), kLogBlock) || head.value() == 0 || head > at.room)
        return found(Verdict::Torn, fmt::format("header length {}", head));
    const uint32_t seed = record_seed(log.epoch, at.sequence, at.position);
    const uint32_t first_crc = record_header_crc(first, seed);
    const uint32_t header_crc = A4_TRY(
        crc_of_blocks(window, at.position + Bytes(kLogBlock), head - Bytes(kLogBlock), first_crc));
    if (header_crc != header.header_crc) return found(Verdict::Torn, "wrong header checksum");

    if (auto wrong = check_fields(header, log, at); !wrong.empty())
        return found(Verdict::Impossible, std::move(wrong));
    result.record.sequence = at.sequence;
    result.record.position = at.position;
    result.record.total_length = Bytes(header.total_length);
    result.record.payload = at.position + head;
    result.record.time = header.time;
    result.retired = header.retired;
    result.placed = header.placed;
    result.pad = header.type == kRecordPad;
    if (result.pad) return found(Verdict::Valid, {});

    result.record.ranges = A4_TRY(read_ranges(window, header, at.position));
    if (result.record.ranges.empty())
        return found(Verdict::Impossible, "its ranges don't add up to its payload");
    const uint32_t payload_crc = A4_TRY(
        crc_of_blocks(window, result.record.payload, result.record.total_length - head, seed));
    if (payload_crc != header.payload_crc) return found(Verdict::Torn, "wrong payload checksum");
    result.record.payload_seed = seed;
    result.record.payload_crc = header.payload_crc;
    return found(Verdict::Valid, {});
}

std::string record_name(uint64_t sequence, ByteOffset position) {
    return fmt::format("record {} at {}", sequence, position);
}

// The walk over the ring, and what it gathers.
class LogWalk {
  public:
    LogWalk(Device& log, LogContents& contents)
        : contents_(contents), state_(contents.superblock), window_(log, state_.end()) {}

    Result<> run() {
        contents_.retired = state_.retired;
        contents_.placed = state_.retired;
        contents_.next_sequence = state_.tail_sequence;
        contents_.head = state_.tail;
        // No session, no records: a closed log is read in no time, whatever its size.
        if (state_.epoch != kNoEpoch) {
            window_.keep_in(&contents_.windows);
            A4_CHECK(follow());
            window_.keep_in(nullptr);
            // A log that is exactly full has no space in which anything else could stand.
            if (walked_ < state_.capacity()) A4_CHECK(judge_end());
        }
        if (contents_.next_sequence <= contents_.retired) {
            corrupt(
                fmt::format("record {} is retired, but the log ends before it", contents_.retired));
            contents_.next_sequence = contents_.retired + 1;
        }
        std::erase_if(contents_.live, [this](const LoggedRecord& record) {
            return record.sequence <= contents_.retired;
        });
        if (contents_.live.empty()) contents_.windows.clear();
        return {};
    }

  private:
    Bytes room_at(ByteOffset position) const {
        return std::min(state_.end() - position, state_.capacity() - walked_);
    }

    // From the tail through all valid records.
    Result<> follow() {
        while (walked_ < state_.capacity()) {
            const RecordAt at{contents_.head, contents_.next_sequence, room_at(contents_.head)};
            last_ = A4_TRY(
                check_record(window_, state_, at).context(record_name(at.sequence, at.position)));
            if (last_.verdict != Verdict::Valid) break;
            const Bytes length = last_.record.total_length;
            contents_.retired = std::max(contents_.retired, last_.retired);
            contents_.placed = std::max({contents_.placed, last_.retired, last_.placed});
            if (!last_.pad) contents_.live.push_back(std::move(last_.record));
            ++contents_.next_sequence;
            walked_ += length;
            contents_.head += length;
            if (contents_.head == state_.end()) contents_.head = kFirstRecord;
        }
        return {};
    }

    Result<> judge_end() {
        const auto name = record_name(contents_.next_sequence, contents_.head);
        if (last_.verdict != Verdict::Absent)
            contents_.end_detail = fmt::format("{}: {}", name, last_.detail);
        if (last_.verdict == Verdict::Torn) contents_.end = LogEnd::TornTail;
        if (last_.verdict == Verdict::Impossible) corrupt(contents_.end_detail);
        return look_for_later(name, contents_.next_sequence);
    }

    // Every block from the end round to the tail: the space in which this session may have written
    // records that the walk did not reach.
    Result<> look_for_later(const std::string& missing, uint64_t expected) {
        const uint64_t furthest = expected + state_.capacity().value() / kLogBlock;
        for (ByteOffset position = contents_.head; walked_ < state_.capacity();) {
            const Block block =
                A4_TRY(window_.block(position).context("looking for later records"));
            const RecordHeader header = header_in(block);
            Bytes step{kLogBlock};
            if (header.magic == kRecordMagic && header.epoch == state_.epoch &&
                header.sequence > expected && header.sequence <= furthest) {
                const RecordAt at{position, header.sequence, room_at(position)};
                const Checked later = A4_TRY(
                    check_record(window_, state_, at).context(record_name(at.sequence, position)));
                if (later.verdict == Verdict::Valid) {
                    corrupt(fmt::format("{} is {}, but {} is valid", missing,
                                        last_.verdict == Verdict::Absent ? "missing" : "damaged",
                                        record_name(at.sequence, position)));
                    // It may retire records before the gap: replaying those could undo newer data.
                    contents_.retired = std::max(contents_.retired, later.retired);
                    contents_.next_sequence = std::max(contents_.next_sequence, at.sequence + 1);
                    step = later.record.total_length;
                }
            }
            walked_ += step;
            position += step;
            if (position == state_.end()) position = kFirstRecord;
        }
        return {};
    }

    void corrupt(std::string detail) {
        if (contents_.end == LogEnd::Corrupt) return;  // the first finding says most
        contents_.end = LogEnd::Corrupt;
        contents_.end_detail = std::move(detail);
    }

    LogContents& contents_;
    const LogState& state_;
    BlockWindow window_;
    Checked last_;
    Bytes walked_;
};

}  // namespace

const char* to_text(LogEnd end) {
    switch (end) {
        case LogEnd::Clean:
            return "clean";
        case LogEnd::TornTail:
            return "torn tail";
        case LogEnd::Corrupt:
            return "corrupt";
    }
    return "?";
}

Result<LogContents> read_log(Device& log, const LogId& expected) {
    ChosenSuperblock chosen = A4_TRY(read_superblocks(log, expected));
    LogContents contents;
    contents.superblock = chosen.state;
    contents.slot = chosen.slot;
    contents.superblock_damage = std::move(chosen.damage);
    LogWalk walk(log, contents);
    A4_CHECK(walk.run().context("redo log"));
    return contents;
}

Result<std::vector<std::byte>> read_payload(Device& log, const LoggedRecord& record) {
    const Payload payload = A4_TRY(PayloadReader(log).read(record));
    return std::vector<std::byte>(payload.bytes.begin(), payload.bytes.end());
}

Result<Payload> PayloadReader::read(const LoggedRecord& record) {
    const auto name = [&] { return "redo log: " + record_name(record.sequence, record.position); };
    Bytes length;
    for (const RangeRef& range : record.ranges) length += range.length;
    const Bytes padded = record_padded(length);
    auto found = find(record.payload, padded);
    if (!found) return fail(read_error(std::move(found).error()).with_context(name()));
    if (crc32c(record.payload_seed, found->bytes) != record.payload_crc)
        return fail(EUCLEAN, "{}: its payload changed since it was checked", name());
    found->bytes = found->bytes.first(length.value());
    return found;
}

Result<Payload> PayloadReader::find(ByteOffset from, Bytes length) {
    const ByteOffset end = from + length;
    while (!windows_.empty() &&
           (from < windows_.front().start ||
            from >= windows_.front().start + Bytes(windows_.front().bytes.size())))
        windows_ = windows_.subspan(1);
    if (!windows_.empty()) {
        const LogWindow& first = windows_.front();
        const auto there = first.bytes.subspan((from - first.start).value());
        if (length.value() <= there.size())
            return Payload{first.memory, there.first(length.value())};
        const auto rest = length.value() - there.size();
        const ByteOffset seam = first.start + Bytes(first.bytes.size());
        if (windows_.size() > 1 && windows_[1].start == seam && windows_[1].bytes.size() >= rest) {
            const auto both = std::make_shared<PayloadMemory>();
            const auto bytes = A4_TRY(both->get(length));
            std::ranges::copy(there, bytes.begin());
            std::ranges::copy(windows_[1].bytes.first(rest),
                              bytes.begin() + static_cast<ptrdiff_t>(there.size()));
            return Payload{both, bytes};
        }
    }
    if (from < start_ || end > start_ + Bytes(window_.size())) A4_CHECK(fill(from, length));
    return Payload{memory_, window_.subspan((from - start_).value(), length.value())};
}

// The window then begins with this payload.
Result<> PayloadReader::fill(ByteOffset from, Bytes padded) {
    // The first record alone: there may be no second.
    const Bytes left(log_.size() - Bytes(from.value()));
    const Bytes wanted = !pool_.empty() ? std::min(std::max(padded, kReadAhead), left) : padded;
    memory_.reset();
    const auto free = std::ranges::find_if(
        pool_, [](const std::shared_ptr<PayloadMemory>& one) { return one.use_count() == 1; });
    memory_ = free != pool_.end() ? *free : std::make_shared<PayloadMemory>();
    if (free == pool_.end()) pool_.push_back(memory_);
    window_ = A4_TRY(memory_->get(wanted));
    start_ = from;
    auto done = log_.read(start_, window_);
    if (done || wanted == padded) return done;
    // What lies behind it is not its fault.
    window_ = window_.first(padded.value());
    return log_.read(start_, window_);
}

}  // namespace atomic4
