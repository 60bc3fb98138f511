// What the redo log's tests share: a disk in memory that counts, records and fails, and a log on it
// with known records at known places.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/crc32c.h"
#include "device/device.h"
#include "redo/log_reader.h"
#include "redo/log_record.h"
#include "redo/redo_log.h"

namespace atomic4::redo_test {

inline constexpr uint64_t kSector = 512;
inline constexpr LogId kId{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
inline constexpr LogId kOtherId{99};
inline constexpr SessionStamp kStamp{1'700'000'000, 7};

using Image = std::vector<std::byte>;

class LogDisk : public Device {
  public:
    struct Write {
        uint64_t offset;
        Image data;
        bool aligned;
    };

    explicit LogDisk(uint64_t size) : image(size), size_(size) {}
    explicit LogDisk(Image bytes) : image(std::move(bytes)), size_(image.size()) {}

    Result<> read(ByteOffset offset, std::span<std::byte> into) override {
        A4_CHECK(check_range(*this, "read", offset, Bytes(into.size())));
        const uint64_t from = offset.value();
        if (bad_sector && *bad_sector >= from && *bad_sector < from + into.size())
            return fail(ENXIO, "memory: read error at {}", *bad_sector);
        std::memcpy(into.data(), image.data() + from, into.size());
        bytes_read += into.size();
        return {};
    }
    Result<> write(ByteOffset, std::span<const std::byte>) override {
        return fail(EINVAL, "the log writes durably or not at all");
    }
    Result<> write_durable(ByteOffset offset, std::span<const std::byte> from) override {
        A4_CHECK(check_range(*this, "write", offset, Bytes(from.size())));
        if (on_write) on_write(offset, from);
        if (fail_after && writes.size() >= *fail_after) return fail(ENXIO, "memory: write error");
        writes.push_back({offset.value(), Image(from.begin(), from.end()),
                          reinterpret_cast<uintptr_t>(from.data()) % kLogBlock == 0});
        std::memcpy(image.data() + offset.value(), from.data(), from.size());
        return {};
    }
    Result<> write_atomic(ByteOffset, std::span<const std::byte>) override {
        return fail(EOPNOTSUPP, "memory");
    }
    Result<> zero(ByteOffset, Bytes) override { return fail(EOPNOTSUPP, "memory"); }
    Result<> flush() override { return {}; }
    Bytes size() const override { return Bytes(size_); }
    const AtomicLimits& atomic_limits() const override { return limits_; }
    bool read_only() const override { return false; }
    const std::string& name() const override { return name_; }

    // Changes one bit.
    void flip(uint64_t offset, unsigned bit = 0) { image[offset] ^= std::byte(1u << bit); }
    void clear(uint64_t offset, uint64_t length) { std::memset(&image[offset], 0, length); }

    template <class T>
    T get(uint64_t offset) const {
        T value;
        std::memcpy(&value, &image[offset], sizeof value);
        return value;
    }
    template <class T>
    void put(uint64_t offset, const T& value) {
        std::memcpy(&image[offset], &value, sizeof value);
    }

    Image image;
    std::vector<Write> writes;
    uint64_t bytes_read = 0;
    std::optional<uint64_t> bad_sector;
    std::optional<size_t> fail_after;  // writes that still succeed
    std::function<void(ByteOffset, std::span<const std::byte>)> on_write;

  private:
    uint64_t size_;
    std::string name_ = "memory";
    AtomicLimits limits_ = AtomicLimits::none("memory");
};

// Bytes that differ everywhere and between tags.
inline Image pattern(uint64_t length, uint64_t tag) {
    Image bytes(length);
    uint64_t x = tag * 0x9e3779b97f4a7c15u + 1;
    for (auto& byte : bytes) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        byte = std::byte(x >> 56);
    }
    return bytes;
}

inline RangeRef range(uint32_t inode, uint64_t offset, uint64_t length, uint64_t new_size = 0) {
    return {inode, inode + 1000, ByteOffset(offset), Bytes(length), Bytes(new_size)};
}

// Appends with pattern(tag + i) as the i-th range's bytes.
inline Result<RedoLog::Appended> append(RedoLog& log, const std::vector<RangeRef>& ranges,
                                        uint64_t tag) {
    std::vector<Image> images;
    for (const RangeRef& r : ranges)
        images.push_back(pattern(r.length.value(), tag + images.size()));
    const std::vector<std::span<const std::byte>> data(images.begin(), images.end());
    return log.append(ranges, data);
}

inline LogContents read_ok(Device& disk) {
    auto contents = read_log(disk, kId);
    EXPECT_TRUE(contents.has_value()) << (contents ? "" : contents.error().message);
    return contents ? *std::move(contents) : LogContents{};
}

inline std::unique_ptr<RedoLog> begin_ok(Device& disk) {
    auto log = RedoLog::begin(disk, read_ok(disk), kStamp);
    EXPECT_TRUE(log.has_value()) << (log ? "" : log.error().message);
    return log ? *std::move(log) : nullptr;
}

inline std::vector<uint64_t> sequences(const LogContents& contents) {
    std::vector<uint64_t> result;
    for (const LoggedRecord& record : contents.live) result.push_back(record.sequence);
    return result;
}

using Seqs = std::vector<uint64_t>;

// Makes a changed header's checksum right again, as a forger with the epoch would.
inline void reseal(LogDisk& disk, uint64_t at) {
    auto header = disk.get<RecordHeader>(at);
    const uint32_t seed = record_seed(header.epoch, header.sequence, ByteOffset(at));
    const uint64_t length = std::min<uint64_t>(header.header_length, disk.image.size() - at);
    header.header_crc = record_header_crc(std::span(disk.image).subspan(at, length), seed);
    disk.put(at, header);
}
inline void reseal_superblock(LogDisk& disk, size_t slot) {
    const uint64_t at = kSuperblockPosition[slot].value();
    disk.put(at + offsetof(LogSuperblock, checksum), le32{0});
    const le32 crc = crc32c(~0u, std::span(disk.image).subspan(at, kLogBlock));
    disk.put(at + offsetof(LogSuperblock, checksum), crc);
}

// A 128 KiB log (112 KiB for records) with three live records of one session:
//   record 1 at 16384, 12288 bytes: 8 KiB for inode 11 at 0
//   record 2 at 28672, 16384 bytes: 4 KiB for inode 12 at 4096, 8 KiB for inode 13 at 65536,
//   growing record 3 at 45056, 12288 bytes: 5000 bytes for inode 11 at 8192
// and the head at 57344.
class ThreeRecords : public testing::Test {
  protected:
    static constexpr uint64_t kSize = 128 * 1024;
    static constexpr uint64_t kFirst = 16384, kSecond = 28672, kThird = 45056, kHead = 57344;

    ThreeRecords() : disk(kSize) {
        EXPECT_TRUE(RedoLog::format(disk, kId, kStamp));
        log = begin_ok(disk);
        EXPECT_TRUE(append(*log, {range(11, 0, 8192)}, 10));
        EXPECT_TRUE(append(*log, {range(12, 4096, 4096), range(13, 65536, 8192, 73728)}, 20));
        before_third = disk.image;
        EXPECT_TRUE(append(*log, {range(11, 8192, 5000)}, 30));
    }

    // The end that the log has now, and the live records: everything one usually asks.
    void expect(LogEnd end, const Seqs& live) {
        const LogContents contents = read_ok(disk);
        EXPECT_STREQ(to_text(contents.end), to_text(end)) << contents.end_detail;
        EXPECT_EQ(sequences(contents), live);
    }

    LogDisk disk;
    std::unique_ptr<RedoLog> log;
    Image before_third;  // as it was before record 3 was written
};

}  // namespace atomic4::redo_test
