#include "device/device.h"

namespace atomic4 {

Result<> check_range(const Device& device, const char* what, ByteOffset offset, Bytes length) {
    const uint64_t size = device.size().value();
    if (offset.value() > size || length.value() > size - offset.value()) {
        return fail(EINVAL, "{}: {} of {} bytes at {} is beyond its end ({})", device.name(), what,
                    length, offset, size);
    }
    return {};
}

Result<> check_atomic_limits(const AtomicLimits& limits, ByteOffset offset, Bytes length) {
    if (!limits.supported()) {
        return fail(EOPNOTSUPP, "no hardware atomic writes here: {}", limits.why_not);
    }
    if (length < limits.unit_min || length > limits.unit_max) {
        return fail(EINVAL, "an atomic write of {} bytes is outside the device's limits {}..{}",
                    length, limits.unit_min, limits.unit_max);
    }
    if (!is_power_of_two(length.value()))
        return fail(EINVAL, "the length {} is not a power of two", length);
    if (!is_aligned(offset.value(), length.value()))
        return fail(EINVAL, "the device offset {} is not a multiple of the length {}", offset,
                    length);
    const uint64_t boundary = limits.boundary.value();
    const uint64_t last_byte = (offset + length).value() - 1;
    if (boundary != 0 && offset.value() / boundary != last_byte / boundary) {
        return fail(EINVAL,
                    "the write of {} bytes at {} crosses the device's atomic boundary of {}",
                    length, offset, boundary);
    }
    return {};
}

bool is_refusal(int code) {
    switch (code) {
        case EINVAL:
        case EOPNOTSUPP:
        case ENOSPC:
        case EDQUOT:
        case EFBIG:
        case EPERM:
        case EROFS:
        case ENOMEM:
        case EAGAIN:
            return true;
        default:
            return false;
    }
}

Result<> Device::write_many(std::span<const DeviceWrite> writes) {
    for (const DeviceWrite& one : writes) A4_CHECK(write(one.offset, one.from));
    return {};
}

Result<AsyncPort> Device::open_port() const {
    return fail(EOPNOTSUPP, "{}: no descriptor for direct writes", name());
}

}  // namespace atomic4
