// A Device in memory: tests, golden images, and anything prepared before it is written out.
//
// Writes are durable at once, as far as memory is. Atomic writes are refused until limits are set.
#pragma once

#include <vector>

#include "device/device.h"

namespace atomic4 {

class MemoryDevice final : public Device {
  public:
    explicit MemoryDevice(Bytes size);  // zeros
    explicit MemoryDevice(std::vector<std::byte> contents);

    // May be changed at will, its size too, while no call is running.
    std::vector<std::byte>& contents() { return contents_; }
    const std::vector<std::byte>& contents() const { return contents_; }

    void set_atomic_limits(AtomicLimits limits) { limits_ = std::move(limits); }
    void set_read_only(bool read_only) { read_only_ = read_only; }

    Result<> read(ByteOffset offset, std::span<std::byte> into) override;
    Result<> write(ByteOffset offset, std::span<const std::byte> from) override;
    Result<> write_durable(ByteOffset offset, std::span<const std::byte> from) override;
    Result<> write_atomic(ByteOffset offset, std::span<const std::byte> from) override;
    Result<> zero(ByteOffset offset, Bytes length) override;
    Result<> flush() override { return {}; }

    Bytes size() const override { return Bytes(contents_.size()); }
    const AtomicLimits& atomic_limits() const override { return limits_; }
    bool read_only() const override { return read_only_; }
    const std::string& name() const override { return name_; }

  private:
    Result<> check_writable(const char* what, ByteOffset offset, Bytes length) const;

    std::vector<std::byte> contents_;
    AtomicLimits limits_ = AtomicLimits::none("this is memory");
    std::string name_ = "memory";
    bool read_only_ = false;
};

}  // namespace atomic4
