#include "redo/redo_log.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstring>
#include <limits>

#include "base/crc32c.h"
#include "base/random.h"
#include "ext4/format.h"

namespace atomic4 {
namespace {

// Keeps header_length inside its 32 bits, and one record inside one write(2).
constexpr Bytes kRecordMax{1 << 30};

// The state of an empty log that goes on where `contents` ends.
LogState emptied(const LogContents& contents, uint64_t epoch, SessionStamp stamp) {
    LogState state = contents.superblock;
    state.epoch = epoch;
    state.tail = contents.head;
    state.tail_sequence = contents.next_sequence;
    state.retired = contents.next_sequence - 1;
    state.stamp = stamp;
    state.flags = 0;
    return state;
}

uint64_t new_epoch(uint64_t old) {
    for (;;) {
        const uint64_t epoch = random_u64();
        if (epoch != kNoEpoch && epoch != old) return epoch;
    }
}

// The payload's length. EINVAL for what a record can't say, EMSGSIZE for what overflows.
Result<Bytes> payload_length(std::span<const RangeRef> ranges) {
    if (ranges.empty()) return fail(EINVAL, "redo log: a record without ranges");
    uint64_t sum = 0;
    for (const RangeRef& range : ranges) {
        const uint64_t length = range.length.value();
        if (length == 0) return fail(EINVAL, "redo log: an empty range");
        if (range.offset.value() + length < length)
            return fail(EINVAL, "redo log: a range of {} bytes at {} overflows", length,
                        range.offset);
        if (length > std::numeric_limits<uint64_t>::max() / 2 - sum)
            return fail(EMSGSIZE, "redo log: ranges too long to add up");
        sum += length;
    }
    return Bytes(sum);
}

Bytes record_length(size_t range_count, Bytes payload) {
    return record_header_length(range_count) + record_padded(payload);
}

uint64_t now_ns() {
    return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                     std::chrono::system_clock::now().time_since_epoch())
                                     .count());
}

void seal_header(std::span<std::byte> bytes, uint32_t seed) {
    const le32 crc = record_header_crc(bytes, seed);
    std::memcpy(bytes.data() + offsetof(RecordHeader, header_crc), &crc, sizeof crc);
}

bool overlap(const RangeRef& range, uint32_t inode, ByteOffset offset, Bytes length) {
    // Differences, since offset + length may overflow.
    if (range.inode != inode || length.value() == 0) return false;
    return offset >= range.offset ? offset - range.offset < range.length
                                  : range.offset - offset < length;
}

}  // namespace

Result<> RedoLog::format(Device& log, const LogId& id, SessionStamp stamp) {
    LogState state;
    state.log_id = id;
    state.log_size = Bytes(round_down(log.size().value(), kLogBlock));
    state.stamp = stamp;
    if (state.log_size < kMinLogSize)
        return fail(EINVAL, "redo log: {} bytes are too few for a log (at least {})", log.size(),
                    kMinLogSize);
    return store_superblocks(log, state, 1);
}

Result<std::unique_ptr<RedoLog>> RedoLog::begin(Device& log, const LogContents& contents,
                                                SessionStamp stamp) {
    if (contents.end == LogEnd::Corrupt)
        return fail(EBUSY, "redo log: it is corrupt ({}); recover the volume first",
                    contents.end_detail);
    if (!contents.live.empty())
        return fail(EBUSY, "redo log: it holds {} live records; recover the volume first",
                    contents.live.size());
    LogState state = emptied(contents, new_epoch(contents.superblock.epoch), stamp);
    A4_CHECK(store_superblocks(log, state, contents.slot));
    return std::unique_ptr<RedoLog>(new RedoLog(log, state, contents.slot));
}

RedoLog::RedoLog(Device& log, const LogState& state, size_t in_force)
    : log_(log),
      state_(state),
      in_force_(in_force),
      slot_retired_{state.retired, state.retired},
      head_(state.tail),
      front_(state.tail),
      next_sequence_(state.tail_sequence),
      noted_placed_(state.retired),
      noted_retired_(state.retired),
      durable_retired_(state.retired) {}

Bytes log_unit_max(Bytes capacity) {
    return Bytes(std::min(kUnitMax, std::bit_floor(capacity.value() / 4)));
}

Bytes RedoLog::record_max() const {
    return std::min(kRecordMax, Bytes(round_down(capacity().value() / 2, kLogBlock)));
}

// A record never wraps: what is left before the end is padded if it is too short.
Bytes RedoLog::pad_before(Bytes record) const {
    const Bytes left = state_.end() - head_;
    return record > left ? left : Bytes(0);
}

std::optional<Bytes> RedoLog::free_after(Bytes record) const {
    const Bytes free = capacity() - used_;
    const Bytes needed = pad_before(record) + record;
    if (record > record_max() || needed > free) return std::nullopt;
    return free - needed;
}

bool RedoLog::has_room(std::span<const RangeRef> ranges) const {
    const auto payload = payload_length(ranges);
    return payload && *payload <= record_max() && fits(record_length(ranges.size(), *payload));
}

// One that nobody keeps; of those that are free one more stays for later.
Result<std::shared_ptr<LogBuffer>> RedoLog::free_buffer(Bytes length) {
    std::shared_ptr<LogBuffer> found;
    size_t spare = 0;
    std::erase_if(buffers_, [&](const std::shared_ptr<LogBuffer>& buffer) {
        if (buffer.use_count() > 1) return false;
        if (!found) {
            found = buffer;
            return false;
        }
        return ++spare > 1;
    });
    if (!found) found = buffers_.emplace_back(std::make_shared<LogBuffer>());
    A4_CHECK(found->get(length));
    return found;
}

Result<> RedoLog::check_usable() const {
    if (poisoned()) return fail(EIO, "redo log: in doubt since an earlier failure: {}", why_);
    if (closed_) return fail(EBADF, "redo log: the session is closed");
    return {};
}

tl::unexpected<Error> RedoLog::poison(Error error, std::string_view doing) {
    why_ = fmt::format("{}: {}", doing, error.message);
    return fail(EIO, "redo log: {}; in doubt until a restart", why_);
}

RecordHeader RedoLog::start_header(uint64_t sequence, ByteOffset position) const {
    RecordHeader header{};
    header.magic = kRecordMagic;
    header.log_id = state_.log_id;
    header.epoch = state_.epoch;
    header.sequence = sequence;
    header.retired = noted_retired_;
    header.position = position.value();
    header.time = now_ns();
    header.placed = std::max(noted_placed_, noted_retired_);
    return header;
}

// Only the header block of a pad is written; what follows is stale and stays.
std::span<const std::byte> RedoLog::build_pad(std::span<std::byte> block, Bytes length) const {
    RecordHeader header = start_header(next_sequence_, head_);
    header.type = kRecordPad;
    header.total_length = length.value();
    header.header_length = static_cast<uint32_t>(kLogBlock);
    std::memset(block.data(), 0, block.size());
    std::memcpy(block.data(), &header, sizeof header);
    seal_header(block, record_seed(state_.epoch, next_sequence_, head_));
    return block;
}

std::span<const std::byte> RedoLog::build_record(std::span<std::byte> record, uint64_t sequence,
                                                 ByteOffset position,
                                                 std::span<const RangeRef> ranges,
                                                 std::span<const std::span<const std::byte>> data,
                                                 Bytes payload) const {
    const uint64_t head = record_header_length(ranges.size()).value();
    const uint32_t seed = record_seed(state_.epoch, sequence, position);

    std::byte* to = record.data() + head;
    for (const auto& bytes : data) {
        std::memcpy(to, bytes.data(), bytes.size());
        to += bytes.size();
    }
    std::memset(to, 0, static_cast<size_t>(record.data() + record.size() - to));

    RecordHeader header = start_header(sequence, position);
    header.type = kRecordData;
    header.total_length = record.size();
    header.header_length = static_cast<uint32_t>(head);
    header.range_count = static_cast<uint32_t>(ranges.size());
    header.payload_length = payload.value();
    // Of our copy, never of the client's memory, which may change under us.
    header.payload_crc = crc32c(seed, record.subspan(head));

    std::memset(record.data(), 0, head);
    std::memcpy(record.data(), &header, sizeof header);
    to = record.data() + sizeof header;
    for (const RangeRef& range : ranges) {
        const RecordRange raw{range.inode,          range.generation,
                              range.offset.value(), static_cast<uint32_t>(range.length.value()),
                              range.operation,      range.new_size.value()};
        std::memcpy(to, &raw, sizeof raw);
        to += sizeof raw;
    }
    seal_header(record.first(head), seed);
    return record;
}

Result<RedoLog::Staged> RedoLog::stage_append(std::span<const RangeRef> ranges,
                                              std::span<const std::span<const std::byte>> data) {
    // Everything that can fail without harm, before the first write.
    A4_CHECK(check_usable());
    if (!staged_.empty()) return fail(EBUSY, "redo log: a record is being written already");
    const Bytes payload = A4_TRY(payload_length(ranges));
    if (data.size() != ranges.size() ||
        !std::ranges::equal(
            ranges, data, {}, [](const RangeRef& r) { return r.length.value(); },
            [](const auto& bytes) { return uint64_t{bytes.size()}; }))
        return fail(EINVAL, "redo log: the data's lengths are not the ranges'");
    // First the payload alone: its padded length may not overflow.
    if (payload > record_max() || record_length(ranges.size(), payload) > record_max())
        return fail(EMSGSIZE,
                    "redo log: {} ranges with {} bytes are more than a record of {} takes",
                    ranges.size(), payload, record_max());
    const Bytes length = record_length(ranges.size(), payload);
    if (!fits(length))
        return fail(EAGAIN, "redo log: no room for a record of {} bytes until others retire",
                    length);
    const auto memory = A4_TRY(free_buffer(length));
    const auto buffer = A4_TRY(memory->get(length));

    Staged staged;
    ByteOffset position = head_;
    uint64_t sequence = next_sequence_;
    // The pad first, durably: without it a reader would find the end before the record that follows
    // at the beginning of the ring.
    if (const Bytes pad = pad_before(length); pad.value() != 0) {
        const auto block = A4_TRY(pad_buffer_.get(Bytes(kLogBlock)));
        staged.writes.push_back({position, build_pad(block, pad)});
        staged_.push_back(Entry{sequence++, pad, {}});
        position = kFirstRecord;
    }
    staged_.push_back(Entry{sequence, length, {ranges.begin(), ranges.end()}});
    staged.writes.push_back(
        {position, build_record(buffer, sequence, position, ranges, data, payload)});

    staged.appended.sequence = sequence;
    staged.appended.memory = memory;
    staged.appended.payloads.reserve(ranges.size());
    uint64_t at = record_header_length(ranges.size()).value();
    for (const RangeRef& range : ranges) {
        staged.appended.payloads.push_back(buffer.subspan(at, range.length.value()));
        at += range.length.value();
    }
    staged_retired_ = noted_retired_;
    return staged;
}

// Durable before the next record's write may begin: only the last record can ever be torn, which is
// why a reader may take an invalid one for the end.
Result<> RedoLog::finish_append(Result<> written) {
    const uint64_t sequence = staged_.empty() ? next_sequence_ : staged_.back().sequence;
    if (!written)
        return poison(std::move(written).error(), fmt::format("record {} at {}", sequence, head_));
    durable_retired_ = std::max(durable_retired_, staged_retired_);
    for (Entry& entry : staged_) {
        next_sequence_ = entry.sequence + 1;
        used_ += entry.length;
        head_ += entry.length;
        if (head_ == state_.end()) head_ = kFirstRecord;
        entries_.push_back(std::move(entry));
    }
    staged_.clear();
    return {};
}

Result<RedoLog::Appended> RedoLog::append(std::span<const RangeRef> ranges,
                                          std::span<const std::span<const std::byte>> data) {
    Staged staged = A4_TRY(stage_append(ranges, data));
    Result<> written;
    for (const LogWrite& write : staged.writes) {
        written = log_.write_durable(write.position, write.bytes);
        if (!written) break;
    }
    A4_CHECK(finish_append(std::move(written)));
    return std::move(staged.appended);
}

void RedoLog::note_placed(uint64_t sequence) {
    noted_placed_ = std::max(noted_placed_, std::min(sequence, last_sequence()));
}

void RedoLog::note_retired(uint64_t sequence) {
    noted_retired_ = std::max(noted_retired_, std::min(sequence, last_sequence()));
    // A pad has nothing to place: it retires with the record before it.
    const auto next = std::ranges::upper_bound(entries_, noted_retired_, {}, &Entry::sequence);
    if (next != entries_.end() && next->ranges.empty()) noted_retired_ = next->sequence;
}

// Into the slot that is not in force: a torn write leaves the other. The space that a state gives
// up is free only when both have it: a reader that finds the newer one damaged starts at the older
// one's tail.
std::optional<RedoLog::LogWrite> RedoLog::stage_retired() {
    const size_t slot = 1 - in_force_;
    if (storing_ || poisoned() || closed_) return std::nullopt;
    if (slot_retired_[in_force_] == noted_retired_ && slot_retired_[slot] == noted_retired_)
        return std::nullopt;
    const auto buffer = superblock_buffer_.get(Bytes(kLogBlock));
    if (!buffer) return std::nullopt;  // no memory: later
    LogState state = state_;
    uint64_t tail = front_.value();
    for (const Entry& entry : entries_) {
        if (entry.sequence > noted_retired_) break;
        tail += entry.length.value();
    }
    if (tail >= state.end().value()) tail -= capacity().value();
    state.tail = ByteOffset(tail);
    state.tail_sequence = noted_retired_ + 1;
    state.retired = noted_retired_;
    ++state.update;
    state_ = state;
    storing_ = true;
    const LogSuperblock raw = encode_superblock(state_);
    std::memcpy(buffer->data(), &raw, sizeof raw);
    return LogWrite{kSuperblockPosition[slot], *buffer};
}

Result<> RedoLog::finish_retired(Result<> written) {
    storing_ = false;
    if (!written) return poison(std::move(written).error(), "recording what is retired");
    in_force_ = 1 - in_force_;
    slot_retired_[in_force_] = state_.retired;
    durable_retired_ = std::max(durable_retired_, state_.retired);
    free_entries();
    return {};
}

void RedoLog::free_entries() {
    const uint64_t free = std::min(slot_retired_[0], slot_retired_[1]);
    while (!entries_.empty() && entries_.front().sequence <= free) {
        used_ -= entries_.front().length;
        front_ += entries_.front().length;
        if (front_ == state_.end()) front_ = kFirstRecord;
        entries_.pop_front();
    }
}

Result<> RedoLog::persist_retired() {
    A4_CHECK(check_usable());
    if (storing_) return fail(EBUSY, "redo log: a superblock is being written already");
    while (const auto write = stage_retired())
        A4_CHECK(finish_retired(log_.write_durable(write->position, write->bytes)));
    return {};
}

Result<> RedoLog::mark(uint32_t flags) {
    if ((state_.flags & flags) == flags || closed_) return {};
    LogState state = state_;
    state.flags |= flags;
    // A superblock that is being written, or whose write failed, may have this update already.
    ++state.update;
    auto stored = store_superblocks(log_, state, in_force_);
    if (!stored) return poison(std::move(stored).error(), "marking the log");
    state_ = state;
    slot_retired_ = {state.retired, state.retired};
    free_entries();
    return {};
}

Result<> RedoLog::close() {
    A4_CHECK(persist_retired());
    if (!entries_.empty()) return fail(EBUSY, "redo log: {} records are still live", live_count());
    LogState state = state_;
    state.epoch = kNoEpoch;
    state.flags = 0;
    auto stored = store_superblocks(log_, state, in_force_);
    if (!stored) return poison(std::move(stored).error(), "closing the session");
    state_ = state;
    closed_ = true;
    return {};
}

std::deque<RedoLog::Entry>::const_iterator RedoLog::first_live() const {
    return std::ranges::upper_bound(entries_, durable_retired_, {}, &Entry::sequence);
}

bool RedoLog::empty() const {
    return std::all_of(first_live(), entries_.end(),
                       [](const Entry& entry) { return entry.ranges.empty(); });
}

uint64_t RedoLog::live_count() const {
    return static_cast<uint64_t>(std::count_if(
        first_live(), entries_.end(), [](const Entry& entry) { return !entry.ranges.empty(); }));
}

bool RedoLog::overlaps_live(uint32_t inode, ByteOffset offset, Bytes length) const {
    return std::any_of(first_live(), entries_.end(), [&](const Entry& entry) {
        return std::ranges::any_of(entry.ranges, [&](const RangeRef& range) {
            return overlap(range, inode, offset, length);
        });
    });
}

bool RedoLog::has_live(uint32_t inode) const {
    return std::any_of(first_live(), entries_.end(), [&](const Entry& entry) {
        return std::ranges::any_of(entry.ranges,
                                   [&](const RangeRef& range) { return range.inode == inode; });
    });
}

Result<> reset_log(Device& log, const LogContents& contents, SessionStamp stamp) {
    LogState state = emptied(contents, kNoEpoch, stamp);
    return store_superblocks(log, state, contents.slot);
}

}  // namespace atomic4
