#include "device/staging_device.h"

#include <algorithm>
#include <cstring>

namespace atomic4 {

StagingDevice::StagingDevice(Device& below, Bytes block_size)
    : below_(below), block_size_(block_size.value()) {}

void StagingDevice::drop() {
    blocks_.clear();
    staging_ = false;
}

Result<> StagingDevice::read(ByteOffset offset, std::span<std::byte> into) {
    A4_CHECK(below_.read(offset, into));
    if (blocks_.empty() || into.empty()) return {};
    const uint64_t begin = offset.value();
    const uint64_t end = begin + into.size();
    for (auto it = blocks_.lower_bound(begin / block_size_);
         it != blocks_.end() && it->first * block_size_ < end; ++it) {
        const uint64_t block = it->first * block_size_;
        const uint64_t from = std::max(begin, block);
        const uint64_t to = std::min(end, block + block_size_);
        std::memcpy(into.data() + (from - begin), it->second.data() + (from - block), to - from);
    }
    return {};
}

Result<> StagingDevice::write(ByteOffset offset, std::span<const std::byte> from) {
    if (!staging_) return below_.write(offset, from);
    if (read_only()) return fail(EROFS, "{}: opened read-only", name());
    A4_CHECK(check_range(*this, "write", offset, Bytes(from.size())));
    uint64_t position = offset.value();
    while (!from.empty()) {
        const uint64_t number = position / block_size_;
        const uint64_t within = position % block_size_;
        const uint64_t n = std::min<uint64_t>(from.size(), block_size_ - within);
        auto [it, fresh] = blocks_.try_emplace(number);
        if (fresh) {
            it->second.resize(block_size_);
            if (n != block_size_) {
                auto old = below_.read(ByteOffset(number * block_size_), it->second);
                if (!old) {
                    blocks_.erase(it);
                    return old;
                }
            }
        }
        std::memcpy(it->second.data() + within, from.data(), n);
        from = from.subspan(n);
        position += n;
    }
    return {};
}

Result<> StagingDevice::write_durable(ByteOffset offset, std::span<const std::byte> from) {
    if (staging_) return fail(EINVAL, "{}: a durable write inside a metadata operation", name());
    return below_.write_durable(offset, from);
}

Result<> StagingDevice::write_atomic(ByteOffset offset, std::span<const std::byte> from) {
    if (staging_) return fail(EINVAL, "{}: an atomic write inside a metadata operation", name());
    return below_.write_atomic(offset, from);
}

Result<> StagingDevice::zero(ByteOffset offset, Bytes length) {
    if (!staging_) return below_.zero(offset, length);
    const std::vector<std::byte> zeros(length.value());
    return write(offset, zeros);
}

Result<> StagingDevice::flush() {
    // Order is the owner's business: it flushes between the steps of its commit.
    if (staging_) return {};
    return below_.flush();
}

}  // namespace atomic4
