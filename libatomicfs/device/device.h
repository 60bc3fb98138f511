// Device: the one way to stored bytes.
//
// A Device is a flat range of bytes: a block device, an image file, memory, a window onto another
// Device, or a decorator that counts, fails, records or refuses. Read-only mode *is* a read-only
// Device, not a flag that fifty places test.
//
// Units are bytes. A call covers its whole range or fails: there are no short reads or writes, and
// a range beyond size() is EINVAL. After a failed write the range may hold old bytes, new bytes or
// any mix of sectors.
//
// Durability: write() may sit in a cache until flush() has returned. A failed flush is final: what
// was in flight is lost or not, nobody knows, and the caller must stop (it never retries).
// write_durable() is durable when it returns, and says nothing of earlier writes.
//
// Atomicity: only write_atomic() is untorn: all old or all new after a crash at any moment, and
// durable when it returns. It is refused with EOPNOTSUPP where limits() says none, and with EINVAL
// outside the limits; it never falls back to anything (RFC patch 5; pwritev2(2), RWF_ATOMIC).
//
// Threads: one thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"
#include "base/units.h"

namespace atomic4 {

// What a device can write untorn, as statx(2) reports it (stx_atomic_write_*). All zero: nothing,
// and why_not is the reason for people.
struct AtomicLimits {
    Bytes unit_min;             // a power of two
    Bytes unit_max;             // a power of two
    Bytes boundary;             // a write must not cross a multiple of this; 0: none
    uint32_t segments_max = 0;  // ranges a write: 1 everywhere today
    std::string why_not;

    bool supported() const { return unit_max.value() != 0; }
    static AtomicLimits none(std::string why) {
        AtomicLimits limits;
        limits.why_not = std::move(why);
        return limits;
    }
};

// The rule for one untorn write, in mainline's order (F14): EOPNOTSUPP without support; EINVAL for
// a length outside the limits, not a power of two, an offset that isn't a multiple of the length,
// or a crossed boundary.
Result<> check_atomic_limits(const AtomicLimits& limits, ByteOffset offset, Bytes length);

// Errors (errno values) with which the kernel turns a write down before it touches anything.
bool is_refusal(int code);

// What it takes to submit untorn writes oneself, several at once: RWF_ATOMIC | RWF_DSYNC on fd, at
// the device's own offsets. Whoever does so keeps to atomic_limits(), aligns memory, and takes a
// failure that is no refusal, or a short write, for doubt.
struct AsyncPort {
    UniqueFd fd;  // O_DIRECT
    Bytes memory_alignment;
    bool block_device = false;  // the range's cached pages have to be dropped first (F14)
};

// One of several writes.
struct DeviceWrite {
    ByteOffset offset;
    std::span<const std::byte> from;
};

class Device {
  public:
    Device() = default;
    Device(const Device&) = delete;
    Device& operator=(const Device&) = delete;
    virtual ~Device() = default;

    virtual Result<> read(ByteOffset offset, std::span<std::byte> into) = 0;
    // A hint: this is going to be read soon. Where there is a cache, it is filled meanwhile; a
    // range that makes no sense does nothing.
    virtual void will_read(ByteOffset, Bytes) {}
    virtual Result<> write(ByteOffset offset, std::span<const std::byte> from) = 0;
    // Writes that don't overlap, in any order, several at once where the device can. After an error
    // any of them may be done.
    virtual Result<> write_many(std::span<const DeviceWrite> writes);
    virtual Result<> write_durable(ByteOffset offset, std::span<const std::byte> from) = 0;
    virtual Result<> write_atomic(ByteOffset offset, std::span<const std::byte> from) = 0;
    // Makes the range read as zeros, without allocating where the device can (F19).
    virtual Result<> zero(ByteOffset offset, Bytes length) = 0;
    virtual Result<> flush() = 0;
    // EOPNOTSUPP where there is no such thing: write_atomic() does it, one at a time.
    virtual Result<AsyncPort> open_port() const;

    virtual Bytes size() const = 0;
    virtual const AtomicLimits& atomic_limits() const = 0;
    virtual bool read_only() const = 0;
    virtual const std::string& name() const = 0;  // for messages
};

// The one bounds check. "NAME: write of 4096 bytes at 8192 is beyond its end (8192)".
Result<> check_range(const Device& device, const char* what, ByteOffset offset, Bytes length);

}  // namespace atomic4
