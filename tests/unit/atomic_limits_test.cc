#include "device/atomic_limits.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "base/unique_fd.h"
#include "support/command.h"

namespace atomic4::test {
namespace {

// A disk "sda" with a partition "sda1", as sysfs shows them, with the link that /sys/dev/block has.
class FakeSysfs {
  public:
    FakeSysfs() {
        std::filesystem::create_directories(disk() + "/queue");
        std::filesystem::create_directories(disk() + "/sda1");
        std::filesystem::create_directory_symlink("sda/sda1", dir_.file("8:1"));
    }
    std::string disk() const { return dir_.file("sda"); }
    std::string partition() const { return dir_.file("8:1"); }
    void set_limits(uint64_t unit_min, uint64_t unit_max, uint64_t boundary) {
        put("/queue/atomic_write_unit_min_bytes", fmt::format("{}", unit_min));
        put("/queue/atomic_write_unit_max_bytes", fmt::format("{}", unit_max));
        put("/queue/atomic_write_boundary_bytes", fmt::format("{}", boundary));
    }
    void set_partition_start(uint64_t sectors) { put("/sda1/start", fmt::format("{}", sectors)); }
    void put(const std::string& name, const std::string& text) {
        std::ofstream(disk() + name) << text << "\n";
    }

  private:
    TempDir dir_;
};

bool says(const AtomicLimits& limits, const std::string& part) {
    return !limits.supported() && limits.why_not.find(part) != std::string::npos;
}

TEST(SysfsAtomicLimits, OfADisk) {
    FakeSysfs sysfs;
    sysfs.set_limits(1024, 524288, 0);
    const AtomicLimits limits = read_sysfs_atomic_limits(sysfs.disk());
    ASSERT_TRUE(limits.supported()) << limits.why_not;
    EXPECT_EQ(limits.unit_min, Bytes(1024));
    EXPECT_EQ(limits.unit_max, Bytes(524288));
    EXPECT_EQ(limits.boundary, Bytes(0));
    EXPECT_EQ(limits.segments_max, 1u);
}

TEST(SysfsAtomicLimits, OfAPartition) {
    FakeSysfs sysfs;
    sysfs.set_limits(4096, 65536, 0);
    sysfs.set_partition_start(2048);
    EXPECT_EQ(read_sysfs_atomic_limits(sysfs.partition()).unit_max, Bytes(65536));
    sysfs.set_partition_start(63);
    EXPECT_TRUE(says(read_sysfs_atomic_limits(sysfs.partition()),
                     "starts at byte 32256 of its disk, which is not a multiple of 4096"));
    // Aligned for the unit, but not for the boundary.
    sysfs.set_limits(4096, 65536, 2 << 20);
    sysfs.set_partition_start(2048);
    EXPECT_TRUE(says(read_sysfs_atomic_limits(sysfs.partition()), "not a multiple of 2097152"));
    sysfs.set_partition_start(4096);
    const AtomicLimits limits = read_sysfs_atomic_limits(sysfs.partition());
    EXPECT_TRUE(limits.supported());
    EXPECT_EQ(limits.boundary, Bytes(2 << 20));
}

TEST(SysfsAtomicLimits, SaysWhyNot) {
    FakeSysfs sysfs;
    EXPECT_TRUE(says(read_sysfs_atomic_limits(sysfs.disk()), "the kernel reports no"));
    EXPECT_TRUE(says(read_sysfs_atomic_limits("/nonexistent"), "the kernel reports no"));
    sysfs.set_limits(0, 0, 0);
    EXPECT_TRUE(says(read_sysfs_atomic_limits(sysfs.disk()), "no atomic writes"));
    sysfs.set_limits(4096, 12288, 0);
    EXPECT_TRUE(says(read_sysfs_atomic_limits(sysfs.disk()), "make no sense"));
    sysfs.set_limits(8192, 4096, 0);
    EXPECT_TRUE(says(read_sysfs_atomic_limits(sysfs.disk()), "make no sense"));
    sysfs.set_limits(4096, 4096, 0);
    sysfs.put("/queue/atomic_write_boundary_bytes", "many");
    EXPECT_TRUE(says(read_sysfs_atomic_limits(sysfs.disk()), "the kernel reports no"));
}

TEST(ProbeAtomicLimits, AlwaysHasAReasonForNone) {
    TempDir dir;
    for (const std::string& path : {dir.path(), std::string("/dev/null")}) {
        const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
        EXPECT_TRUE(says(probe_atomic_limits(fd.get()), "neither"));
        EXPECT_FALSE(partition_start(fd.get()).has_value());
    }
    EXPECT_TRUE(says(probe_atomic_limits(-1), "Bad file descriptor"));
    const UniqueFd file(open(dir.file("file").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    const AtomicLimits limits = probe_atomic_limits(file.get());  // the file system decides
    EXPECT_NE(limits.supported(), !limits.why_not.empty());
    EXPECT_FALSE(partition_start(file.get()).has_value());
}

}  // namespace
}  // namespace atomic4::test
