#include "device/file_device.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "device/atomic_limits.h"
#include "device/event_loop.h"
#include "device/file_lock.h"
#include "device/raw_statx.h"

#ifndef RWF_ATOMIC
#define RWF_ATOMIC 0x00000040
#endif

namespace atomic4 {
namespace {

constexpr uint64_t kFallbackAlignment = 4096;  // where the kernel doesn't tell
constexpr uint64_t kPunchGranularity = 4096;   // smaller parts would make page cache dirty
constexpr size_t kInFlight = 64;               // of write_many
constexpr uint64_t kPiece = 1 << 20;           // of long copies through the bounce buffer

const char* kind_of(mode_t mode) {
    if (S_ISDIR(mode)) return "a directory";
    if (S_ISFIFO(mode)) return "a FIFO";
    if (S_ISCHR(mode)) return "a character device";
    if (S_ISSOCK(mode)) return "a socket";
    return "a special file";
}

Result<> check_kind(const std::string& path, const struct stat& st) {
    if (S_ISREG(st.st_mode) || S_ISBLK(st.st_mode)) return {};
    return fail(S_ISDIR(st.st_mode) ? EISDIR : EINVAL,
                "{} is {}: a block device or an image file is needed", path, kind_of(st.st_mode));
}

bool same_file(const struct stat& a, const struct stat& b) {
    return a.st_dev == b.st_dev && a.st_ino == b.st_ino && a.st_rdev == b.st_rdev &&
           (a.st_mode & S_IFMT) == (b.st_mode & S_IFMT);
}

// What to do about a file or device that can't be opened for writing.
const char* advice_to_write(int code, const struct stat& st) {
    if (code != EACCES && code != EPERM && code != EROFS) return "";
    if (S_ISBLK(st.st_mode)) {
        return ": writing needs permission (root has it) and a device that isn't write-protected "
               "(blockdev --setrw)";
    }
    switch (code) {
        case EACCES:
            return ": writing needs write permission (chmod u+w, or run it as its owner)";
        case EPERM:
            return ": writing needs a file that isn't immutable or append-only (chattr -i -a)";
        default:
            return ": writing needs a file system mounted read-write (mount -o remount,rw)";
    }
}

// O_DIRECT off for the life of the object: for the odd end of an image file.
class BufferedMoment {
  public:
    explicit BufferedMoment(int fd) : fd_(fd), flags_(::fcntl(fd, F_GETFL)) {
        if (flags_ >= 0) ::fcntl(fd_, F_SETFL, flags_ & ~O_DIRECT);
    }
    ~BufferedMoment() {
        if (flags_ >= 0) ::fcntl(fd_, F_SETFL, flags_);
    }
    BufferedMoment(const BufferedMoment&) = delete;
    BufferedMoment& operator=(const BufferedMoment&) = delete;

  private:
    int fd_;
    int flags_;
};

}  // namespace

FileDevice::FileDevice(std::string path, UniqueFd fd, FileDeviceOptions options)
    : path_(std::move(path)),
      fd_(std::move(fd)),
      read_only_(options.access == Access::ReadOnly),
      limits_(AtomicLimits::none("not probed")) {}

Result<std::unique_ptr<FileDevice>> FileDevice::open(const std::string& path,
                                                     FileDeviceOptions options) {
    struct stat before{};
    if (::stat(path.c_str(), &before) != 0) return fail(Error::from_errno(errno, path));
    A4_CHECK(check_kind(path, before));

    // O_NONBLOCK: if a FIFO or a terminal takes the path's place at this moment, nothing hangs; a
    // file under a lease answers EAGAIN.
    int flags = O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
    flags |= options.access == Access::ReadWrite ? O_RDWR : O_RDONLY;
    if (options.exclusive && options.access == Access::ReadWrite && S_ISBLK(before.st_mode))
        flags |= O_EXCL;
    bool direct = options.direct;
    UniqueFd fd(::open(path.c_str(), direct ? flags | O_DIRECT : flags));
    if (!fd && direct && errno == EINVAL) {
        direct = false;
        fd.reset(::open(path.c_str(), flags));
    }
    if (!fd && errno == EBUSY) {
        return fail(EBUSY,
                    "{} is in use: mounted, swap, part of a device-mapper or RAID set, or held by "
                    "another program",
                    path);
    }
    if (!fd) {
        const int code = errno;
        Error error = Error::from_errno(code, path);
        if (options.access == Access::ReadWrite) error.message += advice_to_write(code, before);
        return fail(std::move(error));
    }
    struct stat st{};
    if (::fstat(fd.get(), &st) != 0) return fail(Error::from_errno(errno, path));
    A4_CHECK(check_kind(path, st));
    if (!same_file(before, st)) return fail(EAGAIN, "{} was replaced while being opened", path);
    if (::fcntl(fd.get(), F_SETFL, direct ? O_DIRECT : 0) != 0)
        return fail(Error::from_errno(errno, path));
    if (options.exclusive) {
        A4_CHECK(lock_file(
            fd.get(), options.access == Access::ReadWrite ? LockKind::Exclusive : LockKind::Shared,
            path));
    }
    std::unique_ptr<FileDevice> device(new FileDevice(path, std::move(fd), options));
    device->direct_ = direct;
    A4_CHECK(device->inspect());
    return device;
}

Result<> FileDevice::inspect() {
    // After the lock: what was seen before it may be older than its last holder's work.
    struct stat st{};
    if (::fstat(fd_.get(), &st) != 0) return fail(Error::from_errno(errno, path_));
    block_device_ = S_ISBLK(st.st_mode);
    if (block_device_) {
        uint64_t bytes = 0;
        if (::ioctl(fd_.get(), BLKGETSIZE64, &bytes) != 0)
            return fail(Error::from_errno(errno, path_ + ": reading its size"));
        size_ = Bytes(bytes);
        // The open of a write-protected device succeeds, and each write would be EPERM.
        int write_protected = 0;
        if (!read_only_ && ::ioctl(fd_.get(), BLKROGET, &write_protected) == 0 && write_protected)
            return fail(EROFS, "{} is write-protected: blockdev --setrw {} lifts that", path_,
                        path_);
    } else {
        size_ = Bytes(static_cast<uint64_t>(st.st_size));
    }
    const auto extras = raw_statx(fd_.get());
    if (direct_ && extras && extras->has_dio_align && extras->dio_offset_align == 0) {
        // The open was let through, the I/O would not be.
        if (::fcntl(fd_.get(), F_SETFL, 0) != 0) return fail(Error::from_errno(errno, path_));
        direct_ = false;
    }
    if (!direct_) {
        limits_ = AtomicLimits::none("direct I/O isn't possible on " + path_);
        return {};
    }
    alignment_ = memory_alignment_ = kFallbackAlignment;
    int sector = 0;
    if (extras && extras->has_dio_align) {
        alignment_ = extras->dio_offset_align;
        memory_alignment_ = std::max(extras->dio_mem_align, 1u);
    } else if (block_device_ && ::ioctl(fd_.get(), BLKSSZGET, &sector) == 0 && sector > 0) {
        alignment_ = memory_alignment_ = static_cast<uint64_t>(sector);
    }
    if (!is_power_of_two(alignment_) || !is_power_of_two(memory_alignment_))
        return fail(EINVAL, "{}: direct I/O alignment {} is not a power of two", path_, alignment_);
    limits_ = probe_atomic_limits(fd_.get());
    return {};
}

Result<> FileDevice::check_writable(const char* what, ByteOffset offset, Bytes length) const {
    if (read_only_) {
        return fail(EROFS, "{}: {} of {} bytes at {} refused: opened read-only", path_, what,
                    length, offset);
    }
    if (poisoned_) {
        return fail(EIO,
                    "{}: {} refused: a flush failed earlier; what was written before it is in "
                    "doubt",
                    path_, what);
    }
    return check_range(*this, what, offset, length);
}

tl::unexpected<Error> FileDevice::failed_durably(int code, const std::string& what) {
    // Buffered, even ENOSPC may be the writeback's and not this call's.
    if (direct_ && is_refusal(code)) return fail(Error::from_errno(code, what));
    if (code == EINVAL || code == EOPNOTSUPP) return fail(Error::from_errno(code, what));
    poisoned_ = true;
    return fail(code, "{}: {}; what was written is in doubt", what, std::strerror(code));
}

bool FileDevice::memory_is_aligned(const std::byte* memory) const {
    return is_aligned(reinterpret_cast<uintptr_t>(memory), memory_alignment_);
}

Result<std::span<std::byte>> FileDevice::bounce(size_t length) {
    if (length > bounce_size_) {
        // A page at least: memory_alignment_ may be smaller than what aligned_alloc accepts.
        const uint64_t align = std::max(memory_alignment_, kFallbackAlignment);
        const size_t wanted = round_up(length, align);
        bounce_size_ = 0;
        bounce_.reset(static_cast<std::byte*>(std::aligned_alloc(align, wanted)));
        if (!bounce_) return fail(ENOMEM, "{}: no memory for {} bytes", path_, wanted);
        bounce_size_ = wanted;
    }
    return std::span(bounce_.get(), length);
}

Result<> FileDevice::pread_all(ByteOffset offset, std::span<std::byte> into) {
    while (!into.empty()) {
        const ssize_t n =
            ::pread(fd_.get(), into.data(), into.size(), static_cast<off_t>(offset.value()));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            return fail(Error::from_errno(
                errno, fmt::format("{}: read of {} bytes at {}", path_, into.size(), offset)));
        }
        if (n == 0)
            return fail(EIO, "{} ends at {}: it was truncated after opening", path_, offset);
        into = into.subspan(static_cast<size_t>(n));
        offset += Bytes(static_cast<uint64_t>(n));
    }
    return {};
}

ssize_t FileDevice::pwrite_some(ByteOffset offset, std::span<const std::byte> from,
                                Durability durability) {
    const auto at = static_cast<off_t>(offset.value());
    const iovec vector{const_cast<std::byte*>(from.data()), from.size()};
    ssize_t n = 0;
    do {
        n = durability == Durability::Durable ? ::pwritev2(fd_.get(), &vector, 1, at, RWF_DSYNC)
                                              : ::pwrite(fd_.get(), from.data(), from.size(), at);
    } while (n < 0 && errno == EINTR);
    if (n >= 0 || durability == Durability::Cached || errno != EOPNOTSUPP) return n;
    // A file system without RWF_DSYNC.
    do {
        n = ::pwrite(fd_.get(), from.data(), from.size(), at);
    } while (n < 0 && errno == EINTR);
    return n >= 0 && ::fdatasync(fd_.get()) != 0 ? -1 : n;
}

Result<> FileDevice::pwrite_all(ByteOffset offset, std::span<const std::byte> from,
                                Durability durability) {
    while (!from.empty()) {
        const ssize_t n = pwrite_some(offset, from, durability);
        if (n <= 0) {
            const int code = n < 0 ? errno : EIO;
            const auto what =
                fmt::format("{}: write of {} bytes at {}", path_, from.size(), offset);
            if (durability == Durability::Durable) return failed_durably(code, what);
            return fail(Error::from_errno(code, what));
        }
        from = from.subspan(static_cast<size_t>(n));
        offset += Bytes(static_cast<uint64_t>(n));
    }
    return {};
}

Result<> FileDevice::read(ByteOffset offset, std::span<std::byte> into) {
    A4_CHECK(check_range(*this, "read", offset, Bytes(into.size())));
    while (!into.empty()) {
        const uint64_t begin = offset.value();
        if (is_aligned(begin, alignment_) && is_aligned(into.size(), alignment_) &&
            memory_is_aligned(into.data()))
            return pread_all(offset, into);
        const uint64_t aligned_begin = round_down(begin, alignment_);
        const uint64_t part = std::min<uint64_t>(into.size(), kPiece - (begin - aligned_begin));
        const uint64_t aligned_end = round_up(begin + part, alignment_);
        if (aligned_end > size_.value()) {
            const BufferedMoment buffered(fd_.get());
            A4_CHECK(pread_all(offset, into.first(part)));
        } else {
            const auto copy = A4_TRY(bounce(aligned_end - aligned_begin));
            A4_CHECK(pread_all(ByteOffset(aligned_begin), copy));
            std::memcpy(into.data(), copy.data() + (begin - aligned_begin), part);
        }
        into = into.subspan(part);
        offset += Bytes(part);
    }
    return {};
}

void FileDevice::will_read(ByteOffset offset, Bytes length) {
    if (direct_) return;  // there is no cache
    ::posix_fadvise(fd_.get(), static_cast<off_t>(offset.value()),
                    static_cast<off_t>(length.value()), POSIX_FADV_WILLNEED);
}

Result<> FileDevice::write_range(ByteOffset offset, std::span<const std::byte> from,
                                 Durability durability) {
    const uint64_t begin = offset.value();
    const uint64_t end = begin + from.size();
    const uint64_t aligned_begin = round_down(begin, alignment_);
    const uint64_t aligned_end = round_up(end, alignment_);
    const bool aligned = begin == aligned_begin && end == aligned_end;
    if (aligned && memory_is_aligned(from.data())) return pwrite_all(offset, from, durability);
    if (aligned_end > size_.value()) {
        const BufferedMoment buffered(fd_.get());
        return pwrite_all(offset, from, durability);
    }
    const auto copy = A4_TRY(bounce(aligned_end - aligned_begin));
    if (begin != aligned_begin)
        A4_CHECK(pread_all(ByteOffset(aligned_begin), copy.first(alignment_)));
    // The last block, unless it is also the first and was read already.
    if (end != aligned_end && (aligned_end - aligned_begin > alignment_ || begin == aligned_begin))
        A4_CHECK(pread_all(ByteOffset(aligned_end - alignment_), copy.last(alignment_)));
    std::memcpy(copy.data() + (begin - aligned_begin), from.data(), from.size());
    return pwrite_all(ByteOffset(aligned_begin), copy, durability);
}

Result<> FileDevice::write(ByteOffset offset, std::span<const std::byte> from) {
    A4_CHECK(check_writable("write", offset, Bytes(from.size())));
    if (from.empty()) return {};
    return write_range(offset, from, Durability::Cached);
}

bool FileDevice::is_aligned_write(const DeviceWrite& one) const {
    return is_aligned(one.offset.value(), alignment_) && is_aligned(one.from.size(), alignment_) &&
           memory_is_aligned(one.from.data());
}

Result<> FileDevice::write_many(std::span<const DeviceWrite> writes) {
    std::vector<DeviceWrite> whole;
    std::vector<DeviceWrite> others;
    for (const DeviceWrite& one : writes) {
        A4_CHECK(check_writable("write", one.offset, Bytes(one.from.size())));
        (direct_ && is_aligned_write(one) ? whole : others).push_back(one);
    }
    A4_CHECK(write_in_parallel(whole));
    // Afterwards: parts of a block that others are writing would be read and written again.
    for (const DeviceWrite& one : others) A4_CHECK(write(one.offset, one.from));
    return {};
}

Result<> FileDevice::write_in_parallel(std::span<const DeviceWrite> writes) {
    if (writes.size() < 2) return Device::write_many(writes);
    const auto loop = A4_TRY(EventLoop::create().context(path_));
    Result<> result;
    size_t in_flight = 0;
    for (size_t next = 0; in_flight > 0 || (result && next < writes.size());) {
        while (result && next < writes.size() && in_flight < kInFlight) {
            const DeviceWrite one = writes[next++];
            ++in_flight;
            loop->write(fd_.get(), one.offset, one.from, 0, [&, one](int written) {
                --in_flight;
                // Interrupted, cut short or failed: what write() says of the rest counts.
                const auto done = static_cast<size_t>(std::max(written, 0));
                if (done == one.from.size()) return;
                auto rest = pwrite_all(one.offset + Bytes(done), one.from.subspan(done),
                                       Durability::Cached);
                if (!rest) result = std::move(rest);
            });
        }
        // Memory and descriptor must not go before what uses them has ended.
        while (true) {
            auto turned = loop->run_once();
            if (turned) break;
            result = fail(std::move(turned).error().with_context(path_));
        }
    }
    return result;
}

Result<> FileDevice::write_durable(ByteOffset offset, std::span<const std::byte> from) {
    A4_CHECK(check_writable("write", offset, Bytes(from.size())));
    if (from.empty()) return {};
    return write_range(offset, from, Durability::Durable);
}

Result<> FileDevice::write_atomic(ByteOffset offset, std::span<const std::byte> from) {
    A4_CHECK(check_writable("atomic write", offset, Bytes(from.size())));
    A4_CHECK(check_atomic_limits(limits_, offset, Bytes(from.size())).context(path_));
    if (!memory_is_aligned(from.data())) {
        const auto copy = A4_TRY(bounce(from.size()));
        std::memcpy(copy.data(), from.data(), from.size());
        from = copy;
    }
    // Pages of the range in the block device's cache can make the kernel fall back to a buffered,
    // torn write (F14). Someone who keeps them mapped or dirty defeats this.
    const auto at = static_cast<off_t>(offset.value());
    if (block_device_)
        ::posix_fadvise(fd_.get(), at, static_cast<off_t>(from.size()), POSIX_FADV_DONTNEED);
    const iovec vector{const_cast<std::byte*>(from.data()), from.size()};
    ssize_t n = 0;
    do {
        n = ::pwritev2(fd_.get(), &vector, 1, at, RWF_ATOMIC | RWF_DSYNC);
    } while (n < 0 && errno == EINTR);
    if (n == static_cast<ssize_t>(from.size())) return {};
    const auto what = fmt::format("{}: atomic write of {} bytes at {}", path_, from.size(), offset);
    if (n < 0) return failed_durably(errno, what);
    poisoned_ = true;
    return fail(EIO, "{}: only {} bytes were written; the range is in doubt", what, n);
}

Result<AsyncPort> FileDevice::open_port() const {
    if (!limits_.supported()) return fail(EOPNOTSUPP, "{}: {}", path_, limits_.why_not);
    if (read_only_) return fail(EROFS, "{}: opened read-only", path_);
    // Not by its path, which may be another's by now.
    UniqueFd fd(::open(fmt::format("/proc/self/fd/{}", fd_.get()).c_str(),
                       O_RDWR | O_DIRECT | O_CLOEXEC | O_NOCTTY));
    if (!fd) return fail(Error::from_errno(errno, path_ + ": opening it again"));
    return AsyncPort{std::move(fd), Bytes(memory_alignment_), block_device_};
}

Result<> FileDevice::zero(ByteOffset offset, Bytes length) {
    A4_CHECK(check_writable("zeroing", offset, length));
    const uint64_t granularity = std::max(alignment_, kPunchGranularity);
    const ByteOffset end = offset + length;
    const ByteOffset inner_begin(round_up(offset.value(), granularity));
    const ByteOffset inner_end(round_down(end.value(), granularity));
    if (inner_begin >= inner_end) return zero_by_writing(offset, length);
    A4_CHECK(zero_by_writing(offset, inner_begin - offset));
    A4_CHECK(zero_inner(inner_begin, inner_end - inner_begin));
    return zero_by_writing(inner_end, end - inner_end);
}

Result<> FileDevice::zero_inner(ByteOffset offset, Bytes length) {
    // Never ZERO_RANGE first: on an image it allocates every block (F19).
    int status = 0;
    do {
        status =
            ::fallocate(fd_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                        static_cast<off_t>(offset.value()), static_cast<off_t>(length.value()));
    } while (status != 0 && errno == EINTR);
    if (status == 0) return {};
    if (errno != EOPNOTSUPP && errno != ENOSYS && errno != EINVAL && errno != ENODEV) {
        return fail(Error::from_errno(
            errno, fmt::format("{}: zeroing {} bytes at {}", path_, length, offset)));
    }
    std::array<uint64_t, 2> range{offset.value(), length.value()};
    if (block_device_ && ::ioctl(fd_.get(), BLKZEROOUT, range.data()) == 0) return {};
    return zero_by_writing(offset, length);
}

Result<> FileDevice::zero_by_writing(ByteOffset offset, Bytes length) {
    if (length == Bytes(0)) return {};
    // Not the bounce buffer: write_range may need that.
    const uint64_t size = round_up(std::min(length.value(), kPiece), kFallbackAlignment);
    const std::unique_ptr<std::byte, FreeMemory> zeros(static_cast<std::byte*>(
        std::aligned_alloc(std::max(memory_alignment_, kFallbackAlignment),
                           round_up(size, std::max(memory_alignment_, kFallbackAlignment)))));
    if (!zeros) return fail(ENOMEM, "{}: no memory for {} bytes", path_, size);
    std::memset(zeros.get(), 0, size);
    while (length > Bytes(0)) {
        const Bytes part = std::min(length, Bytes(kPiece));
        A4_CHECK(write_range(offset, std::span(zeros.get(), part.value()), Durability::Cached));
        offset += part;
        length -= part;
    }
    return {};
}

Result<> FileDevice::flush() {
    if (read_only_) return {};
    A4_CHECK(check_writable("flush", ByteOffset(0), Bytes(0)));
    if (::fdatasync(fd_.get()) == 0) return {};
    const int code = errno;
    poisoned_ = true;
    return fail(code, "{}: flush failed: {}; what was written since the last one is in doubt",
                path_, std::strerror(code));
}

}  // namespace atomic4
