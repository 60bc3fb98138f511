// What the tests of volumes, files and writers share.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/crc32c.h"
#include "device/forwarding_device.h"
#include "device/memory_device.h"
#include "ext4/layout.h"
#include "ext4/path.h"
#include "ext4/transaction.h"
#include "support/bytes.h"
#include "support/command.h"
#include "support/image.h"
#include "support/results.h"

namespace atomic4::test {

inline std::unique_ptr<Volume> open_volume(Device& device, OpenFor purpose = OpenFor::Write,
                                           bool require_atomic4 = false,
                                           bool may_use_reserved = true) {
    VolumeOptions options;
    options.purpose = purpose;
    options.require_atomic4 = require_atomic4;
    options.may_use_reserved = may_use_reserved;
    return must(Volume::open(borrowed(device), options));
}

inline constexpr size_t kSuperOffset = 1024;

inline ext2_super_block super_of(const Image& image, size_t at = kSuperOffset) {
    ext2_super_block super;
    std::memcpy(&super, image.data() + at, sizeof super);
    return super;
}

// Changes a superblock copy and makes its checksum right again.
inline void edit_super(Image& image, const std::function<void(ext2_super_block&)>& edit,
                       size_t at = kSuperOffset) {
    ext2_super_block super = super_of(image, at);
    edit(super);
    if ((super.s_feature_ro_compat & EXT4_FEATURE_RO_COMPAT_METADATA_CSUM) != 0)
        super.s_checksum = crc32c(~0u, std::as_bytes(std::span(&super, 1)).first(0x3fc));
    std::memcpy(image.data() + at, &super, sizeof super);
}

inline void store_image(const Image& image, const std::string& path) {
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(image.data()),
               static_cast<std::streamsize>(image.size()));
}

inline Image load_image(const std::string& path) {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    Image image(static_cast<size_t>(file.tellg()));
    file.seekg(0);
    file.read(reinterpret_cast<char*>(image.data()), static_cast<std::streamsize>(image.size()));
    return image;
}

// debugfs -w with these commands, one after the other. Files named in them are the test's.
inline Image debugfs(const Image& image, const std::vector<std::string>& commands) {
    const TempDir dir;
    const std::string path = dir.file("image");
    const std::string script = dir.file("script");
    store_image(image, path);
    {
        std::ofstream out(script);
        for (const std::string& command : commands) out << command << "\n";
    }
    const CommandOutput result = run_command({"debugfs", "-w", "-f", script, path});
    if (result.status != 0) throw std::runtime_error("debugfs: " + result.output);
    return load_image(path);
}

// What a file holds, as a stock tool reads it.
inline Image dump_file(const Image& image, const std::string& path) {
    const TempDir dir;
    store_image(without_our_bits(image), dir.file("image"));
    const CommandOutput result =
        run_command({"debugfs", "-R", "dump " + path + " " + dir.file("out"), dir.file("image")});
    if (result.status != 0) throw std::runtime_error("debugfs: " + result.output);
    return load_image(dir.file("out"));
}

// Fills every free block with 0xEE: what is not zeroed before it gets into a file shows.
inline Image with_dirty_free_blocks(const Image& image) {
    MemoryDevice memory(image);
    const auto volume = open_volume(memory);
    const uint64_t block = volume->block_size().value();
    for (uint32_t group = 0; group < volume->fs()->group_desc_count; ++group) {
        const auto bits = must(volume->block_bitmaps().get(group));
        const uint64_t cluster = block << volume->fs()->cluster_ratio_bits;
        for (uint32_t bit = 0; bit < volume->block_bitmaps().bits_in(group); ++bit) {
            if (((*bits)[bit / 8] >> (bit % 8) & 1) != 0) continue;
            const uint64_t at = volume->block_bitmaps().block_of(group, bit) * block;
            std::memset(memory.contents().data() + at, 0xee, cluster);
        }
    }
    return memory.contents();
}

// An atomic4 volume whose free blocks hold garbage.
inline Image make_dirty_atomic4(uint64_t size, const std::vector<std::string>& arguments,
                                const EnableOptions& options = {}) {
    MemoryDevice memory(with_dirty_free_blocks(make_ext4(size, arguments)));
    const auto volume = open_volume(memory);
    must(enable(*volume, options));
    return memory.contents();
}

// The volume of the bug report in the RFC's thread: 358,400 blocks of 1 KiB.
inline std::string make_john_garrys_volume(const TempDir& dir) {
    std::string path = dir.file("image");
    const CommandOutput made =
        run_command({"mke2fs", "-q", "-F", "-t", "ext4", "-b", "1024", path, "358400"});
    if (made.status != 0) throw std::runtime_error("mke2fs: " + made.output);
    return path;
}

// An empty file like any program makes one: extent-mapped, without flag or unit.
inline ext2_ino_t create_plain_file(Volume& volume, const std::string& path) {
    Transaction transaction(volume);
    const NewName where = must(lookup_new(volume, path));
    NewFile file;
    file.unit = volume.block_size();
    const StagedFile staged = must(stage_file(volume, where.directory, file, false));
    must(link_name(volume, where, staged.number, EXT2_FT_REG_FILE));
    must(transaction.commit());
    return staged.number;
}

inline Result<std::unique_ptr<Volume>> try_open(Image image, OpenFor purpose,
                                                bool require_atomic4 = false) {
    // The image outlives the Volume by being its own.
    VolumeOptions options;
    options.purpose = purpose;
    options.require_atomic4 = require_atomic4;
    return Volume::open(std::make_unique<MemoryDevice>(std::move(image)), options);
}

// An opened volume on its own memory.
struct Opened {
    explicit Opened(Image image, bool require_atomic4 = true) : memory(std::move(image)) {
        volume = open_volume(memory, OpenFor::Write, require_atomic4);
    }
    const Image& image() const { return memory.contents(); }
    uint64_t free_blocks() const { return ext2fs_free_blocks_count(volume->fs()->super); }
    FileState state(ext2_ino_t number) { return must(read_file(*volume, number)); }

    MemoryDevice memory;
    std::unique_ptr<Volume> volume;
};

// 16 MiB of it.
inline Image dirty(const char* block = "1024", std::vector<std::string> more = {}) {
    more.insert(more.begin(), {"-b", block});
    return make_dirty_atomic4(16 << 20, more);
}

// Takes all free blocks but so many.
inline void fill_up(Volume& volume, uint64_t leave) {
    // A large file may need tree blocks of its own; the rest goes to files that need none.
    constexpr uint64_t kRest = 64;
    // Where an inode has no room for xattrs they take one, too.
    const uint64_t xattrs = EXT2_INODE_SIZE(volume.fs()->super) > EXT2_GOOD_OLD_INODE_SIZE ? 0 : 1;
    NewFile file;
    file.unit = volume.block_size();
    const auto left = [&] { return ext2fs_free_blocks_count(volume.fs()->super); };
    if (left() > leave + kRest) {
        file.size = volume.block_size() * (left() - leave - kRest);
        must(create_atomic_file(volume, "/fill", file));
    }
    for (int i = 0; left() > leave; ++i) {
        file.size = volume.block_size() * std::min<uint64_t>(left() - leave - xattrs, 4);
        must(create_atomic_file(volume, fmt::format("/fill{}", i), file));
    }
    if (left() != leave) throw std::runtime_error("can't fill the volume up");
}

// Passes everything on, and remembers the order of what changes the device.
class RecordingDevice final : public ForwardingDevice {
  public:
    enum class Kind { Write, DurableWrite, AtomicWrite, Zero, Flush };
    struct Event {
        Kind kind;
        ByteOffset offset;
        Bytes length;
        Image data;  // of writes
    };

    using ForwardingDevice::ForwardingDevice;

    std::vector<Event> events;
    uint64_t reads = 0;
    uint64_t bytes_read = 0;

    Result<> read(ByteOffset offset, std::span<std::byte> into) override {
        ++reads;
        bytes_read += into.size();
        return below_.read(offset, into);
    }
    Result<> write(ByteOffset offset, std::span<const std::byte> from) override {
        note(Kind::Write, offset, from);
        return below_.write(offset, from);
    }
    Result<> write_durable(ByteOffset offset, std::span<const std::byte> from) override {
        note(Kind::DurableWrite, offset, from);
        return below_.write_durable(offset, from);
    }
    Result<> write_atomic(ByteOffset offset, std::span<const std::byte> from) override {
        note(Kind::AtomicWrite, offset, from);
        return below_.write_atomic(offset, from);
    }
    Result<> zero(ByteOffset offset, Bytes length) override {
        events.push_back({Kind::Zero, offset, length, {}});
        return below_.zero(offset, length);
    }
    Result<> flush() override {
        events.push_back({Kind::Flush, ByteOffset(0), Bytes(0), {}});
        return below_.flush();
    }

  private:
    void note(Kind kind, ByteOffset offset, std::span<const std::byte> from) {
        events.push_back({kind, offset, Bytes(from.size()), Image(from.begin(), from.end())});
    }
};

}  // namespace atomic4::test
