#include "device/ownership.h"

#include <ext2fs/ext2fs.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/unique_fd.h"
#include "device/mount_table.h"

namespace atomic4 {
namespace {

namespace fs = std::filesystem;

struct DeviceNumber {
    unsigned major_number = 0;
    unsigned minor_number = 0;
    bool operator==(const DeviceNumber&) const = default;
};

DeviceNumber number_of(dev_t device) {
    return {major(device), minor(device)};
}

// As the kernel's huge_encode_dev() packs it for LOOP_GET_STATUS64.
DeviceNumber number_of_loop_field(uint64_t packed) {
    return {static_cast<unsigned>((packed >> 8) & 0xfff),
            static_cast<unsigned>((packed & 0xff) | ((packed >> 12) & 0xfff00))};
}

std::string sysfs_dir(DeviceNumber number) {
    return fmt::format("/sys/dev/block/{}:{}", number.major_number, number.minor_number);
}

std::optional<std::string> first_line(const std::string& path) {
    std::ifstream file(path);
    std::string line;
    if (!std::getline(file, line)) return std::nullopt;
    return line;
}

std::optional<DeviceNumber> read_device_number(const std::string& path) {
    const auto line = first_line(path);
    DeviceNumber number;
    if (!line ||
        std::sscanf(line->c_str(), "%u:%u", &number.major_number, &number.minor_number) != 2)
        return std::nullopt;
    return number;
}

std::optional<std::string> mount_point_of(DeviceNumber number) {
    for (const MountEntry& entry : read_mount_table()) {
        if (entry.major_number == number.major_number && entry.minor_number == number.minor_number)
            return entry.mount_point;
    }
    return std::nullopt;
}

// Names in a directory; none if it can't be read.
std::vector<std::string> names_in(const std::string& dir) {
    std::vector<std::string> names;
    std::error_code error;
    for (fs::directory_iterator it(dir, error), end; !error && it != end; it.increment(error))
        names.push_back(it->path().filename());
    return names;
}

// What a loop device is attached to, and which of its bytes.
struct LoopDevice {
    std::string name;  // "loop3"
    std::optional<DeviceNumber> number;
    DeviceNumber backing_file_system;
    uint64_t backing_inode = 0;
    std::optional<DeviceNumber> backing_device;  // if a block device is behind it
    uint64_t begin = 0;
    uint64_t end = UINT64_MAX;

    std::string path() const { return "/dev/" + name; }
    bool is_on(const struct stat& st) const {
        if (S_ISBLK(st.st_mode)) return backing_device == number_of(st.st_rdev);
        return backing_file_system == number_of(st.st_dev) && backing_inode == st.st_ino;
    }
    bool shares_bytes_with(const LoopDevice& other) const {
        const bool same = backing_device || other.backing_device
                              ? backing_device == other.backing_device
                              : backing_file_system == other.backing_file_system &&
                                    backing_inode == other.backing_inode;
        return same && begin < other.end && other.begin < end;
    }
};

bool fill_from_ioctl(LoopDevice& loop) {
    const UniqueFd fd(::open(loop.path().c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    struct stat st{};
    loop_info64 info{};
    // A container's /dev can hold something else under this name.
    if (!fd || ::fstat(fd.get(), &st) != 0 || !S_ISBLK(st.st_mode) ||
        (loop.number && number_of(st.st_rdev) != *loop.number) ||
        ::ioctl(fd.get(), LOOP_GET_STATUS64, &info) != 0)
        return false;
    loop.backing_file_system = number_of_loop_field(info.lo_device);
    loop.backing_inode = info.lo_inode;
    if (info.lo_rdevice != 0) loop.backing_device = number_of_loop_field(info.lo_rdevice);
    loop.begin = info.lo_offset;
    if (info.lo_sizelimit != 0) loop.end = info.lo_offset + info.lo_sizelimit;
    return true;
}

bool fill_from_path(LoopDevice& loop, std::string backing_file) {
    constexpr std::string_view kDeleted = " (deleted)";
    struct stat st{};
    if (::stat(backing_file.c_str(), &st) != 0 && backing_file.ends_with(kDeleted))
        backing_file.resize(backing_file.size() - kDeleted.size());
    if (::stat(backing_file.c_str(), &st) != 0) return false;
    loop.backing_file_system = number_of(st.st_dev);
    loop.backing_inode = st.st_ino;
    if (S_ISBLK(st.st_mode)) loop.backing_device = number_of(st.st_rdev);
    return true;
}

std::vector<LoopDevice> attached_loop_devices() {
    std::vector<LoopDevice> result;
    for (const std::string& name : names_in("/sys/block")) {
        if (!name.starts_with("loop")) continue;
        const std::string dir = "/sys/block/" + name;
        const auto backing_file = first_line(dir + "/loop/backing_file");
        if (!backing_file) continue;
        LoopDevice loop;
        loop.name = name;
        loop.number = read_device_number(dir + "/dev");
        if (fill_from_ioctl(loop) || fill_from_path(loop, *backing_file))
            result.push_back(std::move(loop));
    }
    return result;
}

// Of the loop device itself, else of one of its partitions.
std::optional<std::string> mount_point_of(const LoopDevice& loop) {
    if (loop.number) {
        if (auto mount_point = mount_point_of(*loop.number)) return mount_point;
    }
    const std::string dir = "/sys/block/" + loop.name;
    for (const std::string& name : names_in(dir)) {
        if (!name.starts_with(loop.name)) continue;
        const auto number = read_device_number(fmt::format("{}/{}/dev", dir, name));
        if (!number) continue;
        if (auto mount_point = mount_point_of(*number)) return mount_point;
    }
    return std::nullopt;
}

bool is_swap(const struct stat& st) {
    std::ifstream swaps("/proc/swaps");
    std::string line;
    std::getline(swaps, line);  // the heading
    while (std::getline(swaps, line)) {
        std::string name;
        struct stat swap{};
        if (!(std::istringstream(line) >> name) || ::stat(name.c_str(), &swap) != 0) continue;
        if (S_ISBLK(st.st_mode) ? S_ISBLK(swap.st_mode) && swap.st_rdev == st.st_rdev
                                : swap.st_dev == st.st_dev && swap.st_ino == st.st_ino)
            return true;
    }
    return false;
}

Result<> refuse_device_in_use(const std::string& path, const struct stat& st) {
    const DeviceNumber number = number_of(st.st_rdev);
    if (const auto mount_point = mount_point_of(number))
        return fail(EBUSY, "{} is mounted on {}: umount {} first", path, *mount_point,
                    *mount_point);
    const auto holders = names_in(sysfs_dir(number) + "/holders");
    if (!holders.empty()) {
        return fail(EBUSY, "{} is a part of {} (device mapper or RAID): stop that first", path,
                    holders.front());
    }
    const auto loops = attached_loop_devices();
    for (const LoopDevice& self : loops) {
        if (self.number != number) continue;
        for (const LoopDevice& other : loops) {
            if (other.name == self.name || !self.shares_bytes_with(other)) continue;
            if (const auto mount_point = mount_point_of(other)) {
                return fail(EBUSY,
                            "{} shares its image with {}, which is mounted on {}: umount {} first",
                            path, other.path(), *mount_point, *mount_point);
            }
        }
    }
    return {};
}

}  // namespace

std::vector<LoopUse> loop_devices_on(const std::string& path) {
    struct stat st{};
    std::vector<LoopUse> result;
    if (::stat(path.c_str(), &st) != 0) return result;
    for (const LoopDevice& loop : attached_loop_devices()) {
        if (loop.is_on(st)) result.push_back({loop.path(), mount_point_of(loop)});
    }
    return result;
}

std::optional<std::string> mounted_on(const std::string& path) {
    struct stat st{};
    if (::stat(path.c_str(), &st) != 0) return std::nullopt;
    if (S_ISBLK(st.st_mode)) {
        if (auto mount_point = mount_point_of(number_of(st.st_rdev))) return mount_point;
    }
    for (const LoopUse& loop : loop_devices_on(path)) {
        if (loop.mount_point) return loop.mount_point;
    }
    return std::nullopt;
}

bool is_read_only_root(const std::string& path) {
    struct stat st{};
    if (::stat(path.c_str(), &st) != 0 || !S_ISBLK(st.st_mode)) return false;
    bool root = false;
    for (const MountEntry& entry : read_mount_table()) {
        if (::makedev(entry.major_number, entry.minor_number) != st.st_rdev) continue;
        if (!entry.read_only) return false;
        root = root || entry.mount_point == "/";
    }
    return root;
}

Result<> refuse_if_in_use(const std::string& path) {
    struct stat st{};
    if (::stat(path.c_str(), &st) != 0) return fail(Error::from_errno(errno, path));
    if (is_swap(st)) return fail(EBUSY, "{} is in use as swap: swapoff {} first", path, path);
    if (S_ISBLK(st.st_mode)) A4_CHECK(refuse_device_in_use(path, st));
    const char* kind = S_ISBLK(st.st_mode) ? "device" : "image";
    for (const LoopUse& loop : loop_devices_on(path)) {
        if (loop.mount_point) {
            return fail(EBUSY,
                        "{} {} is attached to {}, which is mounted on {}: umount {} and losetup -d "
                        "{}",
                        kind, path, loop.device, *loop.mount_point, *loop.mount_point, loop.device);
        }
        return fail(EBUSY, "{} {} is attached to {}: losetup -d {}, or use {} itself", kind, path,
                    loop.device, loop.device, loop.device);
    }
    // libext2fs reads /etc/mtab too. Its EXT2_MF_BUSY is left out: our own O_EXCL would count.
    int flags = 0;
    if (::ext2fs_check_if_mounted(path.c_str(), &flags) == 0) {
        if (flags & EXT2_MF_SWAP) return fail(EBUSY, "{} is in use as swap", path);
        if (flags & EXT2_MF_MOUNTED) return fail(EBUSY, "{} is mounted: umount it first", path);
    }
    return {};
}

}  // namespace atomic4
