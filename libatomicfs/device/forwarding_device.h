// A Device that passes everything on: what others override parts of. The device below outlives it.
#pragma once

#include <memory>

#include "device/device.h"

namespace atomic4 {

class ForwardingDevice : public Device {
  public:
    explicit ForwardingDevice(Device& below) : below_(below) {}
    Result<> read(ByteOffset offset, std::span<std::byte> into) override {
        return below_.read(offset, into);
    }
    void will_read(ByteOffset offset, Bytes length) override { below_.will_read(offset, length); }
    Result<> write(ByteOffset offset, std::span<const std::byte> from) override {
        return below_.write(offset, from);
    }
    Result<> write_durable(ByteOffset offset, std::span<const std::byte> from) override {
        return below_.write_durable(offset, from);
    }
    Result<> write_atomic(ByteOffset offset, std::span<const std::byte> from) override {
        return below_.write_atomic(offset, from);
    }
    Result<> zero(ByteOffset offset, Bytes length) override { return below_.zero(offset, length); }
    Result<> flush() override { return below_.flush(); }
    Result<AsyncPort> open_port() const override { return below_.open_port(); }
    Bytes size() const override { return below_.size(); }
    const AtomicLimits& atomic_limits() const override { return below_.atomic_limits(); }
    bool read_only() const override { return below_.read_only(); }
    const std::string& name() const override { return below_.name(); }

  protected:
    Device& below_;
};

// For those who take a device for good: one that stays the caller's.
inline std::unique_ptr<Device> lent(Device& device) {
    return std::make_unique<ForwardingDevice>(device);
}

}  // namespace atomic4
