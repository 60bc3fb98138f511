// A mounted atomic4 volume, seen through its mount point.
//
// The kernel has the volume; we have files: the log, the lock, and whatever clients open. What is
// said of the volume itself comes from the superblock, read through the device's page cache, where
// the kernel keeps its own copy: it is never older than what the kernel knows.
//
// open() proves that atomic writes through files can hold here, and says what to do where they
// can't. Then it takes two locks and keeps them: flock on /.atomic4/lock, open read-write, which
// keeps other daemons out and makes `mount -o remount,ro` fail with EBUSY (F4); and a shared flock
// on the device node, which keeps writers of the device out who ask (device/file_lock.h). As long
// as the object lives the volume can't be unmounted.
//
// Mount options can change under it by remount: check_options() looks again.
//
// Needs CAP_SYS_ADMIN (trusted xattrs) and CAP_DAC_READ_SEARCH (open_by_handle_at).
// Threads: one; open_by_handle may be called from several.
#pragma once

#include <sys/types.h>

#include <array>
#include <memory>
#include <optional>
#include <string>

#include "base/unique_fd.h"
#include "device/file_device.h"
#include "ext4/volume_attr.h"

namespace atomic4 {

// The superblock's s_mtime and s_mnt_count. A read-write mount always changes the latter.
struct MountStamp {
    uint64_t mtime = 0;
    uint32_t count = 0;
    bool operator==(const MountStamp&) const = default;
};

class MountedVolume {
  public:
    // target: a mount point of the whole file system, or the block device of a mounted one.
    //   EINVAL      neither of these
    //   EOPNOTSUPP  not ext4; not an atomic4 volume; another format version
    //   EROFS       mounted read-only
    //   EIO         data=journal, nobarrier (F16)
    //   EUCLEAN     volume attribute, log file or lock file is not what FORMAT.md says
    //   EBUSY       another daemon runs on it
    static Result<std::unique_ptr<MountedVolume>> open(const std::string& target);
    MountedVolume(const MountedVolume&) = delete;
    MountedVolume& operator=(const MountedVolume&) = delete;

    const std::string& mount_point() const { return mount_point_; }
    const std::string& device() const { return device_; }
    dev_t dev() const { return dev_; }  // st_dev of its files
    const std::array<uint8_t, 16>& uuid() const { return uuid_; }
    Bytes block_size() const { return block_size_; }
    bool has_journal() const { return has_journal_; }
    const VolumeAttr& attr() const { return attr_; }
    uint32_t lock_inode() const { return lock_inode_; }
    int root_fd() const { return root_.get(); }
    int lock_fd() const { return lock_.get(); }
    // The file behind a descriptor of this filesystem, opened for reading by our own mount: the
    // descriptor may be of a mount that somebody else makes read-only or wants to unmount. Doesn't
    // wait: EBUSY while a process has a lease on it (fcntl(2)).
    Result<UniqueFd> open_same_file(int fd) const;

    // The log file: all its blocks are written, so that writing it changes no metadata but times.
    FileDevice& log() { return *log_; }

    // EROFS: ext4's journal has been aborted. To be asked after a flush and before anybody relies
    // on it: if the commit that a file's changes belong to has failed while somebody else waited
    // for it, fdatasync(2) of that file is told nothing and returns 0 (jbd2_complete_transaction()
    // only waits for a transaction that is still running or committing), and the changes are gone
    // with the next mount. May wait for the journal; any thread.
    Result<> check_journal() const;

    // Read afresh.
    Result<MountStamp> stamp() const;
    // EIO: the mount's options, as they are now, break the promises: data=journal, nobarrier.
    // EROFS: read-only.
    Result<> check_options() const;

    // ESTALE: no such inode any more, or another one; generation 0 names none. flags are open(2)'s.
    Result<UniqueFd> open_by_handle(uint32_t inode, uint32_t generation, int flags) const;

  private:
    MountedVolume() = default;
    Result<> find(const std::string& target);
    Result<> read_superblock();
    Result<> read_attr();
    Result<> open_lock();
    Result<> open_log();

    std::string mount_point_;
    std::string device_;
    std::string kernel_name_;  // "loop3": of /proc/fs/ext4/loop3
    dev_t dev_ = 0;
    std::array<uint8_t, 16> uuid_{};
    Bytes block_size_;
    bool has_journal_ = false;
    VolumeAttr attr_;
    uint32_t lock_inode_ = 0;
    UniqueFd root_;
    UniqueFd device_fd_;
    UniqueFd lock_;
    std::unique_ptr<FileDevice> log_;
};

// A file of a mounted volume, as the kernel tells it.
struct MountedFile {
    uint32_t inode = 0;
    uint32_t generation = 0;
    mode_t mode = 0;
    Bytes size;
    uint32_t flags = 0;         // FS_IOC_GETFLAGS: the kernel hides the atomic flag (F2)
    std::optional<Bytes> unit;  // the xattr, if it says a possible one
};

// EXDEV: the descriptor is another file system's. EBADF: none, or O_PATH.
Result<MountedFile> read_mounted_file(const MountedVolume& volume, int fd);

// Whether the file takes atomic writes at all (file_rules.h).
Result<> check_mounted_file(const MountedVolume& volume, const MountedFile& file);

}  // namespace atomic4
