#include "support/crash_device.h"

#include <algorithm>

#include "support/mix.h"

namespace atomic4::test {
namespace {

constexpr uint64_t kSuperblockEnd = 4096;

// A good bit for every (seed, event, place).
uint64_t dice(uint64_t seed, uint64_t event, uint64_t place) {
    return mix(mix(mix(seed) ^ event) ^ place);
}

}  // namespace

CrashDevice::CrashDevice(std::vector<std::byte> initial)
    : initial_(std::move(initial)), contents_(initial_), base_(initial_) {}

std::string CrashDevice::describe(size_t event) const {
    if (event >= events_.size()) return "no event";
    const Event& it = events_[event];
    const char* what = "";
    switch (it.kind) {
        case Kind::Write:
            what = "write";
            break;
        case Kind::DurableWrite:
            what = "durable write";
            break;
        case Kind::AtomicWrite:
            what = "atomic write";
            break;
        case Kind::Zero:
            what = "zeroing";
            break;
        case Kind::Flush:
            return "flush";
    }
    return fmt::format("{} of {} bytes at {}", what, it.length, it.offset);
}

bool CrashDevice::certain_when_done(const Event& event) {
    return event.kind != Kind::Write && event.kind != Kind::Zero;
}

// The bytes [begin, end) of the device, as far as the event wrote them.
void CrashDevice::apply_part(const Event& event, uint64_t begin, uint64_t end,
                             std::vector<std::byte>& image) {
    const uint64_t start = event.offset.value();
    if (event.kind == Kind::Zero) {
        std::fill_n(image.data() + begin, end - begin, std::byte{0});
    } else {
        std::copy_n(event.data.data() + (begin - start), end - begin, image.data() + begin);
    }
}

void CrashDevice::apply(const Event& event, std::vector<std::byte>& image) const {
    if (event.kind == Kind::Flush) return;
    apply_part(event, event.offset.value(), (event.offset + event.length).value(), image);
}

void CrashDevice::apply_by_chance(size_t index, uint64_t seed,
                                  std::vector<std::byte>& image) const {
    const Event& event = events_[index];
    if (event.kind == Kind::Flush || seed == 0) return;
    // Whole fates are common too: sector by sector alone, a long write would never be one.
    constexpr uint64_t kWholeEvent = ~0ull;
    const uint64_t fate = seed == 1 ? 0 : dice(seed, index, kWholeEvent) % 4;
    const bool all = fate == 0 || (event.kind == Kind::AtomicWrite && fate == 2);
    if (all) return apply(event, image);
    if (fate == 1 || event.kind == Kind::AtomicWrite) return;
    const uint64_t end = (event.offset + event.length).value();
    for (uint64_t begin = event.offset.value(); begin < end;) {
        const uint64_t unit_end =
            begin < kSuperblockEnd ? kSuperblockEnd : round_down(begin, sector_) + sector_;
        const uint64_t part_end = std::min(unit_end, end);
        if (dice(seed, index, unit_end) & 1) apply_part(event, begin, part_end, image);
        begin = part_end;
    }
}

void CrashDevice::advance_base(size_t events_done) const {
    if (events_done < base_events_) {
        base_ = initial_;
        base_events_ = 0;
    }
    // Certain is what a flush follows, and durable writes as long as nothing uncertain precedes
    // them: they must not be overtaken.
    size_t certain = base_events_;
    bool uncertain_pending = false;
    for (size_t i = base_events_; i < events_done; ++i) {
        if (events_[i].kind == Kind::Flush) uncertain_pending = false;
        if (!certain_when_done(events_[i])) uncertain_pending = true;
        if (!uncertain_pending) certain = i + 1;
    }
    for (; base_events_ < certain; ++base_events_) apply(events_[base_events_], base_);
}

std::vector<std::byte> CrashDevice::image_after(size_t events_done, uint64_t seed) const {
    std::vector<std::byte> image;
    image_after(events_done, seed, image);
    return image;
}

void CrashDevice::image_after(size_t events_done, uint64_t seed,
                              std::vector<std::byte>& image) const {
    events_done = std::min(events_done, events_.size());
    advance_base(events_done);
    image = base_;
    for (size_t i = base_events_; i < events_done; ++i) {
        if (certain_when_done(events_[i]))
            apply(events_[i], image);
        else
            apply_by_chance(i, seed, image);
    }
    if (events_done < events_.size()) apply_by_chance(events_done, seed, image);
}

Result<> CrashDevice::record(Kind kind, const char* what, ByteOffset offset,
                             std::span<const std::byte> from) {
    A4_CHECK(check_range(*this, what, offset, Bytes(from.size())));
    events_.push_back({kind, offset, Bytes(from.size()), {from.begin(), from.end()}});
    apply(events_.back(), contents_);
    return {};
}

Result<> CrashDevice::read(ByteOffset offset, std::span<std::byte> into) {
    A4_CHECK(check_range(*this, "read", offset, Bytes(into.size())));
    std::copy_n(contents_.data() + offset.value(), into.size(), into.data());
    return {};
}

Result<> CrashDevice::write(ByteOffset offset, std::span<const std::byte> from) {
    return record(Kind::Write, "write", offset, from);
}

Result<> CrashDevice::write_durable(ByteOffset offset, std::span<const std::byte> from) {
    return record(Kind::DurableWrite, "durable write", offset, from);
}

Result<> CrashDevice::write_atomic(ByteOffset offset, std::span<const std::byte> from) {
    A4_CHECK(check_range(*this, "atomic write", offset, Bytes(from.size())));
    A4_CHECK(check_atomic_limits(limits_, offset, Bytes(from.size())).context(name_));
    return record(Kind::AtomicWrite, "atomic write", offset, from);
}

Result<> CrashDevice::zero(ByteOffset offset, Bytes length) {
    A4_CHECK(check_range(*this, "zeroing", offset, length));
    events_.push_back({Kind::Zero, offset, length, {}});
    apply(events_.back(), contents_);
    return {};
}

Result<> CrashDevice::flush() {
    events_.push_back({Kind::Flush, ByteOffset(0), Bytes(0), {}});
    return {};
}

}  // namespace atomic4::test
