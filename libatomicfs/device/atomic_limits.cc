#include "device/atomic_limits.h"

#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <charconv>
#include <fstream>

#include "device/raw_statx.h"

namespace atomic4 {
namespace {

constexpr uint64_t kSectorSize = 512;  // sysfs counts in these, whatever the device's own size is

std::optional<uint64_t> read_number(const std::string& path) {
    std::ifstream file(path);
    std::string word;
    if (!(file >> word)) return std::nullopt;
    uint64_t value = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
    if (error != std::errc() || end != word.data() + word.size()) return std::nullopt;
    return value;
}

std::string sysfs_dir(const struct stat& st) {
    return fmt::format("/sys/dev/block/{}:{}", major(st.st_rdev), minor(st.st_rdev));
}

std::optional<Bytes> sysfs_partition_start(const std::string& dir) {
    const auto sectors = read_number(dir + "/start");
    if (!sectors) return std::nullopt;
    return Bytes(*sectors * kSectorSize);
}

AtomicLimits limits_of_file(int fd) {
    const auto extras = raw_statx(fd);
    if (!extras || !extras->has_atomic)
        return AtomicLimits::none("its file system doesn't report atomic writes");
    if (!extras->can_atomic || extras->atomic_unit_max == 0)
        return AtomicLimits::none("its file system can't write this file atomically");
    AtomicLimits limits;
    limits.unit_min = Bytes(extras->atomic_unit_min);
    limits.unit_max = Bytes(extras->atomic_unit_max);
    limits.segments_max = extras->atomic_segments_max;
    return limits;
}

AtomicLimits limits_of_block_device(int fd, const struct stat& st) {
    AtomicLimits limits = read_sysfs_atomic_limits(sysfs_dir(st));
    if (!limits.supported()) return limits;
    // The kernel's own verdict on this device node can only narrow what the queue says.
    const auto extras = raw_statx(fd);
    if (extras && extras->has_atomic) {
        if (!extras->can_atomic || extras->atomic_unit_max == 0)
            return AtomicLimits::none("the kernel refuses atomic writes on this device");
        limits.unit_min =
            Bytes(std::max<uint64_t>(limits.unit_min.value(), extras->atomic_unit_min));
        limits.unit_max =
            Bytes(std::min<uint64_t>(limits.unit_max.value(), extras->atomic_unit_max));
    }
    return limits;
}

}  // namespace

AtomicLimits read_sysfs_atomic_limits(const std::string& sysfs_dir_of_device) {
    const std::string& dir = sysfs_dir_of_device;
    // Present in a partition's directory only, and then the queue is its parent's. The directory
    // may be a symbolic link (/sys/dev/block/8:1): ".." is taken from where it leads.
    const auto start = sysfs_partition_start(dir);
    const std::string queue = dir + (start ? "/../queue/" : "/queue/");
    const auto unit_min = read_number(queue + "atomic_write_unit_min_bytes");
    const auto unit_max = read_number(queue + "atomic_write_unit_max_bytes");
    const auto boundary = read_number(queue + "atomic_write_boundary_bytes");
    if (!unit_min || !unit_max || !boundary)
        return AtomicLimits::none("the kernel reports no atomic write limits (Linux 6.11 does)");
    if (*unit_min == 0 || *unit_max == 0)
        return AtomicLimits::none("the device has no atomic writes");
    if (!is_power_of_two(*unit_min) || !is_power_of_two(*unit_max) || *unit_min > *unit_max)
        return AtomicLimits::none(
            fmt::format("the device's limits {}..{} make no sense", *unit_min, *unit_max));
    const uint64_t alignment = std::max(*unit_min, *boundary);
    if (start && start->value() % alignment != 0) {
        return AtomicLimits::none(
            fmt::format("the partition starts at byte {} of its disk, which is not a multiple of "
                        "{}: recreate it aligned",
                        *start, alignment));
    }
    AtomicLimits limits;
    limits.unit_min = Bytes(*unit_min);
    limits.unit_max = Bytes(*unit_max);
    limits.boundary = Bytes(*boundary);
    limits.segments_max = 1;
    return limits;
}

AtomicLimits probe_atomic_limits(int fd) {
    struct stat st{};
    if (::fstat(fd, &st) != 0) return AtomicLimits::none(Error::from_errno(errno, "fstat").message);
    if (S_ISREG(st.st_mode)) return limits_of_file(fd);
    if (S_ISBLK(st.st_mode)) return limits_of_block_device(fd, st);
    return AtomicLimits::none("neither a regular file nor a block device");
}

std::optional<Bytes> partition_start(int fd) {
    struct stat st{};
    if (::fstat(fd, &st) != 0 || !S_ISBLK(st.st_mode)) return std::nullopt;
    return sysfs_partition_start(sysfs_dir(st));
}

}  // namespace atomic4
