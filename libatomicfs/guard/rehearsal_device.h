// A copy of a device that costs only what is written to it: reads come from the device below until
// something is written, and that goes to a file without a name, in TMPDIR. For trying out what a
// tool would do.
//
// Granularity is 4 KiB. Threads: one, as Device.
#pragma once

#include <memory>
#include <vector>

#include "base/unique_fd.h"
#include "device/device.h"

namespace atomic4 {

class RehearsalDevice final : public Device {
  public:
    // below must outlive this object, and is not changed. The file's own errors (no TMPDIR).
    static Result<std::unique_ptr<RehearsalDevice>> make(Device& below);

    Result<> read(ByteOffset offset, std::span<std::byte> into) override;
    Result<> write(ByteOffset offset, std::span<const std::byte> from) override;
    Result<> write_durable(ByteOffset offset, std::span<const std::byte> from) override {
        return write(offset, from);
    }
    Result<> write_atomic(ByteOffset offset, std::span<const std::byte> from) override;
    Result<> zero(ByteOffset offset, Bytes length) override;
    Result<> flush() override { return {}; }

    Bytes size() const override { return below_.size(); }
    const AtomicLimits& atomic_limits() const override { return none_; }
    bool read_only() const override { return false; }
    const std::string& name() const override { return below_.name(); }

  private:
    RehearsalDevice(Device& below, UniqueFd file)
        : below_(below), file_(std::move(file)), written_(below.size().value() / kBlock + 1) {}
    static constexpr uint64_t kBlock = 4096;
    Result<> load(uint64_t block, std::span<std::byte> into);

    Device& below_;
    UniqueFd file_;
    std::vector<bool> written_;  // by block
    AtomicLimits none_ = AtomicLimits::none("a rehearsal has none");
};

}  // namespace atomic4
