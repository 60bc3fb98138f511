#include "writer/atomic_writer.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "ext4/format.h"
#include "ext4/transaction.h"
#include "redo/place.h"
#include "redo/volume_log.h"

namespace atomic4 {

namespace {

constexpr uint64_t kChunkBytes = uint64_t{64} << 20;
// Of the chunks that are kept, in mappings: about 8 MiB.
constexpr size_t kChunkCostMax = size_t{256} * 1024;
constexpr size_t kCachedFiles = 256;

uint64_t chunk_blocks(const Volume& volume) {
    return kChunkBytes / volume.block_size().value();
}

Bytes record_length(std::span<const WriteRange> ranges) {
    Bytes payload;
    for (const WriteRange& range : ranges) payload += Bytes(range.data.size());
    return record_header_length(ranges.size()) + record_padded(payload);
}

// A chunk by itself takes about as much memory as a few mappings.
size_t chunk_cost(const std::vector<Mapping>& mappings) {
    return mappings.capacity() + 8;
}

}  // namespace

Result<std::unique_ptr<AtomicWriter>> AtomicWriter::open(OpenVolume opened) {
    std::unique_ptr<AtomicWriter> writer(new AtomicWriter(std::move(opened)));
    writer->log_unit_max_ =
        atomic4::log_unit_max(writer->opened_.log_contents.superblock.capacity());
    return writer;
}

Result<> AtomicWriter::usable() const {
    if (poisoned_) return fail(Error(*poisoned_));
    if (closed_) return fail(EBADF, "the writer is closed");
    return opened_.volume->usable();
}

const std::string* AtomicWriter::why_poisoned() const {
    if (poisoned_) return &poisoned_->message;
    auto usable = opened_.volume->usable();
    if (usable) return nullptr;
    volume_doubt_ = std::move(usable).error().message;
    return &volume_doubt_;
}

Error AtomicWriter::poison(Error error, std::string_view doing) {
    if (!poisoned_) {
        poisoned_ =
            Error{EIO, fmt::format("an earlier {} failed, what it wrote is in doubt: reopen the "
                                   "volume to recover ({})",
                                   doing, error.message)};
    }
    return Error{
        EIO, fmt::format("{}: {}; in doubt until the volume is recovered", doing, error.message)};
}

Result<FileState> AtomicWriter::file(ext2_ino_t inode, std::optional<uint32_t> generation) {
    auto found = files_.find(inode);
    if (found == files_.end()) {
        if (files_.size() >= kCachedFiles) files_.clear();
        const FileState state = A4_TRY(read_file(volume(), inode, generation));
        found = files_.emplace(inode, state).first;
    }
    if (generation && *generation != found->second.generation)
        return fail(ESTALE, "inode {}: the file is gone", inode);
    return found->second;
}

void AtomicWriter::forget(ext2_ino_t inode) {
    files_.erase(inode);
    auto it = chunk_of_.lower_bound({inode, 0});
    while (it != chunk_of_.end() && it->first.first == inode) drop_chunk((it++)->second);
}

void AtomicWriter::drop_chunk(std::list<Chunk>::iterator chunk) {
    chunk_cost_ -= chunk_cost(chunk->mappings);
    chunk_of_.erase(chunk->key);
    chunks_.erase(chunk);
}

Result<const std::vector<Mapping>*> AtomicWriter::chunk(const FileState& file, uint64_t index) {
    const ChunkKey key{file.number, index};
    if (const auto found = chunk_of_.find(key); found != chunk_of_.end()) {
        chunks_.splice(chunks_.begin(), chunks_, found->second);
        return &chunks_.front().mappings;
    }
    const uint64_t blocks = chunk_blocks(volume());
    auto mappings =
        A4_TRY(map_range(volume(), file.number, file.inode, Lblk(index * blocks), Blocks(blocks)));
    chunk_cost_ += chunk_cost(mappings);
    chunks_.push_front({key, std::move(mappings)});
    chunk_of_.emplace(key, chunks_.begin());
    while (chunk_cost_ > kChunkCostMax && chunks_.size() > 1) drop_chunk(std::prev(chunks_.end()));
    return &chunks_.front().mappings;
}

// Calls visit(device offset, length, state) for each stretch of the range, in order.
template <class Visit>
Result<> AtomicWriter::visit_mappings(const FileState& file, ByteOffset offset, Bytes length,
                                      Visit visit) {
    const uint64_t block = volume().block_size().value();
    uint64_t at = offset.value();
    const uint64_t end = at + length.value();
    while (at < end) {
        const auto* mappings = A4_TRY(chunk(file, at / kChunkBytes));
        const uint64_t stop = std::min(end, round_down(at, kChunkBytes) + kChunkBytes);
        auto it = std::upper_bound(
            mappings->begin(), mappings->end(), Lblk(at / block),
            [](Lblk lblk, const Mapping& mapping) { return lblk < mapping.end(); });
        for (; it != mappings->end() && at < stop; ++it) {
            const uint64_t n = std::min(stop, it->end().value() * block) - at;
            const uint64_t skip = at - it->lblk.value() * block;
            A4_CHECK(visit(ByteOffset(it->pblk.value() * block + skip), Bytes(n), it->state));
            at += n;
        }
    }
    return {};
}

Result<bool> AtomicWriter::written_throughout(const FileState& file, ByteOffset offset,
                                              Bytes length) {
    bool written = (offset + length).value() <= file.size.value();
    A4_CHECK(
        visit_mappings(file, offset, length, [&](ByteOffset, Bytes, MapState state) -> Result<> {
            written = written && state == MapState::Written;
            return {};
        }));
    return written;
}

Result<RangeShape> AtomicWriter::shape(const FileState& file, ByteOffset offset, Bytes length) {
    ShapeBuilder builder(file, offset, length);
    A4_CHECK(visit_mappings(file, offset, length,
                            [&](ByteOffset at, Bytes part, MapState state) -> Result<> {
                                builder.add(at, part, state);
                                return {};
                            }));
    return builder.shape();
}

Result<> AtomicWriter::place_cached(const FileState& file, ByteOffset offset,
                                    std::span<const std::byte> data) {
    return visit_mappings(
        file, offset, Bytes(data.size()),
        [&](ByteOffset device_offset, Bytes length, MapState state) -> Result<> {
            if (state == MapState::Hole)
                return fail(EIO, "inode {}: a hole where data was expected", file.number);
            A4_CHECK(volume().device().write(device_offset, data.first(length.value())));
            data = data.subspan(length.value());
            return {};
        });
}

Result<> AtomicWriter::begin_session() {
    if (log_) return {};
    // Stock kernels and tools are locked out before there is a record that they don't know of.
    A4_CHECK(volume().write_needs_replay(true));
    auto log = RedoLog::begin(*opened_.log, opened_.log_contents, session_stamp(volume()));
    if (!log) return fail(poison(std::move(log).error(), "start of a log session"));
    log_ = std::move(*log);
    return {};
}

Result<> AtomicWriter::prepare_blocks(std::span<const WriteRange> ranges, Bytes align) {
    for (const WriteRange& range : ranges) {
        const Bytes length(range.data.size());
        const FileState before = A4_TRY(file(range.inode, range.generation));
        if (A4_TRY(written_throughout(before, range.offset, length))) continue;
        A4_CHECK(make_ready(volume(), before, range.offset, length, align));
        forget(range.inode);
    }
    return {};
}

// The file ready to take the ranges; new_size where it will grow.
Result<std::vector<AtomicWriter::Prepared>> AtomicWriter::prepare(
    std::span<const WriteRange> ranges, Bytes align) {
    A4_CHECK(prepare_blocks(ranges, align));
    // Only with the blocks of all ranges there: a growing one converts those of its neighbours too.
    std::vector<Prepared> prepared;
    for (const WriteRange& range : ranges) {
        Prepared& one = prepared.emplace_back();
        one.file = A4_TRY(file(range.inode, range.generation));
        const Bytes length(range.data.size());
        const Bytes end((range.offset + length).value());
        if (end <= one.file.size) continue;
        one.new_size = end;
        A4_CHECK(zero_gap(volume(), one.file, range.offset, length, end));
    }
    return prepared;
}

// Once the record is durable the growth happens, or neither this writer nor replay can go on: what
// it takes must be there before.
Result<> AtomicWriter::rehearse_growth(std::span<const WriteRange> ranges,
                                       std::span<const Prepared> prepared) {
    if (std::ranges::all_of(prepared, [](const Prepared& p) { return p.new_size.value() == 0; }))
        return {};
    Transaction transaction(volume());
    for (size_t i = 0; i < ranges.size(); ++i) {
        if (prepared[i].new_size.value() == 0) continue;
        const FileState now = A4_TRY(read_file(volume(), ranges[i].inode, ranges[i].generation));
        A4_CHECK(stage_growth(volume(), now, ranges[i].offset, Bytes(ranges[i].data.size()),
                              prepared[i].new_size));
    }
    return transaction.rehearse();  // and dropped
}

Result<> AtomicWriter::write_logged(std::span<const WriteRange> ranges,
                                    std::span<const Prepared> prepared) {
    std::vector<RangeRef> refs;
    std::vector<std::span<const std::byte>> data;
    for (size_t i = 0; i < ranges.size(); ++i) {
        refs.push_back({ranges[i].inode, ranges[i].generation, ranges[i].offset,
                        Bytes(ranges[i].data.size()), prepared[i].new_size, prepared[i].operation});
        data.push_back(ranges[i].data);
    }
    A4_CHECK(rehearse_growth(ranges, prepared));
    A4_CHECK(begin_session());
    if (!log_->has_room(refs)) A4_CHECK(retire_all());
    auto appended = log_->append(refs, data);
    if (!appended && !log_->poisoned()) return fail(std::move(appended).error());
    if (!appended) return fail(poison(std::move(appended).error(), "log write"));

    bool grows = false;
    for (size_t i = 0; i < ranges.size(); ++i) {
        if (auto done = place_cached(prepared[i].file, ranges[i].offset, appended->payloads[i]);
            !done)
            return fail(poison(std::move(done).error(), "placement"));
        touched_.insert(ranges[i].inode);
        grows = grows || prepared[i].new_size.value() > 0;
    }
    log_->note_placed(appended->sequence);
    if (!grows) return {};
    // The bytes are durable in place before i_size makes them visible.
    if (auto done = volume().device().flush(); !done)
        return fail(poison(std::move(done).error(), "flush"));
    for (size_t i = 0; i < ranges.size(); ++i) {
        if (prepared[i].new_size.value() == 0) continue;
        // An earlier range of this batch may have grown the file already.
        const auto now = read_file(volume(), ranges[i].inode, ranges[i].generation);
        if (!now) return fail(poison(now.error(), "growing the file"));
        auto done = finish_growth(volume(), *now, ranges[i].offset, Bytes(ranges[i].data.size()),
                                  prepared[i].new_size);
        forget(ranges[i].inode);
        if (!done) return fail(poison(std::move(done).error(), "growing the file"));
    }
    return {};
}

Result<> AtomicWriter::retire_overlapping(const WriteRange& range) {
    if (log_ && log_->overlaps_live(range.inode, range.offset, Bytes(range.data.size())))
        return retire_all();
    return {};
}

Result<> AtomicWriter::check_single(const WriteRange& range, Engine engine) {
    A4_CHECK(check_file(volume(), A4_TRY(file(range.inode, range.generation))));
    const WriteLimits limits = write_limits(volume(), log_unit_max_);
    // Native goes by the device's limits: whether there are any comes before what they are.
    const Bytes unit_max = engine == Engine::Native ? (volume().device().atomic_limits().supported()
                                                           ? limits.unit_max_native
                                                           : Bytes(kUnitMax))
                           : engine == Engine::Logged ? limits.unit_max_logged
                                                      : limits.unit_max();
    return check_request(range.offset, Bytes(range.data.size()), limits.unit_min, unit_max);
}

Result<WritePlan> AtomicWriter::plan(const WriteRange& range, Engine engine) {
    A4_CHECK(usable());
    A4_CHECK(check_single(range, engine));
    WritePlan plan;
    if (engine == Engine::Logged) return plan;
    const Bytes length(range.data.size());
    const FileState before = A4_TRY(file(range.inode, range.generation));
    auto found = A4_TRY(shape(before, range.offset, length));
    // Holes and unwritten blocks before EOF are made ready for either engine, but not for a length
    // that the device refuses anyway.
    const AtomicLimits& device = volume().device().atomic_limits();
    const bool device_takes =
        device.supported() && length >= device.unit_min && length <= device.unit_max;
    if (device_takes && !found.beyond_eof && (found.holes || found.unwritten)) {
        A4_CHECK(make_ready(volume(), before, range.offset, length, length));
        forget(range.inode);
        found = A4_TRY(shape(A4_TRY(file(range.inode, range.generation)), range.offset, length));
    }
    const auto can = check_native(volume(), found, length);
    if (can) {
        // A live record, replayed later, would put older bytes over these.
        A4_CHECK(retire_overlapping(range));
        plan.engine = Engine::Native;
        plan.device_offset = found.device_offset;
        return plan;
    }
    if (engine == Engine::Native) return fail(Error(can.error()));
    plan.why_not_native = can.error().message;
    if (length > log_unit_max_) {
        return fail(can.error().code, "{}; and the logged engine takes at most {} bytes here",
                    can.error().message, log_unit_max_);
    }
    return plan;
}

Result<> AtomicWriter::finish_native(const WriteRange& range, Result<> written) {
    if (written) {
        touched_.insert(range.inode);
        return {};
    }
    // The write contained a flush: what others wrote before may be lost with it.
    if (!is_refusal(written.error().code))
        return fail(poison(std::move(written).error(), "native write"));
    return std::move(written).context("native write");
}

Result<WriteOutcome> AtomicWriter::write(const WriteRange& range, Engine engine) {
    WritePlan how = A4_TRY(plan(range, engine));
    if (how.engine == Engine::Native) {
        A4_CHECK(
            finish_native(range, volume().device().write_atomic(how.device_offset, range.data)));
    } else {
        const auto prepared = A4_TRY(prepare(std::span(&range, 1), Bytes(range.data.size())));
        A4_CHECK(write_logged(std::span(&range, 1), prepared));
    }
    return WriteOutcome{how.engine, std::move(how.why_not_native)};
}

Result<> AtomicWriter::check_ranges(std::span<const WriteRange> ranges) {
    std::vector<RequestedRange> parts;
    for (const WriteRange& range : ranges)
        parts.push_back({range.inode, range.offset, Bytes(range.data.size())});
    A4_CHECK(check_batch(parts, volume().block_size(), record_payload_max()));
    for (const WriteRange& range : ranges)
        A4_CHECK(check_file(volume(), A4_TRY(file(range.inode, range.generation))));
    return {};
}

Result<> AtomicWriter::write_batch(std::span<const WriteRange> ranges) {
    A4_CHECK(usable());
    A4_CHECK(check_ranges(ranges));
    return write_item({ranges, true});
}

Result<> AtomicWriter::check_item(const GroupItem& item) {
    A4_CHECK(usable());
    if (item.batch) return check_ranges(item.ranges);
    if (item.ranges.size() != 1) return fail(EINVAL, "an atomic write has one range");
    return check_single(item.ranges.front(), Engine::Logged);
}

Bytes AtomicWriter::align_of(const GroupItem& item) const {
    return item.batch ? opened_.volume->block_size() : Bytes(item.ranges.front().data.size());
}

Result<bool> AtomicWriter::grows(std::span<const WriteRange> ranges) {
    for (const WriteRange& range : ranges) {
        const FileState now = A4_TRY(file(range.inode, range.generation));
        if (range.offset.value() + range.data.size() > now.size.value()) return true;
    }
    return false;
}

// A checked item as a record of its own.
Result<> AtomicWriter::write_item(const GroupItem& item) {
    const auto prepared = A4_TRY(prepare(item.ranges, align_of(item)));
    return write_logged(item.ranges, prepared);
}

GroupOutcome AtomicWriter::write_group(std::span<const GroupItem> items) {
    GroupOutcome outcome;
    outcome.items.resize(items.size());
    std::vector<size_t> members;
    for (size_t i = 0; i < items.size(); ++i) {
        Result<>& result = outcome.items[i];
        result = check_item(items[i]);
        if (!result) continue;
        const auto growing = grows(items[i].ranges);
        if (growing && !*growing) {
            members.push_back(i);
            continue;
        }
        // A growth commits metadata of its own, and changes the file under the others: a record
        // more is the least of what it costs.
        result = growing ? write_item(items[i]) : Result<>(fail(Error(growing.error())));
        if (result) outcome.records.push_back({1, record_length(items[i].ranges)});
    }
    // The blocks of all first: an inode as it is before is worth nothing afterwards.
    std::erase_if(members, [&](size_t i) {
        outcome.items[i] = prepare_blocks(items[i].ranges, align_of(items[i]));
        return !outcome.items[i];
    });
    const auto payload = [&](size_t i) {
        uint64_t sum = 0;
        for (const WriteRange& range : items[i].ranges) sum += range.data.size();
        return sum;
    };
    for (size_t from = 0, to = 0; from < members.size(); from = to) {
        uint64_t sum = 0;
        while (to < members.size() &&
               (to == from || sum + payload(members[to]) <= record_payload_max().value()))
            sum += payload(members[to++]);
        write_record(items, std::span(members).subspan(from, to - from), outcome);
    }
    return outcome;
}

// Members whose blocks are there, none growing.
void AtomicWriter::write_record(std::span<const GroupItem> items, std::span<const size_t> members,
                                GroupOutcome& outcome) {
    std::vector<WriteRange> ranges;
    std::vector<Prepared> prepared;
    size_t carried = 0;
    for (const size_t i : members) {
        const size_t before = ranges.size();
        for (const WriteRange& range : items[i].ranges) {
            auto state = file(range.inode, range.generation);
            if (!state) {
                outcome.items[i] = fail(std::move(state).error());
                break;
            }
            ranges.push_back(range);
            prepared.push_back({*state, Bytes(0), static_cast<uint32_t>(i)});
        }
        if (outcome.items[i]) {
            ++carried;
            continue;
        }
        ranges.resize(before);
        prepared.resize(before);
    }
    if (carried == 0) return;
    const auto written = write_logged(ranges, prepared);
    if (written) outcome.records.push_back({carried, record_length(ranges)});
    for (const size_t i : members) {
        if (!written && outcome.items[i]) outcome.items[i] = fail(Error(written.error()));
    }
}

Result<> AtomicWriter::write_plain(const WriteRange& range) {
    A4_CHECK(usable());
    if (range.data.empty()) return {};
    if (range.offset.value() + range.data.size() < range.data.size())
        return fail(EFBIG, "the offset {} is too large", range.offset);
    A4_CHECK(check_file(volume(), A4_TRY(file(range.inode, range.generation))));
    A4_CHECK(retire_overlapping(range));
    const Prepared prepared = A4_TRY(prepare(std::span(&range, 1), volume().block_size())).front();
    if (auto done = place_cached(prepared.file, range.offset, range.data); !done)
        return std::move(done).context("plain write");
    touched_.insert(range.inode);
    if (prepared.new_size.value() > 0) {
        if (auto done = volume().device().flush(); !done)
            return fail(poison(std::move(done).error(), "flush"));
        auto done = finish_growth(volume(), prepared.file, range.offset, Bytes(range.data.size()),
                                  prepared.new_size);
        forget(range.inode);
        return done;
    }
    return {};
}

Result<Bytes> AtomicWriter::read(ext2_ino_t inode, ByteOffset offset, std::span<std::byte> into) {
    const FileState state = A4_TRY(file(inode));
    if (offset.value() >= state.size.value()) return Bytes(0);
    into = into.first(std::min<uint64_t>(into.size(), state.size.value() - offset.value()));
    const Bytes length(into.size());
    A4_CHECK(visit_mappings(state, offset, length,
                            [&](ByteOffset device_offset, Bytes part, MapState mapped) -> Result<> {
                                const auto piece = into.first(part.value());
                                into = into.subspan(part.value());
                                if (mapped == MapState::Written)
                                    return volume().device().read(device_offset, piece);
                                std::memset(piece.data(), 0, piece.size());
                                return {};
                            }));
    return length;
}

Result<> AtomicWriter::flush() {
    A4_CHECK(usable());
    if (auto done = volume().device().flush(); !done)
        return fail(poison(std::move(done).error(), "flush"));
    return {};
}

Result<> AtomicWriter::retire_all() {
    A4_CHECK(usable());
    if (!log_ || log_->empty()) return {};
    A4_CHECK(flush());
    log_->note_retired(log_->last_sequence());
    if (auto done = log_->persist_retired(); !done)
        return fail(poison(std::move(done).error(), "log superblock write"));
    ++retirements_;
    return {};
}

Result<> AtomicWriter::close() {
    if (closed_) return {};
    A4_CHECK(usable());
    A4_CHECK(flush());
    A4_CHECK(retire_all());
    volume().preallocations().release_all();
    for (const ext2_ino_t inode : touched_) A4_CHECK(touch_file(volume(), inode));
    touched_.clear();
    if (log_) {
        if (auto done = log_->close(); !done)
            return fail(poison(std::move(done).error(), "log superblock write"));
        A4_CHECK(volume().write_needs_replay(false));
    }
    closed_ = true;
    return {};
}

}  // namespace atomic4
