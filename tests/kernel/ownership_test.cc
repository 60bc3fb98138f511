#include "device/ownership.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "device/file_device.h"
#include "support/command.h"
#include "support/loop.h"
#include "support/privileged.h"

namespace atomic4::test {
namespace {

constexpr uint64_t kMiB = 1 << 20;

class Ownership : public testing::Test {
  protected:
    void SetUp() override {
        A4_REQUIRE_ROOT();
        if (const auto why = LoopDevice::why_not()) A4_SKIP(*why);
        image_ = dir_.file("image");
        make_image(image_, 8 * kMiB);
        const CommandOutput mkfs = run_command({"mke2fs", "-q", "-t", "ext4", image_});
        ASSERT_EQ(mkfs.status, 0) << mkfs.output;
        mount_point_ = dir_.file("mnt with space");
        std::filesystem::create_directory(mount_point_);
    }
    static std::string refusal(const std::string& path) {
        const auto result = refuse_if_in_use(path);
        if (result.has_value()) return "not refused";
        EXPECT_EQ(result.error().code, EBUSY);
        return result.error().message;
    }

    TempDir dir_;
    std::string image_;
    std::string mount_point_;
};

TEST_F(Ownership, AMountedDevice) {
    const LoopDevice loop(image_);
    EXPECT_EQ(refusal(loop.path()), "not refused");
    EXPECT_FALSE(mounted_on(loop.path()).has_value());
    Mount mount(loop.path(), mount_point_);
    EXPECT_EQ(refusal(loop.path()), loop.path() + " is mounted on " + mount_point_ + ": umount " +
                                        mount_point_ + " first");
    EXPECT_EQ(mounted_on(loop.path()), mount_point_);
    mount.unmount();
    EXPECT_EQ(refusal(loop.path()), "not refused");
}

TEST_F(Ownership, AnImageInALoopDevice) {
    EXPECT_EQ(refusal(image_), "not refused");
    {
        const LoopDevice loop(image_);
        EXPECT_EQ(refusal(image_), "image " + image_ + " is attached to " + loop.path() +
                                       ": losetup -d " + loop.path() + ", or use " + loop.path() +
                                       " itself");
        EXPECT_FALSE(mounted_on(image_).has_value());
        const Mount mount(loop.path(), mount_point_);
        EXPECT_EQ(refusal(image_), "image " + image_ + " is attached to " + loop.path() +
                                       ", which is mounted on " + mount_point_ + ": umount " +
                                       mount_point_ + " and losetup -d " + loop.path());
        EXPECT_EQ(mounted_on(image_), mount_point_);
        const auto uses = loop_devices_on(image_);
        ASSERT_EQ(uses.size(), 1u);
        EXPECT_EQ(uses[0].device, loop.path());
        EXPECT_EQ(uses[0].mount_point, mount_point_);
        // By any name, and after it was moved.
        std::filesystem::create_hard_link(image_, dir_.file("other"));
        EXPECT_NE(refusal(dir_.file("other")), "not refused");
        std::filesystem::create_symlink(image_, dir_.file("link"));
        EXPECT_NE(refusal(dir_.file("link")), "not refused");
        std::filesystem::rename(image_, dir_.file("moved"));
        EXPECT_NE(refusal(dir_.file("moved")), "not refused");
        std::filesystem::rename(dir_.file("moved"), image_);
    }
    EXPECT_EQ(refusal(image_), "not refused");
}

TEST_F(Ownership, AnotherLoopDeviceOnTheSameBytes) {
    const LoopDevice first(image_);
    const LoopDevice second(image_);
    EXPECT_EQ(refusal(second.path()), "not refused");
    const Mount mount(first.path(), mount_point_);
    EXPECT_EQ(refusal(second.path()), second.path() + " shares its image with " + first.path() +
                                          ", which is mounted on " + mount_point_ + ": umount " +
                                          mount_point_ + " first");
}

TEST_F(Ownership, OtherBytesOfTheSameImageAreOthers) {
    const std::string big = dir_.file("big");
    make_image(big, 16 * kMiB);
    const LoopDevice first(big, {"--sizelimit=8388608"});
    const CommandOutput mkfs = run_command({"mke2fs", "-q", "-t", "ext4", first.path()});
    ASSERT_EQ(mkfs.status, 0) << mkfs.output;
    const LoopDevice second(big, {"--offset=8388608"});
    const Mount mount(first.path(), mount_point_);
    EXPECT_EQ(refusal(second.path()), "not refused");
    EXPECT_NE(refusal(big), "not refused");
}

TEST_F(Ownership, ADeviceBehindALoopDevice) {
    const LoopDevice below(image_);
    const LoopDevice above(below.path());
    EXPECT_NE(
        refusal(below.path()).find("device " + below.path() + " is attached to " + above.path()),
        std::string::npos)
        << refusal(below.path());
    const Mount mount(above.path(), mount_point_);
    EXPECT_EQ(mounted_on(below.path()), mount_point_);
}

TEST_F(Ownership, OurOwnOpeningIsNoUse) {
    const LoopDevice loop(image_);
    const auto device =
        FileDevice::open(loop.path(), {.access = Access::ReadWrite, .exclusive = true});
    ASSERT_TRUE(device.has_value()) << device.error().message;
    EXPECT_EQ(refusal(loop.path()), "not refused");
}

TEST_F(Ownership, Swap) {
    const LoopDevice loop(image_);
    ASSERT_EQ(run_command({"mkswap", "-q", loop.path()}).status, 0);
    const CommandOutput on = run_command({"swapon", loop.path()});
    if (on.status != 0) A4_SKIP("swapon: " + on.output);
    EXPECT_NE(refusal(loop.path()).find("in use as swap"), std::string::npos);
    EXPECT_EQ(run_command({"swapoff", loop.path()}).status, 0);
    EXPECT_EQ(refusal(loop.path()), "not refused");
}

TEST_F(Ownership, NothingIsLeftBehind) {
    std::string device;
    {
        const LoopDevice loop(image_);
        device = loop.path();
        const Mount mount(device, mount_point_);
    }
    EXPECT_FALSE(mounted_on(image_).has_value());
    EXPECT_TRUE(loop_devices_on(image_).empty());
}

}  // namespace
}  // namespace atomic4::test
