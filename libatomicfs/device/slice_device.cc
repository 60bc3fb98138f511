#include "device/slice_device.h"

#include <algorithm>

namespace atomic4 {

SliceDevice::SliceDevice(Device& below, const std::vector<Run>& runs, std::string name)
    : below_(below), name_(std::move(name)) {
    for (const Run& run : runs) {
        if (run.length == Bytes(0)) continue;
        if (!runs_.empty() && runs_.back().run.start + runs_.back().run.length == run.start)
            runs_.back().run.length += run.length;
        else
            runs_.push_back({ByteOffset(size_.value()), run});
        size_ += run.length;
    }
}

Result<> SliceDevice::for_each_piece(const char* what, ByteOffset offset, Bytes length,
                                     const std::function<Result<>(const Piece&)>& call) const {
    A4_CHECK(check_range(*this, what, offset, length));
    if (length == Bytes(0)) return {};
    auto placed = std::upper_bound(
        runs_.begin(), runs_.end(), offset,
        [](ByteOffset at, const PlacedRun& candidate) { return at < candidate.slice_start; });
    --placed;
    for (Bytes done; done < length; ++placed) {
        const Bytes into_run = offset + done - placed->slice_start;
        const Bytes part = std::min(length - done, placed->run.length - into_run);
        const Piece piece{placed->run.start + into_run, done.value(), part.value()};
        A4_CHECK(call(piece).context(name_));
        done += part;
    }
    return {};
}

Result<> SliceDevice::read(ByteOffset offset, std::span<std::byte> into) {
    return for_each_piece("read", offset, Bytes(into.size()), [&](const Piece& piece) {
        return below_.read(piece.below, into.subspan(piece.from, piece.length));
    });
}

Result<> SliceDevice::write(ByteOffset offset, std::span<const std::byte> from) {
    return for_each_piece("write", offset, Bytes(from.size()), [&](const Piece& piece) {
        return below_.write(piece.below, from.subspan(piece.from, piece.length));
    });
}

Result<> SliceDevice::write_durable(ByteOffset offset, std::span<const std::byte> from) {
    return for_each_piece("write", offset, Bytes(from.size()), [&](const Piece& piece) {
        return below_.write_durable(piece.below, from.subspan(piece.from, piece.length));
    });
}

Result<> SliceDevice::write_atomic(ByteOffset offset, std::span<const std::byte> from) {
    return for_each_piece(
        "atomic write", offset, Bytes(from.size()), [&](const Piece& piece) -> Result<> {
            // Seen at the first piece, before anything is written.
            if (piece.length != from.size()) {
                return fail(EIO,
                            "the atomic write of {} bytes at {} is not in one contiguous run: only "
                            "{} bytes are",
                            from.size(), offset, piece.length);
            }
            return below_.write_atomic(piece.below, from);
        });
}

Result<> SliceDevice::zero(ByteOffset offset, Bytes length) {
    return for_each_piece("zeroing", offset, length, [&](const Piece& piece) {
        return below_.zero(piece.below, Bytes(piece.length));
    });
}

Result<> SliceDevice::flush() {
    return below_.flush().context(name_);
}

}  // namespace atomic4
