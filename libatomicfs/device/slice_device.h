// A Device whose bytes are runs of another one, end to end: a file's blocks, such as the redo
// log inside the volume, as a device of their own.
//
// A call that spans runs becomes one call a run, in order; it stops at the first that fails. Runs
// that touch on the device below are one run. An atomic write must lie inside one run (else EIO),
// and alignment, limits and boundary count on the device below, not in the slice. flush() flushes
// the whole device below.
#pragma once

#include <functional>
#include <vector>

#include "device/device.h"

namespace atomic4 {

struct Run {
    ByteOffset start;  // on the device below
    Bytes length;
};

class SliceDevice final : public Device {
  public:
    // below must outlive this object. name is for messages: "redo log".
    SliceDevice(Device& below, const std::vector<Run>& runs, std::string name);

    Result<> read(ByteOffset offset, std::span<std::byte> into) override;
    Result<> write(ByteOffset offset, std::span<const std::byte> from) override;
    Result<> write_durable(ByteOffset offset, std::span<const std::byte> from) override;
    Result<> write_atomic(ByteOffset offset, std::span<const std::byte> from) override;
    Result<> zero(ByteOffset offset, Bytes length) override;
    Result<> flush() override;

    Bytes size() const override { return size_; }
    const AtomicLimits& atomic_limits() const override { return below_.atomic_limits(); }
    bool read_only() const override { return below_.read_only(); }
    const std::string& name() const override { return name_; }

  private:
    // A part of a call inside one run: where below, and which bytes of the call.
    struct Piece {
        ByteOffset below;
        size_t from;
        size_t length;
    };
    Result<> for_each_piece(const char* what, ByteOffset offset, Bytes length,
                            const std::function<Result<>(const Piece&)>& call) const;

    struct PlacedRun {
        ByteOffset slice_start;
        Run run;
    };

    Device& below_;
    std::vector<PlacedRun> runs_;
    Bytes size_;
    std::string name_;
};

}  // namespace atomic4
