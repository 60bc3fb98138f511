// FileDevice on what needs root: block devices, file systems made for the purpose, real atomic
// writes on XFS.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/blkpg.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "device/atomic_limits.h"
#include "device/file_device.h"
#include "device/ownership.h"
#include "support/bytes.h"
#include "support/command.h"
#include "support/device_shadow.h"
#include "support/failing_syscalls.h"
#include "support/loop.h"
#include "support/privileged.h"

namespace atomic4::test {
namespace {

constexpr FileDeviceOptions kReadWrite{.access = Access::ReadWrite, .exclusive = true};
constexpr uint64_t kMiB = 1 << 20;

class FileDeviceKernel : public testing::Test {
  protected:
    void SetUp() override {
        A4_REQUIRE_ROOT();
        if (const auto why = LoopDevice::why_not()) A4_SKIP(*why);
    }
    std::string image(uint64_t size) {
        const std::string path = dir_.file("image");
        make_image(path, size);
        return path;
    }
    std::string mount_point() {
        const std::string path = dir_.file("mnt");
        std::filesystem::create_directory(path);
        return path;
    }
    static std::unique_ptr<FileDevice> open(const std::string& path) {
        auto device = FileDevice::open(path, kReadWrite);
        EXPECT_TRUE(device.has_value()) << device.error().message;
        return std::move(device).value();
    }
    static void run(const std::vector<std::string>& command) {
        const CommandOutput result = run_command(command);
        ASSERT_EQ(result.status, 0) << command[0] << ": " << result.output;
    }

    TempDir dir_;
};

TEST_F(FileDeviceKernel, ABlockDevice) {
    const LoopDevice loop(image(2 * kMiB), {"--direct-io=on"});
    const auto device = open(loop.path());
    EXPECT_TRUE(device->is_block_device());
    EXPECT_TRUE(device->direct());
    EXPECT_EQ(device->size(), Bytes(2 * kMiB));
    EXPECT_GE(device->alignment(), Bytes(512));
    compare_with_shadow(*device, 11, 400, 50'000);
}

TEST_F(FileDeviceKernel, ABlockDeviceOfAnOddNumberOfSectors) {
    const LoopDevice loop(image(300 * 512));
    const auto device = open(loop.path());
    EXPECT_EQ(device->size(), Bytes(300 * 512));
    compare_with_shadow(*device, 12, 400, 50'000);
}

TEST_F(FileDeviceKernel, LargeSectors) {
    const LoopDevice loop(image(2 * kMiB), {"--sector-size=4096"});
    const auto device = open(loop.path());
    EXPECT_EQ(device->alignment(), Bytes(4096));
    compare_with_shadow(*device, 13, 300, 50'000);
}

TEST_F(FileDeviceKernel, ZeroingABlockDeviceFreesTheImagesBlocks) {
    const std::string path = image(8 * kMiB);
    const LoopDevice loop(path, {"--direct-io=on"});
    const auto device = open(loop.path());
    ASSERT_TRUE(device->write(ByteOffset(0), filled(8 * kMiB, 7)).has_value());
    ASSERT_TRUE(device->flush().has_value());
    struct stat before{}, after{};
    ASSERT_EQ(stat(path.c_str(), &before), 0);
    ASSERT_TRUE(device->zero(ByteOffset(100), Bytes(7 * kMiB)).has_value());
    ASSERT_TRUE(device->flush().has_value());
    ASSERT_EQ(stat(path.c_str(), &after), 0);
    EXPECT_LT(after.st_blocks, before.st_blocks / 2);
    auto data = filled(8 * kMiB, 1);
    ASSERT_TRUE(device->read(ByteOffset(0), data).has_value());
    EXPECT_EQ(data[99], std::byte{7});
    EXPECT_EQ(std::count(data.begin(), data.end(), std::byte{0}), 7 * kMiB);
}

// ramfs knows neither direct I/O nor holes: the buffered way, zeros by writing, and a loop device
// that can't discard, so that BLKZEROOUT has to do it.
TEST_F(FileDeviceKernel, WithoutDirectIoAndHoles) {
    const Mount ramfs("none", mount_point(), {"-t", "ramfs"});
    const std::string path = ramfs.directory() + "/image";
    make_image(path, 3 * kMiB + 5);
    auto device = open(path);
    EXPECT_FALSE(device->direct());
    EXPECT_EQ(device->alignment(), Bytes(1));
    EXPECT_NE(device->atomic_limits().why_not.find("direct I/O"), std::string::npos);
    EXPECT_EQ(device->write_atomic(ByteOffset(0), filled(4096, 1)).error().code, EOPNOTSUPP);
    compare_with_shadow(*device, 14, 300, 50'000);
    ASSERT_TRUE(device->write(ByteOffset(0), filled(3 * kMiB + 5, 7)).has_value());
    ASSERT_TRUE(device->zero(ByteOffset(1), Bytes(3 * kMiB)).has_value());
    auto data = filled(3 * kMiB + 5, 1);
    ASSERT_TRUE(device->read(ByteOffset(0), data).has_value());
    EXPECT_EQ(std::count(data.begin(), data.end(), std::byte{0}), 3 * kMiB);
    EXPECT_EQ(data[0], std::byte{7});
    device.reset();

    const LoopDevice loop(path);
    const auto block_device = open(loop.path());
    ASSERT_TRUE(block_device->write(ByteOffset(0), filled(2 * kMiB, 7)).has_value());
    ASSERT_TRUE(block_device->zero(ByteOffset(512), Bytes(kMiB)).has_value());
    data.resize(2 * kMiB);
    ASSERT_TRUE(block_device->read(ByteOffset(0), data).has_value());
    EXPECT_EQ(std::count(data.begin(), data.end(), std::byte{0}), kMiB);
}

TEST_F(FileDeviceKernel, AMountedDeviceCantBeHadExclusively) {
    const std::string path = image(8 * kMiB);
    run({"mke2fs", "-q", "-t", "ext4", path});
    const LoopDevice loop(path);
    Mount mount(loop.path(), mount_point());
    const auto refused = FileDevice::open(loop.path(), kReadWrite);
    EXPECT_EQ(refused.error().code, EBUSY);
    EXPECT_NE(refused.error().message.find("mounted"), std::string::npos);
    EXPECT_TRUE(FileDevice::open(loop.path(), {}).has_value());  // reading is fine
    mount.unmount();
    const auto device = open(loop.path());
    // And the other way round: O_EXCL keeps the mount out.
    EXPECT_NE(run_command({"mount", loop.path(), mount.directory()}).status, 0);
    EXPECT_EQ(FileDevice::open(loop.path(), kReadWrite).error().code, EBUSY);
}

TEST_F(FileDeviceKernel, AWriteProtectedDevice) {
    const LoopDevice loop(image(kMiB), {"--read-only"});
    const auto refused = FileDevice::open(loop.path(), kReadWrite);
    ASSERT_FALSE(refused.has_value());
    EXPECT_EQ(refused.error().code, EROFS);
    EXPECT_TRUE(FileDevice::open(loop.path(), {}).has_value());
}

TEST_F(FileDeviceKernel, ALoopDeviceSaysWhyItHasNoAtomicWrites) {
    const LoopDevice loop(image(kMiB));
    const auto device = open(loop.path());
    if (device->atomic_limits().supported()) A4_SKIP("this kernel's loop devices can");
    EXPECT_FALSE(device->atomic_limits().why_not.empty());
    EXPECT_EQ(device->write_atomic(ByteOffset(0), filled(4096, 1)).error().code, EOPNOTSUPP);
    EXPECT_FALSE(partition_start(device->fd()).has_value());
}

// Adds partition 1 without a partition table, and returns a node of its own for it: there may be
// no udev to make one.
std::string add_partition(const LoopDevice& loop, Bytes start, Bytes length,
                          const std::string& node) {
    const UniqueFd fd(::open(loop.path().c_str(), O_RDWR | O_CLOEXEC));
    blkpg_partition partition{};
    partition.start = static_cast<long long>(start.value());
    partition.length = static_cast<long long>(length.value());
    partition.pno = 1;
    blkpg_ioctl_arg argument{};
    argument.op = BLKPG_ADD_PARTITION;
    argument.datalen = sizeof partition;
    argument.data = &partition;
    if (::ioctl(fd.get(), BLKPG, &argument) != 0) return {};
    const std::string name = loop.path().substr(5);
    std::ifstream file("/sys/block/" + name + "/" + name + "p1/dev");
    unsigned major_number = 0, minor_number = 0;
    char colon = 0;
    if (!(file >> major_number >> colon >> minor_number)) return {};
    if (mknod(node.c_str(), S_IFBLK | 0600, makedev(major_number, minor_number)) != 0) return {};
    return node;
}

TEST_F(FileDeviceKernel, APartition) {
    const LoopDevice loop(image(8 * kMiB), {"--partscan"});
    const std::string node =
        add_partition(loop, Bytes(63 * 512), Bytes(2 * kMiB), dir_.file("part"));
    if (node.empty()) A4_SKIP("this kernel makes no partitions on loop devices");
    const auto device = open(node);
    EXPECT_EQ(device->size(), Bytes(2 * kMiB));
    EXPECT_EQ(partition_start(device->fd()), Bytes(63 * 512));
    EXPECT_FALSE(device->atomic_limits().why_not.empty());
    compare_with_shadow(*device, 15, 200, 50'000);
}

// The image is refused for the sake of a partition in it, and so is the partition.
TEST_F(FileDeviceKernel, AMountedPartition) {
    const std::string path = image(8 * kMiB);
    const LoopDevice loop(path, {"--partscan"});
    const std::string node = add_partition(loop, Bytes(kMiB), Bytes(4 * kMiB), dir_.file("part"));
    if (node.empty()) A4_SKIP("this kernel makes no partitions on loop devices");
    run({"mke2fs", "-q", "-t", "ext4", node});
    const Mount mount(node, mount_point());
    EXPECT_EQ(mounted_on(node), mount.directory());
    EXPECT_EQ(mounted_on(path), mount.directory());
    EXPECT_EQ(refuse_if_in_use(node).error().code, EBUSY);
    EXPECT_NE(refuse_if_in_use(path).error().message.find(mount.directory()), std::string::npos);
    EXPECT_EQ(FileDevice::open(loop.path(), kReadWrite).error().code, EBUSY);
}

// F7: XFS writes atomically in software.
class XfsAtomicWrites : public FileDeviceKernel {
  protected:
    void SetUp() override {
        FileDeviceKernel::SetUp();
        if (IsSkipped() || HasFatalFailure()) return;
        if (run_command({"mkfs.xfs", "-V"}).status != 0) A4_SKIP("mkfs.xfs is not installed");
        const std::string path = image(300 * kMiB);
        run({"mkfs.xfs", "-q", path});
        loop_.emplace(path, std::vector<std::string>{"--direct-io=on"});
        mount_.emplace(loop_->path(), mount_point());
        make_image(mount_->directory() + "/volume", 16 * kMiB);
        device_ = open(mount_->directory() + "/volume");
        if (!device_->atomic_limits().supported()) A4_SKIP(device_->atomic_limits().why_not);
    }

    std::optional<LoopDevice> loop_;
    std::optional<Mount> mount_;
    std::unique_ptr<FileDevice> device_;
};

TEST_F(XfsAtomicWrites, EveryPowerOfTwoInTheLimits) {
    const AtomicLimits& limits = device_->atomic_limits();
    EXPECT_EQ(limits.unit_min, Bytes(4096));
    EXPECT_EQ(limits.segments_max, 1u);
    EXPECT_TRUE(limits.why_not.empty());
    std::mt19937_64 random(16);
    for (uint64_t length = limits.unit_min.value();
         length <= std::min(limits.unit_max.value(), 4 * kMiB); length *= 2) {
        for (const size_t skew : {0, 1}) {  // the caller's memory need not be aligned
            const auto memory = random_bytes(length + skew, random);
            const auto data = std::span(memory).subspan(skew);
            const auto result = device_->write_atomic(ByteOffset(length), data);
            ASSERT_TRUE(result.has_value()) << result.error().message;
            auto back = filled(length, 0);
            ASSERT_TRUE(device_->read(ByteOffset(length), back).has_value());
            EXPECT_TRUE(std::equal(back.begin(), back.end(), data.begin()));
        }
    }
}

TEST_F(XfsAtomicWrites, OutsideTheLimitsNothingIsWritten) {
    const auto max = device_->atomic_limits().unit_max.value();
    EXPECT_EQ(device_->write_atomic(ByteOffset(0), filled(3072, 1)).error().code, EINVAL);
    EXPECT_EQ(device_->write_atomic(ByteOffset(0), filled(2048, 1)).error().code, EINVAL);
    EXPECT_EQ(device_->write_atomic(ByteOffset(0), filled(12288, 1)).error().code, EINVAL);
    EXPECT_EQ(device_->write_atomic(ByteOffset(4096), filled(8192, 1)).error().code, EINVAL);
    EXPECT_EQ(device_->write_atomic(ByteOffset(0), filled(max * 2, 1)).error().code, EINVAL);
    auto data = filled(65536, 1);
    ASSERT_TRUE(device_->read(ByteOffset(0), data).has_value());
    EXPECT_EQ(data, filled(65536, 0));
    EXPECT_FALSE(device_->poisoned());
}

TEST_F(XfsAtomicWrites, AFailedOneIsInDoubtAndFinal) {
    const auto body = [&]() -> std::string {
        const auto data = filled(4096, 1);
        const auto result = device_->write_atomic(ByteOffset(0), data);
        if (result.has_value()) return "no error";
        if (result.error().code != EIO || !device_->poisoned()) return result.error().message;
        return device_->write(ByteOffset(0), data).has_value() ? "writes go on" : "";
    };
    EXPECT_EQ(run_with_failing_syscalls({{SYS_pwritev2, EIO}}, body), "");
}

TEST_F(XfsAtomicWrites, OrdinaryCallsToo) {
    compare_with_shadow(*device_, 17, 100, 100'000);
}

}  // namespace
}  // namespace atomic4::test
