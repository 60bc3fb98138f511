// The disk that remembers and fails, before others rely on it.
#include "support/fault_disk.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>

#include "device/file_device.h"
#include "support/bytes.h"
#include "support/command.h"
#include "support/loop.h"
#include "support/privileged.h"

namespace atomic4::test {
namespace {

constexpr uint64_t kMiB = 1 << 20;

class FaultDiskTest : public ::testing::Test {
  protected:
    void SetUp() override {
        if (const auto why = FaultDisk::why_not()) A4_SKIP(*why);
    }
    static std::unique_ptr<FileDevice> open(const FaultDisk& disk) {
        FileDeviceOptions options;
        options.access = Access::ReadWrite;
        return FileDevice::open(disk.device(), options).value();
    }
    std::mt19937_64 random_{1};
};

TEST_F(FaultDiskTest, RemembersWritesAndFlushesInOrder) {
    const Image initial = filled(kMiB, 7);
    FaultDisk disk(initial);
    const auto device = open(disk);
    ASSERT_EQ(device->size(), Bytes(kMiB));
    const size_t before = disk.events();
    const auto a = random_bytes(8192, random_);
    const auto b = random_bytes(4096, random_);
    ASSERT_TRUE(device->write(ByteOffset(4096), a));
    ASSERT_TRUE(device->flush());
    ASSERT_TRUE(device->write(ByteOffset(8192), b));
    EXPECT_EQ(disk.events(), before + 3);

    const auto trace = disk.recorded();
    EXPECT_EQ(trace->events(), disk.events());
    EXPECT_TRUE(trace->contents() == disk.contents());
    const Image cut = trace->image_after(disk.events(), 0);
    EXPECT_EQ(std::memcmp(cut.data() + 4096, a.data(), a.size()), 0);
    const Image kept = trace->image_after(disk.events(), 1);
    EXPECT_EQ(std::memcmp(kept.data() + 8192, b.data(), b.size()), 0);
    EXPECT_TRUE(trace->image_after(before, 0) == initial);
}

TEST_F(FaultDiskTest, ADurableWriteIsAWriteAndAFlush) {
    FaultDisk disk(filled(kMiB, 0));
    const auto device = open(disk);
    const uint64_t writes = disk.writes();
    const uint64_t flushes = disk.flushes();
    ASSERT_TRUE(device->write_durable(ByteOffset(0), filled(4096, 1)));
    EXPECT_EQ(disk.writes(), writes + 1);
    EXPECT_GE(disk.flushes(), flushes + 1);
}

TEST_F(FaultDiskTest, FailsWhatItIsToldTo) {
    FaultDisk disk(filled(kMiB, 0));
    auto device = open(disk);
    const auto data = filled(4096, 1);
    disk.fail(FaultDisk::What::Write, 1);
    EXPECT_TRUE(device->write(ByteOffset(0), data));
    const auto failed = device->write(ByteOffset(4096), data);
    ASSERT_FALSE(failed);
    EXPECT_EQ(failed.error().code, EIO);
    EXPECT_TRUE(device->write(ByteOffset(8192), data));
    EXPECT_EQ(disk.failed(), 1u);
    EXPECT_EQ(std::to_integer<int>(disk.contents()[4096]), 0);

    disk.fail(FaultDisk::What::Flush, 0, FaultDisk::kForEver);
    EXPECT_FALSE(device->flush());
    EXPECT_FALSE(device->flush());
    disk.heal();
    // A device that failed a flush stays failed for who saw it.
    device.reset();
    EXPECT_TRUE(open(disk)->flush());
}

TEST_F(FaultDiskTest, FillsUp) {
    Image initial(kMiB);
    initial[5] = std::byte{1};
    FaultDisk disk(initial);
    const auto device = open(disk);
    disk.fill_up_after(2);
    EXPECT_TRUE(device->write(ByteOffset(0), filled(4096, 2)));
    EXPECT_TRUE(device->write(ByteOffset(4096), filled(8192, 2)));
    EXPECT_FALSE(device->write(ByteOffset(16384), filled(4096, 2)));
    EXPECT_TRUE(device->write(ByteOffset(8192), filled(4096, 3)));
}

TEST_F(FaultDiskTest, TheKernelMountsIt) {
    const TempDir temp;
    ASSERT_EQ(run_command({"mkdir", temp.file("mnt")}).status, 0);
    Image image;
    {
        FaultDisk disk(make_ext4(32 * kMiB, {}));
        Mount mount(disk.device(), temp.file("mnt"), {"-t", "ext4"});
        const UniqueFd file(
            ::open(temp.file("mnt/file").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
        ASSERT_EQ(::pwrite(file.get(), "hello", 5, 0), 5);
        ASSERT_EQ(::fsync(file.get()), 0);
        image = disk.recorded()->image_after(disk.events(), 0);
    }
    // After the power cut, what was synced is there.
    FaultDisk disk(image);
    Mount mount(disk.device(), temp.file("mnt"), {"-t", "ext4"});
    const UniqueFd file(::open(temp.file("mnt/file").c_str(), O_RDONLY | O_CLOEXEC));
    char text[6] = {};
    ASSERT_EQ(::read(file.get(), text, 5), 5);
    EXPECT_STREQ(text, "hello");
}

}  // namespace
}  // namespace atomic4::test
