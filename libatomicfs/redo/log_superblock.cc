#include "redo/log_superblock.h"

#include <algorithm>
#include <optional>

#include "base/crc32c.h"

namespace atomic4 {
namespace {

uint32_t checksum_of(LogSuperblock raw) {
    raw.checksum = 0;
    return crc32c(~0u, std::as_bytes(std::span(&raw, 1)));
}

bool sane(const LogState& state, Bytes device_size) {
    return is_aligned(state.log_size.value(), kLogBlock) && state.log_size >= kMinLogSize &&
           state.log_size <= device_size && is_aligned(state.tail.value(), kLogBlock) &&
           state.tail >= kFirstRecord && state.tail < state.end() && state.tail_sequence >= 1 &&
           state.tail_sequence <= kMaxSequence && state.retired <= kMaxSequence &&
           // Everything before the tail is retired: nothing else may be forgotten.
           state.retired >= state.tail_sequence - 1;
}

// The error of the underlying device is kept in words only: callers tell a log that can't be read
// (EIO) from one that is damaged (EUCLEAN) by the code.
Error io_error(Error error, ByteOffset position) {
    error.code = EIO;
    return std::move(error).with_context(
        fmt::format("redo log: superblock at {}", position.value()));
}

}  // namespace

LogSuperblock encode_superblock(const LogState& state) {
    LogSuperblock raw{};
    raw.magic = kLogSuperblockMagic;
    raw.version = kLogVersion;
    raw.log_id = state.log_id;
    raw.update = state.update;
    raw.epoch = state.epoch;
    raw.log_size = state.log_size.value();
    raw.tail = state.tail.value();
    raw.tail_sequence = state.tail_sequence;
    raw.retired = state.retired;
    raw.fs_mtime = state.stamp.fs_mtime;
    raw.fs_mnt_count = state.stamp.fs_mnt_count;
    raw.flags = state.flags;
    raw.checksum = checksum_of(raw);
    return raw;
}

Result<LogState> decode_superblock(const LogSuperblock& raw, Bytes device_size) {
    if (raw.magic != kLogSuperblockMagic) return fail(EUCLEAN, "no magic number");
    // Before the version: a flipped bit in the version field is damage, not a newer log.
    if (raw.checksum != checksum_of(raw)) return fail(EUCLEAN, "wrong checksum");
    if (raw.version != kLogVersion)
        return fail(EOPNOTSUPP, "log version {} is not supported (only {} is)",
                    uint32_t{raw.version}, kLogVersion);
    if ((raw.flags & ~kLogFlags) != 0)
        return fail(EOPNOTSUPP, "unknown log flags {:#x}", raw.flags & ~kLogFlags);

    LogState state;
    state.log_id = raw.log_id;
    state.update = raw.update;
    state.epoch = raw.epoch;
    state.log_size = Bytes(raw.log_size);
    state.tail = ByteOffset(raw.tail);
    state.tail_sequence = raw.tail_sequence;
    state.retired = raw.retired;
    state.stamp = {raw.fs_mtime, raw.fs_mnt_count};
    state.flags = raw.flags;
    if (!sane(state, device_size))
        return fail(EUCLEAN,
                    "impossible values (log size {}, tail {}, tail sequence {}, retired {}, in a "
                    "log of {} bytes)",
                    state.log_size, state.tail, state.tail_sequence, state.retired, device_size);
    return state;
}

Result<ChosenSuperblock> read_superblocks(Device& log, const LogId& expected) {
    if (log.size() < kMinLogSize)
        return fail(EUCLEAN, "redo log: {} bytes are too few for a log (at least {})", log.size(),
                    kMinLogSize);

    std::array<std::optional<LogState>, kSuperblockSlots> states;
    std::array<std::string, kSuperblockSlots> damage;
    for (size_t slot = 0; slot < kSuperblockSlots; ++slot) {
        LogSuperblock raw;
        auto read = log.read(kSuperblockPosition[slot], std::as_writable_bytes(std::span(&raw, 1)));
        if (!read) return fail(io_error(std::move(read).error(), kSuperblockPosition[slot]));

        auto state = decode_superblock(raw, log.size());
        const auto where = fmt::format("superblock at {}", kSuperblockPosition[slot].value());
        if (state) {
            states[slot] = *state;
        } else if (state.error().code == EOPNOTSUPP) {
            return fail(std::move(state).error().with_context("redo log: " + where));
        } else {
            damage[slot] = fmt::format("{}: {}", where, state.error().message);
        }
    }

    if (!states[0] && !states[1])
        return fail(EUCLEAN, "redo log: no valid superblock ({}; {})", damage[0], damage[1]);
    if (states[0] && states[1]) {
        if (states[0]->log_id != states[1]->log_id || states[0]->log_size != states[1]->log_size)
            return fail(EUCLEAN, "redo log: the two superblocks describe different logs");
        if (states[0]->update == states[1]->update && *states[0] != *states[1])
            return fail(EUCLEAN, "redo log: two different superblocks claim update {}",
                        states[0]->update);
    }

    const size_t slot = !states[0] || (states[1] && states[1]->update > states[0]->update) ? 1 : 0;
    if (states[slot]->log_id != expected)
        return fail(EUCLEAN, "redo log: it belongs to another log: its id is not the expected one");
    return ChosenSuperblock{*states[slot], slot, damage[1 - slot]};
}

Result<LogId> read_log_id(Device& log) {
    for (size_t slot = 0; slot < kSuperblockSlots; ++slot) {
        LogSuperblock raw;
        auto bytes = std::as_writable_bytes(std::span(&raw, 1));
        A4_CHECK(log.read(kSuperblockPosition[slot], bytes).context("redo log"));
        if (const auto state = decode_superblock(raw, log.size())) return state->log_id;
    }
    return fail(EUCLEAN, "redo log: no valid superblock");
}

Result<> mark_log(Device& log, const LogId& expected, uint32_t flags) {
    ChosenSuperblock chosen = A4_TRY(read_superblocks(log, expected));
    LogState& state = chosen.state;
    if (state.epoch == kNoEpoch || (state.flags & flags) == flags) return {};
    state.flags |= flags;
    return store_superblocks(log, state, chosen.slot);
}

Result<> store_superblocks(Device& log, LogState& state, size_t in_force) {
    for (const size_t slot : {1 - in_force, in_force}) {
        ++state.update;
        const LogSuperblock raw = encode_superblock(state);
        auto written =
            log.write_durable(kSuperblockPosition[slot], std::as_bytes(std::span(&raw, 1)));
        if (!written) return fail(io_error(std::move(written).error(), kSuperblockPosition[slot]));
    }
    return {};
}

}  // namespace atomic4
