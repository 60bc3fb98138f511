// ext4 images in memory: made by the real mke2fs, judged by the real e2fsck.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "device/memory_device.h"
#include "writer/atomic_writer.h"
#include "writer/enable.h"

namespace atomic4::test {

using Image = std::vector<std::byte>;

// mke2fs -t ext4 ARGUMENTS on an image of size bytes. Throws if mke2fs fails. Made once per
// argument list; later calls return copies.
Image make_ext4(uint64_t size, const std::vector<std::string>& arguments);

// The same, with atomic4 enabled.
Image make_atomic4(uint64_t size, const std::vector<std::string>& arguments,
                   const EnableOptions& options = {});

// What a stock tool sees after the gate and needs-replay bits are cleared in the primary.
Image without_our_bits(Image image);

// The primary superblock as it stands, without any library's help.
struct RawSuper {
    bool gate = false;
    bool needs_replay = false;
    bool checksum_right = false;  // also where the volume has no checksums
};
RawSuper raw_super(const Image& image);

struct Fsck {
    int status = -1;
    std::string output;
};
// e2fsck on a copy without our bits; the repaired copy (gate restored) replaces *repaired.
Fsck e2fsck(const Image& image, const std::vector<std::string>& arguments,
            Image* repaired = nullptr);
// Empty if e2fsck -fn finds nothing, else what it says.
std::string fsck_complaints(const Image& image);

// A Device over an image that the test owns, without a copy. Counts what changes it.
class ImageDevice final : public Device {
  public:
    explicit ImageDevice(Image& image) : image_(image) {}
    uint64_t changes() const { return changes_; }  // writes and zeroings
    void set_atomic_limits(AtomicLimits limits) { limits_ = std::move(limits); }

    Result<> read(ByteOffset offset, std::span<std::byte> into) override;
    Result<> write(ByteOffset offset, std::span<const std::byte> from) override;
    Result<> write_durable(ByteOffset offset, std::span<const std::byte> from) override;
    Result<> write_atomic(ByteOffset offset, std::span<const std::byte> from) override;
    Result<> zero(ByteOffset offset, Bytes length) override;
    Result<> flush() override { return {}; }
    Bytes size() const override { return Bytes(image_.size()); }
    const AtomicLimits& atomic_limits() const override { return limits_; }
    bool read_only() const override { return false; }
    const std::string& name() const override { return name_; }

  private:
    Image& image_;
    uint64_t changes_ = 0;
    AtomicLimits limits_ = AtomicLimits::none("this is an image in memory");
    std::string name_ = "image";
};

// A Device that passes everything on to another that the test owns.
std::unique_ptr<Device> borrowed(Device& device);

// Whatever ext4 is on it, atomic4 or not.
Result<std::unique_ptr<Volume>> open_any(Device& device, OpenFor purpose);

}  // namespace atomic4::test
