#include "guard/guarded_device.h"

#include <algorithm>
#include <cstring>

namespace atomic4 {

namespace {

constexpr size_t kRefusalsKept = 16;

const char* to_text(Protection protection) {
    switch (protection) {
        case Protection::Data:
            return "data";
        case Protection::Tree:
            return "the extent tree";
        case Protection::Inode:
            return "the inode";
    }
    return "";
}

}  // namespace

std::string Refusal::to_text() const {
    return fmt::format("a write of {} bytes at {} would change block {}, {} of {}", length, offset,
                       block, atomic4::to_text(protection), name_of_file(path, inode));
}

Result<> GuardedDevice::refuse(ByteOffset offset, Bytes length, const ProtectedRange& range) {
    const ProtectedFile& file = set_.file_of(range);
    const Refusal refusal{offset,
                          length,
                          Pblk(std::max(offset.value(), range.begin) / set_.block_size().value()),
                          file.number,
                          file.path,
                          range.protection};
    ++writes_refused_;
    if (refusals_.size() < kRefusalsKept) refusals_.push_back(refusal);
    return fail(EPERM, "{}: refused: {}", name(), refusal.to_text());
}

Result<> GuardedDevice::check_replay(uint64_t begin, uint64_t end) {
    constexpr uint64_t kPrimary = 1024;
    if (begin >= kPrimary && end <= kPrimary + sizeof(ext2_super_block)) return {};
    ext2_super_block super{};
    A4_CHECK(below_.read(ByteOffset(kPrimary), std::as_writable_bytes(std::span(&super, 1))));
    if (super.s_magic != EXT2_SUPER_MAGIC ||
        (super.s_feature_incompat & EXT3_FEATURE_INCOMPAT_RECOVER) != 0)
        return {};
    ++writes_refused_;
    return fail(EPERM, "{}: refused: its journal is replayed", name());
}

Result<> GuardedDevice::check(ByteOffset offset, std::span<const std::byte> from) {
    const uint64_t begin = offset.value();
    const uint64_t end = begin + from.size();
    if (only_a_replay_) A4_CHECK(check_replay(begin, end));
    std::vector<std::byte> before;
    for (const ProtectedRange& range : set_.in(begin, end)) {
        if (range.protection == Protection::Data) return refuse(offset, Bytes(from.size()), range);
        if (before.empty()) {
            before.resize(from.size());
            A4_CHECK(below_.read(offset, before));
        }
        const uint64_t lo = std::max(begin, range.begin) - begin;
        const uint64_t hi = std::min(end, range.end) - begin;
        if (std::memcmp(before.data() + lo, from.data() + lo, hi - lo) != 0)
            return refuse(offset, Bytes(from.size()), range);
    }
    return {};
}

Result<> GuardedDevice::write(ByteOffset offset, std::span<const std::byte> from) {
    if (read_only()) {
        ++writes_refused_;
        return below_.write(offset, from);
    }
    A4_CHECK(check_range(*this, "write", offset, Bytes(from.size())));
    A4_CHECK(check(offset, from));
    ++writes_;
    return noted(below_.write(offset, from));
}

// EPERM is the mask's: a refusal.
Result<> GuardedDevice::noted(Result<> done) {
    if (!done && done.error().code != EPERM && !failure_) failure_ = done.error();
    return done;
}

Result<> GuardedDevice::write_durable(ByteOffset offset, std::span<const std::byte> from) {
    A4_CHECK(write(offset, from));
    return flush();
}

Result<> GuardedDevice::zero(ByteOffset offset, Bytes length) {
    A4_CHECK(check_range(*this, "zeroing", offset, length));
    const auto ranges = set_.in(offset.value(), offset.value() + length.value());
    if (only_a_replay_) A4_CHECK(check_replay(offset.value(), offset.value() + length.value()));
    if (!ranges.empty()) return refuse(offset, length, ranges.front());
    ++writes_;
    return noted(below_.zero(offset, length));
}

}  // namespace atomic4
