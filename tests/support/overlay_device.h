// A Device over an image that is never changed: what is written is kept beside it. Cheap to put on
// the same image again and again, and it tells what differs. Counts reads, and ends a run that
// reads without end.
#pragma once

#include <algorithm>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "device/device.h"
#include "support/image.h"

namespace atomic4::test {

class OverlayDevice final : public Device {
  public:
    using Written = std::map<uint64_t, std::vector<std::byte>>;  // piece number → contents

    OverlayDevice(const Image& image, std::string name, uint64_t reads_max)
        : image_(image), reads_max_(reads_max), name_(std::move(name)) {}

    // The pieces that were written, also where the bytes are the same again.
    const Written& written() const { return written_; }
    // Whether what stands there now differs from what stood there with these pieces written.
    bool differs_from(const Written& before) const {
        const auto piece_in = [this](const Written& pieces, uint64_t number) {
            const auto found = pieces.find(number);
            return found != pieces.end() ? std::span<const std::byte>(found->second)
                                         : original(number);
        };
        // Pieces are only ever added.
        return std::ranges::any_of(written_, [&](const auto& piece) {
            return !std::ranges::equal(piece.second, piece_in(before, piece.first));
        });
    }
    Image contents() const {
        Image all = image_;
        for (const auto& [number, bytes] : written_)
            std::ranges::copy(bytes, all.begin() + static_cast<ptrdiff_t>(number * kPiece));
        return all;
    }

    void forget_reads() { reads_ = 0; }
    bool reads_without_end() const { return reads_ > reads_max_; }

    Result<> read(ByteOffset offset, std::span<std::byte> into) override {
        A4_CHECK(check_range(*this, "read", offset, Bytes(into.size())));
        if (++reads_ > reads_max_) return fail(EIO, "{}: read too often", name_);
        each_piece(offset, into.size(), [&](uint64_t number, size_t at, size_t from, size_t n) {
            const auto found = written_.find(number);
            const std::byte* bytes =
                found != written_.end() ? found->second.data() : original(number).data();
            std::memcpy(into.data() + from, bytes + at, n);
        });
        return {};
    }
    Result<> write(ByteOffset offset, std::span<const std::byte> from) override {
        A4_CHECK(check_range(*this, "write", offset, Bytes(from.size())));
        each_piece(offset, from.size(), [&](uint64_t number, size_t at, size_t start, size_t n) {
            std::memcpy(piece(number).data() + at, from.data() + start, n);
        });
        return {};
    }
    Result<> write_durable(ByteOffset offset, std::span<const std::byte> from) override {
        return write(offset, from);
    }
    Result<> write_atomic(ByteOffset, std::span<const std::byte>) override {
        return fail(EOPNOTSUPP, "not here");
    }
    Result<> zero(ByteOffset offset, Bytes length) override {
        A4_CHECK(check_range(*this, "zeroing", offset, length));
        each_piece(offset, length.value(), [&](uint64_t number, size_t at, size_t, size_t n) {
            std::memset(piece(number).data() + at, 0, n);
        });
        return {};
    }
    Result<> flush() override { return {}; }
    Bytes size() const override { return Bytes(image_.size()); }
    const AtomicLimits& atomic_limits() const override { return limits_; }
    bool read_only() const override { return false; }
    const std::string& name() const override { return name_; }

  private:
    static constexpr size_t kPiece = 1024;

    std::span<const std::byte> original(uint64_t number) const {
        const uint64_t at = number * kPiece;
        return std::span(image_).subspan(at, std::min(kPiece, image_.size() - at));
    }
    std::vector<std::byte>& piece(uint64_t number) {
        auto found = written_.find(number);
        if (found == written_.end()) {
            const auto bytes = original(number);
            found = written_.emplace(number, std::vector(bytes.begin(), bytes.end())).first;
        }
        return found->second;
    }
    template <class Visit>
    static void each_piece(ByteOffset offset, uint64_t length, Visit visit) {
        uint64_t at = offset.value();
        for (size_t done = 0; done < length;) {
            const size_t skip = at % kPiece;
            const size_t n = std::min<size_t>(kPiece - skip, length - done);
            visit(at / kPiece, skip, done, n);
            at += n;
            done += n;
        }
    }

    const Image& image_;
    uint64_t reads_max_;
    std::string name_;
    AtomicLimits limits_ = AtomicLimits::none("this is an image in memory");
    Written written_;
    uint64_t reads_ = 0;
};

}  // namespace atomic4::test
