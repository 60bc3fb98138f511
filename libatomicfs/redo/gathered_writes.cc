#include "redo/gathered_writes.h"

#include <cstring>

namespace atomic4 {

namespace {

constexpr uint64_t kRunMax = uint64_t{1} << 20;
constexpr uint64_t kBuffer = uint64_t{8} << 20;

}  // namespace

void GatheredWrites::add(ByteOffset at, std::span<const std::byte> bytes) {
    if (bytes.empty()) return;
    const ByteOffset end = at + Bytes(bytes.size());
    // What was there is cut down to what sticks out.
    auto it = writes_.lower_bound(at);
    if (it != writes_.begin()) {
        const auto before = std::prev(it);
        const auto old = before->second;
        const ByteOffset old_end = before->first + Bytes(old.size());
        if (old_end > at) before->second = old.first((at - before->first).value());
        if (old_end > end) writes_.emplace_hint(it, end, old.last((old_end - end).value()));
    }
    while (it != writes_.end() && it->first < end) {
        const auto old = it->second;
        const ByteOffset old_end = it->first + Bytes(old.size());
        it = writes_.erase(it);
        if (old_end > end) {
            writes_.emplace_hint(it, end, old.last((old_end - end).value()));
            break;
        }
    }
    writes_.emplace_hint(it, at, bytes);
}

void GatheredWrites::keep(const Payload& payload) {
    // Neighbours in the log share theirs.
    if (!memory_.empty() && memory_.back() == payload.memory) return;
    kept_ += payload.memory->size();
    memory_.push_back(payload.memory);
}

Result<> GatheredWrites::write() {
    auto written = write_all();
    writes_.clear();
    memory_.clear();
    kept_ = Bytes(0);
    return written;
}

Result<> GatheredWrites::write_all() {
    const auto buffer = A4_TRY(buffer_.get(Bytes(kBuffer)));
    size_t used = 0;
    std::vector<DeviceWrite> round;
    const auto write_round = [&]() -> Result<> {
        A4_CHECK(device_.write_many(round));
        round.clear();
        used = 0;
        return {};
    };
    for (auto it = writes_.begin(); it != writes_.end();) {
        const auto first = it++;
        ByteOffset end = first->first + Bytes(first->second.size());
        uint64_t length = first->second.size();
        for (; it != writes_.end() && it->first == end && length + it->second.size() <= kRunMax;
             ++it) {
            length += it->second.size();
            end += Bytes(it->second.size());
        }
        // What is alone and aligned goes from where it is.
        const auto address = reinterpret_cast<uintptr_t>(first->second.data());
        if (std::next(first) == it && (is_aligned(address, kLogBlock) || length > kRunMax)) {
            round.push_back({first->first, first->second});
            continue;
        }
        if (used + length > kBuffer) A4_CHECK(write_round());
        const auto run = buffer.subspan(used, length);
        used = round_up(used + length, kLogBlock);
        auto* to = run.data();
        for (auto part = first; part != it; ++part) {
            std::memcpy(to, part->second.data(), part->second.size());
            to += part->second.size();
        }
        round.push_back({first->first, run});
    }
    return write_round();
}

}  // namespace atomic4
