// A Device that fails one call, or all from one on: "what if the Nth I/O goes wrong?".
//
// Calls are counted from 0 over the selected kinds, over the whole life of the object or since
// reset(). A failed call has no effect on the device below, unless torn writes are asked for.
#pragma once

#include <optional>

#include "device/device.h"

namespace atomic4::test {

// Which calls count, and so can fail. Writes are plain, durable and atomic ones.
struct FaultKinds {
    bool reads = true;
    bool writes = true;
    bool zeros = true;
    bool flushes = true;
};

class FaultDevice final : public Device {
  public:
    // below must outlive this object.
    explicit FaultDevice(Device& below) : below_(below) {}

    void count_only(FaultKinds kinds) { kinds_ = kinds; }
    // The nth counted call fails with this errno value; persistent: so does every later one.
    void fail_at(uint64_t nth, int code, bool persistent);
    // A failed write or zero() leaves its first half done, cut to a sector. Atomic writes never.
    void set_torn(bool torn) { torn_ = torn; }
    // Counts from 0 again and forgets the fault.
    void reset();

    uint64_t calls() const { return calls_; }
    bool fired() const { return fired_; }

    Result<> read(ByteOffset offset, std::span<std::byte> into) override;
    Result<> write(ByteOffset offset, std::span<const std::byte> from) override;
    Result<> write_durable(ByteOffset offset, std::span<const std::byte> from) override;
    Result<> write_atomic(ByteOffset offset, std::span<const std::byte> from) override;
    Result<> zero(ByteOffset offset, Bytes length) override;
    Result<> flush() override;

    Bytes size() const override { return below_.size(); }
    const AtomicLimits& atomic_limits() const override { return below_.atomic_limits(); }
    bool read_only() const override { return below_.read_only(); }
    const std::string& name() const override { return below_.name(); }

  private:
    struct Fault {
        uint64_t nth;
        int code;
        bool persistent;
    };
    // Counts the call; true if it has to fail.
    bool hit(bool counted);
    tl::unexpected<Error> injected(const char* what, ByteOffset offset) const;
    size_t torn_part(size_t length) const;

    Device& below_;
    FaultKinds kinds_;
    std::optional<Fault> fault_;
    bool torn_ = false;
    bool fired_ = false;
    uint64_t calls_ = 0;
};

}  // namespace atomic4::test
