// A Device on a block device or an image file, by pread and pwrite.
//
// O_DIRECT where the file system takes it, buffered I/O where open(2) says EINVAL (then nothing is
// atomic). Callers may use any byte range and any memory:
//   - a range that is aligned to alignment() is written by one pwrite, straight from the caller's
//     memory if that is aligned too, else by way of one aligned copy;
//   - any other range is read, modified and written in whole alignment() blocks, which a crash can
//     tear like any plain write: callers that care write aligned;
//   - the end of an image whose size isn't a multiple of alignment() goes through the page cache,
//     since direct I/O would make the file longer.
// Short transfers and EINTR are continued, except for atomic writes: there a short one is EIO, in
// doubt.
//
// A failed flush is final: afterwards every write, zero and flush is EIO until the device is opened
// again. The kernel reports a lost write to one fsync only and then forgets it, so asking again
// would be told "all is well". The same holds for a durable or atomic write that failed on the way
// (refusals such as EINVAL, EOPNOTSUPP and ENOSPC change nothing): it contains a flush. Reads go
// on.
//
// Opening never hangs and never has side effects on a wrong kind of file (FIFO, terminal, tape):
// it looks first, and checks that it got what it had seen. The size is that at opening.
//
// Exclusive: flock(2) (file_lock.h) keeps out those who ask, and O_EXCL on a block device keeps out
// mounts, swap, device mapper and RAID. Nothing keeps a loop device off an image file (F15): see
// ownership.h.
#pragma once

#include <cstdlib>
#include <memory>

#include "base/unique_fd.h"
#include "device/device.h"

namespace atomic4 {

enum class Access { ReadOnly, ReadWrite };

struct FileDeviceOptions {
    Access access = Access::ReadOnly;
    // flock: exclusive for ReadWrite, shared for ReadOnly, without waiting (EBUSY). For ReadWrite
    // also O_EXCL on a block device.
    bool exclusive = true;
    // False: through the page cache from the beginning, for those who read the same again and
    // again. Durable writes are durable all the same; nothing is atomic.
    bool direct = true;
};

class FileDevice final : public Device {
  public:
    // Errors carry the path: open's own errno values, EISDIR for a directory, EINVAL for other
    // kinds of file, EBUSY for one that is in use.
    static Result<std::unique_ptr<FileDevice>> open(const std::string& path,
                                                    FileDeviceOptions options);

    Result<> read(ByteOffset offset, std::span<std::byte> into) override;
    void will_read(ByteOffset offset, Bytes length) override;
    Result<> write(ByteOffset offset, std::span<const std::byte> from) override;
    Result<> write_many(std::span<const DeviceWrite> writes) override;
    Result<> write_durable(ByteOffset offset, std::span<const std::byte> from) override;
    Result<> write_atomic(ByteOffset offset, std::span<const std::byte> from) override;
    Result<> zero(ByteOffset offset, Bytes length) override;
    Result<> flush() override;
    // A description of its own: the moments without O_DIRECT (fd()) don't concern it. Failures of
    // what is written through it poison nothing here: that is up to the caller.
    Result<AsyncPort> open_port() const override;

    Bytes size() const override { return size_; }
    const AtomicLimits& atomic_limits() const override { return limits_; }
    bool read_only() const override { return read_only_; }
    const std::string& name() const override { return path_; }

    bool is_block_device() const { return block_device_; }
    bool direct() const { return direct_; }
    // Of offset and length, for a call to need no read-modify-write. A power of two; 1 when not
    // direct.
    Bytes alignment() const { return Bytes(alignment_); }
    // Of memory, for a call to need no copy. 1 when not direct.
    Bytes memory_alignment() const { return Bytes(memory_alignment_); }
    // Stays ours. Its O_DIRECT flag goes away for moments while a call is running.
    int fd() const { return fd_.get(); }
    // A flush failed: nothing is written any more.
    bool poisoned() const { return poisoned_; }

  private:
    enum class Durability { Cached, Durable };

    FileDevice(std::string path, UniqueFd fd, FileDeviceOptions options);
    Result<> inspect();

    Result<> check_writable(const char* what, ByteOffset offset, Bytes length) const;
    Result<> write_range(ByteOffset offset, std::span<const std::byte> from, Durability durability);
    // Whole transfers of what the kernel takes as it is.
    Result<> pread_all(ByteOffset offset, std::span<std::byte> into);
    Result<> pwrite_all(ByteOffset offset, std::span<const std::byte> from, Durability durability);
    // One step, EINTR continued; like pwrite(2).
    ssize_t pwrite_some(ByteOffset offset, std::span<const std::byte> from, Durability durability);

    bool memory_is_aligned(const std::byte* memory) const;
    bool is_aligned_write(const DeviceWrite& one) const;
    Result<> write_in_parallel(std::span<const DeviceWrite> writes);
    Result<std::span<std::byte>> bounce(size_t length);
    Result<> zero_inner(ByteOffset offset, Bytes length);
    Result<> zero_by_writing(ByteOffset offset, Bytes length);
    // The error of a failed call that may have reached the disk: poisons if it leaves doubt.
    tl::unexpected<Error> failed_durably(int code, const std::string& what);

    struct FreeMemory {
        void operator()(std::byte* memory) const { std::free(memory); }
    };

    std::string path_;
    UniqueFd fd_;
    bool read_only_;
    bool block_device_ = false;
    bool direct_ = false;
    bool poisoned_ = false;
    uint64_t alignment_ = 1;
    uint64_t memory_alignment_ = 1;
    Bytes size_;
    AtomicLimits limits_;
    std::unique_ptr<std::byte, FreeMemory> bounce_;
    size_t bounce_size_ = 0;
};

}  // namespace atomic4
