// What a mounted volume must be to be served, and what is said where it is not.
#include "ext4/mounted_volume.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include "ext4/atomic_file.h"
#include "support/mounted_image.h"
#include "support/privileged.h"

namespace atomic4::test {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kSize = 32 << 20;
constexpr uint64_t kUnit = 16384;

class MountedVolumeTest : public ::testing::Test {
  protected:
    void SetUp() override {
        if (const auto why = why_no_mounts()) A4_SKIP(*why);
    }
    static Image with_file() {
        Image image = make_atomic4(kSize, {});
        auto opened = open_for_writing(std::make_unique<ImageDevice>(image)).value();
        NewFile file;
        file.size = Bytes(4 * kUnit);
        file.unit = Bytes(kUnit);
        create_atomic_file(*opened.volume, "/data", file).value();
        return image;
    }
    static void expect_refused(const std::string& target, int code, const char* words) {
        const auto opened = MountedVolume::open(target);
        ASSERT_FALSE(opened) << target;
        EXPECT_EQ(opened.error().code, code) << opened.error().message;
        EXPECT_THAT(opened.error().message, HasSubstr(words));
    }
};

TEST_F(MountedVolumeTest, ByMountPointAndByDevice) {
    MountedImage image(with_file());
    image.mount();
    for (const std::string& target : {image.dir(), image.device(), image.dir() + "/../mnt/"}) {
        const auto volume = MountedVolume::open(target);
        ASSERT_TRUE(volume) << volume.error().message;
        EXPECT_EQ((*volume)->mount_point(), image.dir());
        EXPECT_EQ((*volume)->device(), image.device());
        EXPECT_GE((*volume)->log().size(), Bytes(256 << 10));
        EXPECT_TRUE((*volume)->log().direct());
        EXPECT_TRUE((*volume)->check_options());
    }
}

TEST_F(MountedVolumeTest, TheStampChangesWithEveryMount) {
    MountedImage image(with_file());
    image.mount();
    const auto first = MountedVolume::open(image.dir()).value()->stamp().value();
    EXPECT_EQ(MountedVolume::open(image.dir()).value()->stamp().value(), first);
    image.unmount();
    image.mount();
    EXPECT_NE(MountedVolume::open(image.dir()).value()->stamp().value(), first);
}

TEST_F(MountedVolumeTest, OneAtATime) {
    MountedImage image(with_file());
    image.mount();
    const auto first = MountedVolume::open(image.dir()).value();
    expect_refused(image.dir(), EBUSY, "another atomic4d runs on this volume");
    expect_refused(image.dir(), EBUSY, fmt::format("pid {}", ::getpid()).c_str());
    EXPECT_NE(run_command({"mount", "-o", "remount,ro", image.dir()}).status, 0);
}

TEST_F(MountedVolumeTest, OtherTargets) {
    MountedImage image(with_file());
    expect_refused(image.dir(), EINVAL, "top directory");
    expect_refused(image.device(), EINVAL, "not mounted");
    expect_refused(image.path(), EINVAL, "neither a mount point nor a block device");
    expect_refused(image.file("none"), ENOENT, "none");
    image.mount();
    expect_refused(image.file(".atomic4"), EINVAL, "top directory");
    expect_refused("/proc", EINVAL, "top directory");
}

TEST_F(MountedVolumeTest, PlainExt4) {
    MountedImage image(make_ext4(kSize, {}));
    image.mount();
    expect_refused(image.dir(), EOPNOTSUPP, "atomic4ctl enable");
}

TEST_F(MountedVolumeTest, MountOptions) {
    MountedImage image(with_file());
    image.mount("ro");
    expect_refused(image.dir(), EROFS, "remount,rw");
    image.unmount();
    image.mount("nobarrier");
    expect_refused(image.dir(), EIO, "nobarrier");
    image.unmount();
    image.mount("data=journal");
    expect_refused(image.dir(), EIO, "data=journal");
    image.unmount();
    // Nothing in /proc/mounts tells of this one.
    ASSERT_EQ(run_command({"tune2fs", "-o", "journal_data", image.device()}).status, 0);
    image.mount();
    expect_refused(image.dir(), EIO, "tune2fs -o ^journal_data");
}

TEST_F(MountedVolumeTest, OptionsChangedLater) {
    MountedImage image(with_file());
    image.mount();
    const auto volume = MountedVolume::open(image.dir()).value();
    ASSERT_EQ(run_command({"mount", "-o", "remount,nobarrier", image.dir()}).status, 0);
    const auto now = volume->check_options();
    ASSERT_FALSE(now);
    EXPECT_EQ(now.error().code, EIO);
}

TEST_F(MountedVolumeTest, AnotherLog) {
    MountedImage image(with_file());
    image.mount();
    const std::string log = image.file(".atomic4/log");
    const std::string script = "cp " + log + " " + log + ".2 && chmod 600 " + log + ".2";
    ASSERT_EQ(run_command({"sh", "-c", script}).status, 0);
    ASSERT_EQ(run_command({"chmod", "644", log}).status, 0);
    expect_refused(image.dir(), EUCLEAN, "mode 0600");
    ASSERT_EQ(run_command({"chmod", "600", log}).status, 0);
    ASSERT_EQ(run_command({"fallocate", "-p", "-o", "64K", "-l", "16K", log}).status, 0);
    expect_refused(image.dir(), EUCLEAN, "a hole or unwritten blocks at 65536");
    ASSERT_EQ(run_command({"fallocate", "-o", "64K", "-l", "16K", log}).status, 0);
    expect_refused(image.dir(), EUCLEAN, "a hole or unwritten blocks at 65536");
    ASSERT_EQ(run_command({"mv", log + ".2", log}).status, 0);
    expect_refused(image.dir(), EUCLEAN, "another inode");
    ASSERT_EQ(run_command({"rm", log}).status, 0);
    expect_refused(image.dir(), EUCLEAN, "No such file");
}

TEST_F(MountedVolumeTest, AttributeAndLockFile) {
    MountedImage image(with_file());
    image.mount();
    ASSERT_EQ(run_command({"rm", image.file(".atomic4/lock")}).status, 0);
    expect_refused(image.dir(), EUCLEAN, "lock file is missing");
    ASSERT_EQ(run_command({"setfattr", "-x", "trusted.atomic4.volume", image.dir()}).status, 0);
    expect_refused(image.dir(), EUCLEAN, "volume attribute is missing");
}

TEST_F(MountedVolumeTest, FilesByHandle) {
    MountedImage image(with_file());
    image.mount();
    const auto volume = MountedVolume::open(image.dir()).value();
    const UniqueFd fd(::open(image.file("data").c_str(), O_RDWR));
    const MountedFile file = read_mounted_file(*volume, fd.get()).value();
    EXPECT_NE(file.generation, 0u);
    EXPECT_EQ(file.size, Bytes(4 * kUnit));
    EXPECT_EQ(file.unit, Bytes(kUnit));
    EXPECT_TRUE(check_mounted_file(*volume, file));

    const auto again = volume->open_by_handle(file.inode, file.generation, O_RDWR);
    ASSERT_TRUE(again) << again.error().message;
    EXPECT_EQ(read_mounted_file(*volume, again->get()).value().inode, file.inode);
    for (const auto& [inode, generation] :
         {std::pair{file.inode, file.generation + 1}, std::pair{file.inode, 0u},
          std::pair{file.inode + 1000, file.generation}, std::pair{~0u, 1u}, std::pair{0u, 1u}}) {
        const auto none = volume->open_by_handle(inode, generation, O_RDONLY);
        ASSERT_FALSE(none) << inode << ":" << generation;
        EXPECT_EQ(none.error().code, ESTALE) << none.error().message;
    }
}

TEST_F(MountedVolumeTest, FilesThatTakeNoWrites) {
    MountedImage image(with_file());
    // libext2fs gives its files generation 0.
    const auto made = run_command({"debugfs", "-w", "-R", "write /dev/null none", image.device()});
    ASSERT_EQ(made.status, 0) << made.output;
    image.mount();
    const auto volume = MountedVolume::open(image.dir()).value();
    const auto refusal = [&](const std::string& path, int flags = O_RDONLY) {
        const UniqueFd fd(::open(path.c_str(), flags | O_NONBLOCK));
        const auto file = read_mounted_file(*volume, fd.get());
        if (!file) return file.error().code;
        const auto done = check_mounted_file(*volume, *file);
        return done ? 0 : done.error().code;
    };
    const std::string make = "cd " + image.dir() +
                             " && touch append fixed ok && mkfifo pipe && "
                             "chattr +a append && chattr +i fixed";
    ASSERT_EQ(run_command({"sh", "-c", make}).status, 0);
    EXPECT_EQ(refusal(image.file("ok")), 0);
    EXPECT_EQ(refusal(image.dir()), EISDIR);
    EXPECT_EQ(refusal(image.file("pipe")), EINVAL);
    EXPECT_EQ(refusal(image.file("append")), EPERM);
    EXPECT_EQ(refusal(image.file("fixed")), EPERM);
    EXPECT_EQ(refusal(image.file("none")), EOPNOTSUPP);
    EXPECT_EQ(refusal(image.file(".atomic4/log")), EPERM);
    EXPECT_EQ(refusal(image.file(".atomic4/lock")), EPERM);
    EXPECT_EQ(refusal(image.path()), EXDEV);
    EXPECT_EQ(refusal("/dev/null"), EXDEV);
    EXPECT_EQ(refusal(image.file("ok"), O_PATH), EBADF);
    EXPECT_EQ(refusal("/nonexistent"), EBADF);
    run_command({"chattr", "-a", image.file("append")});
}

}  // namespace
}  // namespace atomic4::test
