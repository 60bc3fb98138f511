#include "ext4/mounted_volume.h"

#include <ext2fs/ext2fs.h>
#include <fcntl.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <sys/xattr.h>

#include <array>
#include <charconv>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <vector>

#include "device/file_lock.h"
#include "device/mount_table.h"
#include "ext4/file_rules.h"
#include "ext4/format.h"

namespace atomic4 {

namespace {

constexpr off_t kSuperblockOffset = 1024;
constexpr int kHandleType = 1;  // FILEID_INO32_GEN

bool is_ext4(int fd) {
    struct statfs fs{};
    return ::fstatfs(fd, &fs) == 0 && fs.f_type == EXT4_SUPER_MAGIC;
}

// "loop3", as in /proc/fs/ext4 and /sys: a '/' in a device's name is a '!' in both.
std::string kernel_name(dev_t dev) {
    std::error_code error;
    const auto path = std::filesystem::canonical(
        fmt::format("/sys/dev/block/{}:{}", major(dev), minor(dev)), error);
    return error ? std::string() : path.filename().string();
}

bool is_device(const std::string& path, dev_t dev) {
    struct stat st{};
    return ::stat(path.c_str(), &st) == 0 && S_ISBLK(st.st_mode) && st.st_rdev == dev;
}

bool is_on(const MountEntry& entry, dev_t dev) {
    return entry.major_number == major(dev) && entry.minor_number == minor(dev);
}

// A node of the device, by the name that people know it by if that leads to it.
std::string device_node(dev_t dev) {
    for (const MountEntry& entry : read_mount_table()) {
        if (is_on(entry, dev) && is_device(entry.source, dev)) return entry.source;
    }
    std::string node = "/dev/" + kernel_name(dev);
    if (is_device(node, dev)) return node;
    return fmt::format("/dev/block/{}:{}", major(dev), minor(dev));
}

Result<ext2_super_block> read_super(int fd, const std::string& name) {
    ext2_super_block super;
    const ssize_t n = ::pread(fd, &super, sizeof super, kSuperblockOffset);
    if (n < 0) return fail(Error::from_errno(errno, name + ": reading the superblock"));
    if (n != sizeof super || super.s_magic != EXT2_SUPER_MAGIC)
        return fail(EUCLEAN, "{}: no ext4 superblock", name);
    return super;
}

// Every byte of the log lies in a written block, or a record could need an allocation, which can
// fail or wait for a transaction.
Result<> check_all_written(int fd, Bytes size, const std::string& name) {
    constexpr uint32_t kBatch = 256;
    constexpr uint32_t kUnfit = FIEMAP_EXTENT_UNWRITTEN | FIEMAP_EXTENT_DELALLOC |
                                FIEMAP_EXTENT_UNKNOWN | FIEMAP_EXTENT_ENCODED |
                                FIEMAP_EXTENT_DATA_INLINE | FIEMAP_EXTENT_SHARED;
    std::vector<uint64_t> memory(
        (sizeof(fiemap) + kBatch * sizeof(fiemap_extent)) / sizeof(uint64_t) + 1);
    auto* const map = reinterpret_cast<fiemap*>(memory.data());
    for (uint64_t at = 0; at < size.value();) {
        std::memset(map, 0, sizeof *map);
        map->fm_start = at;
        map->fm_length = size.value() - at;
        map->fm_flags = FIEMAP_FLAG_SYNC;
        map->fm_extent_count = kBatch;
        if (::ioctl(fd, FS_IOC_FIEMAP, map) != 0)
            return fail(Error::from_errno(errno, name + ": reading its mapping"));
        const uint64_t before = at;
        for (uint32_t i = 0; i < map->fm_mapped_extents; ++i) {
            const fiemap_extent& extent = map->fm_extents[i];
            if (extent.fe_logical > at || (extent.fe_flags & kUnfit) != 0) break;
            at = extent.fe_logical + extent.fe_length;
        }
        if (at == before) return fail(EUCLEAN, "{}: a hole or unwritten blocks at {}", name, at);
    }
    return {};
}

Result<std::optional<std::string>> read_xattr(int fd, const char* name) {
    std::string value(4096, '\0');
    const ssize_t n = ::fgetxattr(fd, name, value.data(), value.size());
    if (n < 0 && errno == ENODATA) return std::optional<std::string>{};
    if (n < 0) return fail(Error::from_errno(errno, name));
    value.resize(static_cast<size_t>(n));
    return std::optional(std::move(value));
}

std::optional<Bytes> parse_unit(const std::string& text, Bytes block_size) {
    uint64_t unit = 0;
    const char* const end = text.data() + text.size();
    const auto [rest, error] = std::from_chars(text.data(), end, unit);
    if (error != std::errc{} || rest != end || !is_power_of_two(unit)) return std::nullopt;
    if (unit < block_size.value() || unit > kUnitMax) return std::nullopt;
    return Bytes(unit);
}

// What statx can't tell. Files without these ioctls (FIFOs, sockets) are no regular files.
Result<> read_generation_and_flags(int fd, MountedFile& file) {
    // The kernel writes an int, whatever the macros say.
    int generation = 0;
    int flags = 0;
    if (::ioctl(fd, FS_IOC_GETVERSION, &generation) != 0)
        return fail(Error::from_errno(errno, "reading the generation"));
    if (::ioctl(fd, FS_IOC_GETFLAGS, &flags) != 0)
        return fail(Error::from_errno(errno, "reading the inode flags"));
    file.generation = static_cast<uint32_t>(generation);
    file.flags = static_cast<uint32_t>(flags);
    return {};
}

}  // namespace

Result<> MountedVolume::find(const std::string& target) {
    struct stat st{};
    if (::stat(target.c_str(), &st) != 0) return fail(Error::from_errno(errno, target));
    const bool directory = S_ISDIR(st.st_mode);
    std::vector<std::string> candidates;
    if (directory) {
        char path[PATH_MAX];
        candidates.emplace_back(::realpath(target.c_str(), path) != nullptr ? path : target);
        dev_ = st.st_dev;
    } else if (S_ISBLK(st.st_mode)) {
        dev_ = st.st_rdev;
        for (const MountEntry& entry : read_mount_table()) {
            if (is_on(entry, dev_)) candidates.push_back(entry.mount_point);
        }
        if (candidates.empty()) return fail(EINVAL, "{} is not mounted", target);
    } else {
        return fail(EINVAL, "{} is neither a mount point nor a block device", target);
    }
    for (const std::string& path : candidates) {
        UniqueFd root(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
        if (!root) {
            if (directory) return fail(Error::from_errno(errno, path));
            continue;
        }
        // Another mount may lie over a mount point, and a bind mount may show only a part.
        if (::fstat(root.get(), &st) != 0 || st.st_dev != dev_ || st.st_ino != EXT2_ROOT_INO)
            continue;
        root_ = std::move(root);
        mount_point_ = path;
        break;
    }
    if (!root_) {
        if (directory) return fail(EINVAL, "{} is not the top directory of a mounted ext4", target);
        return fail(EINVAL, "{}: no mount point shows its top directory", target);
    }
    kernel_name_ = kernel_name(dev_);
    if (!is_ext4(root_.get()) || kernel_name_.empty())
        return fail(EOPNOTSUPP, "{} is not ext4: atomic4 works on ext4 only", target);
    device_ = device_node(dev_);
    device_fd_.reset(::open(device_.c_str(), O_RDONLY | O_CLOEXEC));
    if (!device_fd_) return fail(Error::from_errno(errno, device_));
    if (!is_device(fmt::format("/proc/self/fd/{}", device_fd_.get()), dev_))
        return fail(EAGAIN, "{} was replaced while being opened", device_);
    return {};
}

Result<> MountedVolume::read_superblock() {
    const ext2_super_block super = A4_TRY(read_super(device_fd_.get(), device_));
    if ((super.s_feature_compat & kFeatureCompatAtomic4) == 0) {
        return fail(EOPNOTSUPP,
                    "{} is not an atomic4 volume: unmount it and run atomic4ctl enable {}",
                    mount_point_, device_);
    }
    if ((super.s_feature_incompat & kFeatureIncompatNeedsReplay) != 0) {
        return fail(EUCLEAN,
                    "{} is mounted although its redo log needs a replay: unmount it and run "
                    "atomic4ctl recover {}",
                    mount_point_, device_);
    }
    std::memcpy(uuid_.data(), super.s_uuid, uuid_.size());
    block_size_ = Bytes(uint64_t{1024} << super.s_log_block_size);
    has_journal_ = (super.s_feature_compat & EXT3_FEATURE_COMPAT_HAS_JOURNAL) != 0;
    return {};
}

// Nothing asks whether it is aborted. The first change of an inode makes ext4 notice, and is told
// nothing itself; the second is refused.
Result<> MountedVolume::check_journal() const {
    if (!has_journal_) return {};
    for (int i = 0; i < 2; ++i) {
        if (::futimens(log_->fd(), nullptr) != 0)
            return fail(Error::from_errno(errno, fmt::format("{}: ext4's journal", mount_point_)));
    }
    return {};
}

Result<> MountedVolume::check_options() const {
    struct statvfs vfs{};
    if (::fstatvfs(root_.get(), &vfs) != 0) return fail(Error::from_errno(errno, mount_point_));
    if ((vfs.f_flag & ST_RDONLY) != 0) {
        return fail(EROFS, "{} is mounted read-only: mount -o remount,rw {}", mount_point_,
                    mount_point_);
    }
    // /proc/mounts doesn't say what comes from the superblock's default options (F16).
    const std::string path = fmt::format("/proc/fs/ext4/{}/options", kernel_name_);
    std::ifstream file(path);
    bool barrier = false;
    bool any = false;
    for (std::string line; std::getline(file, line); any = true) {
        if (line == "barrier") barrier = true;
        if (line == "data=journal") {
            return fail(EIO,
                        "{} is mounted with data=journal, which writes data twice and undoes "
                        "direct writes: tune2fs -o ^journal_data {}, or without that option in "
                        "fstab, and mount it again",
                        mount_point_, device_);
        }
    }
    if (!any) return fail(EIO, "{}: can't read the options of {}", path, mount_point_);
    if (!barrier) {
        return fail(EIO,
                    "{} is mounted with nobarrier, so nothing that is flushed is sure to be "
                    "stored: mount -o remount,barrier {}",
                    mount_point_, mount_point_);
    }
    return {};
}

Result<> MountedVolume::read_attr() {
    const auto text = A4_TRY(read_xattr(root_.get(), kVolumeXattr).context(mount_point_));
    if (!text) {
        return fail(EUCLEAN,
                    "{}: the volume attribute is missing (or this process may not see it: "
                    "CAP_SYS_ADMIN is needed): unmount it and run atomic4ctl enable {}",
                    mount_point_, device_);
    }
    attr_ = A4_TRY(VolumeAttr::parse(*text).context(mount_point_));
    return {};
}

Result<> MountedVolume::open_lock() {
    const std::string name = fmt::format("{}/{}/{}", mount_point_, kDirectoryName, kLockName);
    const std::string relative = fmt::format("{}/{}", kDirectoryName, kLockName);
    lock_.reset(::openat(root_.get(), relative.c_str(),
                         O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY));
    if (!lock_) {
        const int code = errno;
        if (code == ENOENT || code == ELOOP || code == ENOTDIR)
            return fail(EUCLEAN, "{}: the lock file is missing", name);
        return fail(Error::from_errno(code, name));
    }
    struct stat st{};
    if (::fstat(lock_.get(), &st) != 0) return fail(Error::from_errno(errno, name));
    if (!S_ISREG(st.st_mode) || st.st_dev != dev_)
        return fail(EUCLEAN, "{}: not a regular file of this volume", name);
    lock_inode_ = static_cast<uint32_t>(st.st_ino);
    auto locked = lock_file(lock_.get(), LockKind::Exclusive, name);
    if (!locked && locked.error().code == EBUSY)
        return std::move(locked).context("another atomic4d runs on this volume");
    A4_CHECK(locked);
    return lock_file(device_fd_.get(), LockKind::Shared, device_);
}

Result<> MountedVolume::open_log() {
    const std::string path = fmt::format("{}/{}/{}", mount_point_, kDirectoryName, kLogName);
    FileDeviceOptions options;
    options.access = Access::ReadWrite;
    options.exclusive = false;  // the lock file does that
    auto opened = FileDevice::open(path, options);
    if (!opened && (opened.error().code == ENOENT || opened.error().code == EISDIR ||
                    opened.error().code == EINVAL))
        return fail(EUCLEAN, "redo log: {}", opened.error().message);
    log_ = A4_TRY(std::move(opened).context("redo log"));
    struct stat st{};
    if (::fstat(log_->fd(), &st) != 0) return fail(Error::from_errno(errno, path));
    MountedFile file;
    A4_CHECK(read_generation_and_flags(log_->fd(), file).context(path));
    const char* wrong = st.st_dev != dev_                         ? "another file system's file"
                        : st.st_ino != attr_.log_inode            ? "another inode"
                        : file.generation != attr_.log_generation ? "another generation"
                        : !S_ISREG(st.st_mode)                    ? "no regular file"
                        : st.st_uid != 0                          ? "not owned by root"
                        : (st.st_mode & 07777) != 0600            ? "not of mode 0600"
                        : (file.flags & EXT4_EXTENTS_FL) == 0     ? "not extent-mapped"
                        : st.st_size % static_cast<off_t>(block_size_.value()) != 0
                            ? "of a size that is no whole number of blocks"
                            : nullptr;
    if (wrong != nullptr) {
        return fail(EUCLEAN, "redo log: {} is {}: the volume attribute wants inode {}:{}", path,
                    wrong, attr_.log_inode, attr_.log_generation);
    }
    if (!log_->direct()) return fail(EIO, "redo log: {}: direct I/O doesn't work", path);
    return check_all_written(log_->fd(), log_->size(), "redo log: " + path);
}

Result<UniqueFd> MountedVolume::open_same_file(int fd) const {
    struct {
        file_handle head;
        std::array<char, MAX_HANDLE_SZ> bytes;
    } name{};
    name.head.handle_bytes = MAX_HANDLE_SZ;
    int mount = 0;
    if (::name_to_handle_at(fd, "", &name.head, &mount, AT_EMPTY_PATH) != 0)
        return fail(Error::from_errno(errno, "the descriptor's file"));
    UniqueFd same(::open_by_handle_at(root_fd(), &name.head, O_RDONLY | O_NONBLOCK | O_CLOEXEC));
    if (!same && errno == EWOULDBLOCK)
        return fail(EBUSY, "another process has a lease on the file (fcntl(2), F_SETLEASE)");
    if (!same || ::fcntl(same.get(), F_SETFL, 0) != 0)
        return fail(Error::from_errno(errno, "opening the file"));
    return same;
}

Result<std::unique_ptr<MountedVolume>> MountedVolume::open(const std::string& target) {
    std::unique_ptr<MountedVolume> volume(new MountedVolume);
    A4_CHECK(volume->find(target));
    A4_CHECK(volume->read_superblock());
    A4_CHECK(volume->check_options());
    A4_CHECK(volume->read_attr());
    A4_CHECK(volume->open_lock());
    A4_CHECK(volume->open_log());
    return volume;
}

Result<MountStamp> MountedVolume::stamp() const {
    const ext2_super_block super = A4_TRY(read_super(device_fd_.get(), device_));
    return MountStamp{super.s_mtime, super.s_mnt_count};
}

Result<UniqueFd> MountedVolume::open_by_handle(uint32_t inode, uint32_t generation,
                                               int flags) const {
    const std::string what = fmt::format("inode {}:{}", inode, generation);
    // The kernel takes generation 0 for "any".
    if (generation == 0) return fail(ESTALE, "{}: no file has generation 0", what);
    const std::array<uint32_t, 2> name{inode, generation};
    alignas(file_handle) std::array<std::byte, sizeof(file_handle) + sizeof name> memory{};
    auto* const handle = reinterpret_cast<file_handle*>(memory.data());
    handle->handle_bytes = sizeof name;
    handle->handle_type = kHandleType;
    std::memcpy(handle->f_handle, name.data(), sizeof name);
    UniqueFd fd(::open_by_handle_at(root_.get(), handle, flags | O_CLOEXEC));
    if (fd) return fd;
    if (errno == ESTALE) return fail(ESTALE, "{}: the file is gone", what);
    return fail(Error::from_errno(errno, what));
}

Result<MountedFile> read_mounted_file(const MountedVolume& volume, int fd) {
    struct stat st{};
    if (::fstat(fd, &st) != 0) return fail(Error::from_errno(errno, "the file"));
    // An overlay may show its files under the device number of the layer below.
    if (st.st_dev != volume.dev() || !is_ext4(fd))
        return fail(EXDEV, "the file is not on {}", volume.mount_point());
    MountedFile file;
    file.inode = static_cast<uint32_t>(st.st_ino);
    file.mode = st.st_mode;
    file.size = Bytes(static_cast<uint64_t>(st.st_size));
    if (!S_ISREG(st.st_mode)) return file;
    const std::string what = fmt::format("inode {}", file.inode);
    A4_CHECK(read_generation_and_flags(fd, file).context(what));
    if (const auto text = A4_TRY(read_xattr(fd, kUnitXattr).context(what)))
        file.unit = parse_unit(*text, volume.block_size());
    return file;
}

Result<> check_mounted_file(const MountedVolume& volume, const MountedFile& file) {
    FileFacts facts;
    facts.inode = file.inode;
    facts.generation = file.generation;
    facts.mode = file.mode;
    facts.flags = file.flags;
    facts.is_log = file.inode == volume.attr().log_inode;
    facts.is_lock = file.inode == volume.lock_inode();
    return check_file_rules(facts);
}

}  // namespace atomic4
