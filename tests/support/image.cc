#include "support/image.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <stdexcept>

#include "base/crc32c.h"
#include "base/endian.h"
#include "base/unique_fd.h"
#include "device/forwarding_device.h"
#include "ext4/format.h"
#include "support/command.h"

namespace atomic4::test {

namespace {

constexpr size_t kSuper = 1024;
constexpr size_t kCompat = kSuper + 0x5c;
constexpr size_t kIncompat = kSuper + 0x60;
constexpr size_t kRoCompat = kSuper + 0x64;
constexpr size_t kChecksum = kSuper + 0x3fc;

uint32_t get32(const Image& image, size_t at) {
    le32 value;
    std::memcpy(&value, image.data() + at, sizeof value);
    return value;
}

void put32(Image& image, size_t at, uint32_t number) {
    const le32 value = number;
    std::memcpy(image.data() + at, &value, sizeof value);
}

bool has_checksums(const Image& image) {
    return (get32(image, kRoCompat) & EXT4_FEATURE_RO_COMPAT_METADATA_CSUM) != 0;
}

uint32_t checksum_of(const Image& image) {
    return crc32c(~0u, std::span(image).subspan(kSuper, 0x3fc));
}

void set_checksum(Image& image) {
    if (has_checksums(image)) put32(image, kChecksum, checksum_of(image));
}

Image load(const std::string& path) {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    Image image(static_cast<size_t>(file.tellg()));
    file.seekg(0);
    file.read(reinterpret_cast<char*>(image.data()), static_cast<std::streamsize>(image.size()));
    return image;
}

}  // namespace

Result<> ImageDevice::read(ByteOffset offset, std::span<std::byte> into) {
    A4_CHECK(check_range(*this, "read", offset, Bytes(into.size())));
    if (!into.empty()) std::memcpy(into.data(), image_.data() + offset.value(), into.size());
    return {};
}

Result<> ImageDevice::write(ByteOffset offset, std::span<const std::byte> from) {
    A4_CHECK(check_range(*this, "write", offset, Bytes(from.size())));
    ++changes_;
    if (!from.empty()) std::memcpy(image_.data() + offset.value(), from.data(), from.size());
    return {};
}

Result<> ImageDevice::write_durable(ByteOffset offset, std::span<const std::byte> from) {
    return write(offset, from);
}

Result<> ImageDevice::write_atomic(ByteOffset offset, std::span<const std::byte> from) {
    A4_CHECK(check_atomic_limits(limits_, offset, Bytes(from.size())).context(name_));
    return write(offset, from);
}

Result<> ImageDevice::zero(ByteOffset offset, Bytes length) {
    A4_CHECK(check_range(*this, "zeroing", offset, length));
    ++changes_;
    std::memset(image_.data() + offset.value(), 0, length.value());
    return {};
}

std::unique_ptr<Device> borrowed(Device& device) {
    return std::make_unique<ForwardingDevice>(device);
}

Result<std::unique_ptr<Volume>> open_any(Device& device, OpenFor purpose) {
    VolumeOptions options;
    options.purpose = purpose;
    options.require_atomic4 = false;
    return Volume::open(borrowed(device), options);
}

Image make_ext4(uint64_t size, const std::vector<std::string>& arguments) {
    static std::map<std::pair<uint64_t, std::vector<std::string>>, Image> made;
    auto& image = made[{size, arguments}];
    if (image.empty()) {
        const TempDir dir;
        const std::string path = dir.file("image");
        std::vector<std::string> command{"mke2fs", "-q", "-F", "-t", "ext4"};
        command.insert(command.end(), arguments.begin(), arguments.end());
        command.insert(command.end(), {path, std::to_string(size / 1024) + "K"});
        const CommandOutput result = run_command(command);
        if (result.status != 0) throw std::runtime_error("mke2fs: " + result.output);
        image = load(path);
        image.resize(size);
    }
    return image;
}

Image make_atomic4(uint64_t size, const std::vector<std::string>& arguments,
                   const EnableOptions& options) {
    MemoryDevice memory(make_ext4(size, arguments));
    auto volume = open_any(memory, OpenFor::Write);
    if (!volume) throw std::runtime_error(volume.error().message);
    if (const auto plan = enable(**volume, options); !plan)
        throw std::runtime_error(plan.error().message);
    return std::move(memory.contents());
}

Image without_our_bits(Image image) {
    put32(image, kCompat, get32(image, kCompat) & ~kFeatureCompatAtomic4);
    put32(image, kIncompat, get32(image, kIncompat) & ~kFeatureIncompatNeedsReplay);
    set_checksum(image);
    return image;
}

RawSuper raw_super(const Image& image) {
    RawSuper raw;
    raw.gate = (get32(image, kCompat) & kFeatureCompatAtomic4) != 0;
    raw.needs_replay = (get32(image, kIncompat) & kFeatureIncompatNeedsReplay) != 0;
    raw.checksum_right = !has_checksums(image) || get32(image, kChecksum) == checksum_of(image);
    return raw;
}

Fsck e2fsck(const Image& image, const std::vector<std::string>& arguments, Image* repaired) {
    // In memory: e2fsck syncs, and hundreds of runs would wait for a disk. And without a copy of
    // the image, which would take longer than e2fsck: only its beginning changes.
    const UniqueFd file(memfd_create("image", 0));
    const std::string path = fmt::format("/proc/self/fd/{}", file.get());
    const ssize_t beginning = std::min<ssize_t>(std::ssize(image), 4096);
    const Image without = without_our_bits(Image(image.begin(), image.begin() + beginning));
    if (::pwrite(file.get(), image.data(), image.size(), 0) != std::ssize(image) ||
        ::pwrite(file.get(), without.data(), without.size(), 0) != beginning)
        throw std::runtime_error("an image in memory can't be written");
    std::vector<std::string> command{"e2fsck", "-E", "no_optimize_extents"};
    command.insert(command.end(), arguments.begin(), arguments.end());
    command.push_back(path);
    const CommandOutput result = run_command(command);
    if (repaired != nullptr) {
        const uint32_t gate = get32(image, kCompat) & kFeatureCompatAtomic4;
        const uint32_t needs_replay = get32(image, kIncompat) & kFeatureIncompatNeedsReplay;
        repaired->resize(image.size());
        if (::pread(file.get(), repaired->data(), repaired->size(), 0) != std::ssize(*repaired))
            throw std::runtime_error("an image in memory can't be read");
        put32(*repaired, kCompat, get32(*repaired, kCompat) | gate);
        put32(*repaired, kIncompat, get32(*repaired, kIncompat) | needs_replay);
        set_checksum(*repaired);
    }
    return {result.status, result.output};
}

std::string fsck_complaints(const Image& image) {
    const Fsck fsck = e2fsck(image, {"-fn"});
    return fsck.status == 0 ? std::string() : fsck.output;
}

}  // namespace atomic4::test
