#include "support/fault_device.h"

namespace atomic4::test {
namespace {

constexpr size_t kTearsAt = 512;

}  // namespace

void FaultDevice::fail_at(uint64_t nth, int code, bool persistent) {
    fault_ = Fault{nth, code, persistent};
    fired_ = false;
}

void FaultDevice::reset() {
    fault_.reset();
    fired_ = false;
    calls_ = 0;
}

bool FaultDevice::hit(bool counted) {
    if (!counted) return false;
    const uint64_t call = calls_++;
    if (!fault_ || (fault_->persistent ? call < fault_->nth : call != fault_->nth)) return false;
    fired_ = true;
    return true;
}

tl::unexpected<Error> FaultDevice::injected(const char* what, ByteOffset offset) const {
    return fail(Error::from_errno(
        fault_->code, fmt::format("{}: {} at {}: injected fault", name(), what, offset)));
}

size_t FaultDevice::torn_part(size_t length) const {
    if (!torn_) return 0;
    return length >= 2 * kTearsAt ? round_down(length / 2, kTearsAt) : length / 2;
}

Result<> FaultDevice::read(ByteOffset offset, std::span<std::byte> into) {
    if (hit(kinds_.reads)) return injected("read", offset);
    return below_.read(offset, into);
}

Result<> FaultDevice::write(ByteOffset offset, std::span<const std::byte> from) {
    if (hit(kinds_.writes)) {
        if (torn_) A4_CHECK(below_.write(offset, from.first(torn_part(from.size()))));
        return injected("write", offset);
    }
    return below_.write(offset, from);
}

Result<> FaultDevice::write_durable(ByteOffset offset, std::span<const std::byte> from) {
    if (hit(kinds_.writes)) {
        if (torn_) A4_CHECK(below_.write_durable(offset, from.first(torn_part(from.size()))));
        return injected("durable write", offset);
    }
    return below_.write_durable(offset, from);
}

Result<> FaultDevice::write_atomic(ByteOffset offset, std::span<const std::byte> from) {
    if (hit(kinds_.writes)) return injected("atomic write", offset);
    return below_.write_atomic(offset, from);
}

Result<> FaultDevice::zero(ByteOffset offset, Bytes length) {
    if (hit(kinds_.zeros)) {
        if (torn_) A4_CHECK(below_.zero(offset, Bytes(torn_part(length.value()))));
        return injected("zeroing", offset);
    }
    return below_.zero(offset, length);
}

Result<> FaultDevice::flush() {
    if (hit(kinds_.flushes)) return injected("flush", ByteOffset(0));
    return below_.flush();
}

}  // namespace atomic4::test
