// A Device that can't be changed: read-only mode is this decorator, not a flag that others test.
//
// Every write and zero() is EROFS and never reaches the device below. flush() succeeds without
// reaching it either: there is nothing of ours to flush, and a read-only opening must not be able
// to fail on someone else's.
#pragma once

#include "device/device.h"

namespace atomic4 {

class ReadOnlyDevice final : public Device {
  public:
    // below must outlive this object.
    explicit ReadOnlyDevice(Device& below) : below_(below) {}

    Result<> read(ByteOffset offset, std::span<std::byte> into) override {
        return below_.read(offset, into);
    }
    void will_read(ByteOffset offset, Bytes length) override { below_.will_read(offset, length); }
    Result<> write(ByteOffset offset, std::span<const std::byte> from) override {
        return refuse("write", offset, Bytes(from.size()));
    }
    Result<> write_durable(ByteOffset offset, std::span<const std::byte> from) override {
        return refuse("write", offset, Bytes(from.size()));
    }
    Result<> write_atomic(ByteOffset offset, std::span<const std::byte> from) override {
        return refuse("atomic write", offset, Bytes(from.size()));
    }
    Result<> zero(ByteOffset offset, Bytes length) override {
        return refuse("zeroing", offset, length);
    }
    Result<> flush() override { return {}; }

    Bytes size() const override { return below_.size(); }
    const AtomicLimits& atomic_limits() const override { return below_.atomic_limits(); }
    bool read_only() const override { return true; }
    const std::string& name() const override { return below_.name(); }

  private:
    Result<> refuse(const char* what, ByteOffset offset, Bytes length) const {
        return fail(EROFS, "{}: {} of {} bytes at {} refused: opened read-only", name(), what,
                    length, offset);
    }

    Device& below_;
};

}  // namespace atomic4
