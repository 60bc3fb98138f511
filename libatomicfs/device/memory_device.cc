#include "device/memory_device.h"

#include <algorithm>

namespace atomic4 {

MemoryDevice::MemoryDevice(Bytes size) : contents_(size.value()) {}

MemoryDevice::MemoryDevice(std::vector<std::byte> contents) : contents_(std::move(contents)) {}

Result<> MemoryDevice::check_writable(const char* what, ByteOffset offset, Bytes length) const {
    if (read_only_) return fail(EROFS, "{}: {} at {} refused: read-only", name_, what, offset);
    return check_range(*this, what, offset, length);
}

Result<> MemoryDevice::read(ByteOffset offset, std::span<std::byte> into) {
    A4_CHECK(check_range(*this, "read", offset, Bytes(into.size())));
    std::copy_n(contents_.data() + offset.value(), into.size(), into.data());
    return {};
}

Result<> MemoryDevice::write(ByteOffset offset, std::span<const std::byte> from) {
    A4_CHECK(check_writable("write", offset, Bytes(from.size())));
    std::copy_n(from.data(), from.size(), contents_.data() + offset.value());
    return {};
}

Result<> MemoryDevice::write_durable(ByteOffset offset, std::span<const std::byte> from) {
    return write(offset, from);
}

Result<> MemoryDevice::write_atomic(ByteOffset offset, std::span<const std::byte> from) {
    A4_CHECK(check_writable("atomic write", offset, Bytes(from.size())));
    A4_CHECK(check_atomic_limits(limits_, offset, Bytes(from.size())).context(name_));
    return write(offset, from);
}

Result<> MemoryDevice::zero(ByteOffset offset, Bytes length) {
    A4_CHECK(check_writable("zeroing", offset, length));
    std::fill_n(contents_.data() + offset.value(), length.value(), std::byte{0});
    return {};
}

}  // namespace atomic4
