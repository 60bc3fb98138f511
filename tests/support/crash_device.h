// A Device that remembers everything that was done to it, and can tell what a power cut at any
// moment might leave.
//
// It models a disk with a volatile cache. Every write, zero and flush is an event. In the image
// after a cut,
//   - what was written before the last completed flush is there;
//   - a completed durable or atomic write is there as a whole;
//   - each other write since then is kept, dropped, or torn: each of its 512-byte sectors is there
//     or not, independently (set_sector_size: of another size);
//   - the event in flight at the cut is treated like the latter; an atomic write is all there or
//     not at all, and a flush makes nothing certain;
//   - the superblock's block, bytes 0 to 4095, is one unit and is never torn: each write's part in
//     it is there whole or not at all;
//   - of two writes to one sector that are both there, the later one is seen.
// The idea is SQLite's crash simulator (test6.c).
#pragma once

#include <vector>

#include "device/device.h"

namespace atomic4::test {

class CrashDevice final : public Device {
  public:
    explicit CrashDevice(std::vector<std::byte> initial);

    void set_atomic_limits(AtomicLimits limits) { limits_ = std::move(limits); }
    // What is never torn: 512 by default, 4096 for a disk with physical blocks of that size. A
    // power of two.
    void set_sector_size(uint64_t size) { sector_ = size; }

    // How many events there were. A test notes it when an acknowledgement comes.
    size_t events() const { return events_.size(); }
    // For a failing test's message: "durable write of 4096 bytes at 8192".
    std::string describe(size_t event) const;
    // As the running system sees it: everything applied.
    const std::vector<std::byte>& contents() const { return contents_; }

    // What a power cut leaves when events 0 … events_done-1 had completed and event number
    // events_done, if there is one, was in flight. The same arguments give the same image.
    // Seed 0: nothing is kept that need not be. Seed 1: everything is kept, the event in flight
    // too. Others: chosen at random, event by event and sector by sector. Cheapest in the order of
    // events_done: the certain part is kept from call to call.
    std::vector<std::byte> image_after(size_t events_done, uint64_t seed) const;
    // The same into memory that is used again and again: many times faster.
    void image_after(size_t events_done, uint64_t seed, std::vector<std::byte>& image) const;

    Result<> read(ByteOffset offset, std::span<std::byte> into) override;
    Result<> write(ByteOffset offset, std::span<const std::byte> from) override;
    Result<> write_durable(ByteOffset offset, std::span<const std::byte> from) override;
    Result<> write_atomic(ByteOffset offset, std::span<const std::byte> from) override;
    Result<> zero(ByteOffset offset, Bytes length) override;
    Result<> flush() override;

    Bytes size() const override { return Bytes(contents_.size()); }
    const AtomicLimits& atomic_limits() const override { return limits_; }
    bool read_only() const override { return false; }
    const std::string& name() const override { return name_; }

  private:
    enum class Kind { Write, DurableWrite, AtomicWrite, Zero, Flush };
    struct Event {
        Kind kind;
        ByteOffset offset;
        Bytes length;
        std::vector<std::byte> data;  // empty for zero and flush
    };

    Result<> record(Kind kind, const char* what, ByteOffset offset,
                    std::span<const std::byte> from);
    static bool certain_when_done(const Event& event);
    void apply(const Event& event, std::vector<std::byte>& image) const;
    static void apply_part(const Event& event, uint64_t begin, uint64_t end,
                           std::vector<std::byte>& image);
    void apply_by_chance(size_t index, uint64_t seed, std::vector<std::byte>& image) const;
    void advance_base(size_t events_done) const;

    std::vector<std::byte> initial_;
    std::vector<std::byte> contents_;
    std::vector<Event> events_;
    AtomicLimits limits_ = AtomicLimits::none("this is a simulation without them");
    uint64_t sector_ = 512;
    std::string name_ = "crash simulation";

    // The image of the first base_events_ events, all of them certain.
    mutable std::vector<std::byte> base_;
    mutable size_t base_events_ = 0;
};

}  // namespace atomic4::test
