// Reads, plain and native writes, placements and flushes of a mounted target.
#include <sys/syscall.h>
#include <sys/uio.h>

#include <cstring>
#include <utility>

#include "ext4/format.h"
#include "writer/mounted_pending.h"

#ifndef RWF_ATOMIC
#define RWF_ATOMIC 0x00000040
#endif

namespace atomic4 {
namespace {

constexpr long kCachestat = 451;

// Of the plain writes of one file, at a time: so many pieces, and bytes of two of the longest.
constexpr size_t kPlainPiece = size_t{4} << 20;
constexpr size_t kPlainPieces = 16;

struct CachestatRange {
    uint64_t offset;
    uint64_t length;
};
struct Cachestat {
    uint64_t cached, dirty, writeback, evicted, recently_evicted;
};
// Kernels before 6.5 can't tell: then assume it.
bool any_cached(int fd, ByteOffset offset, Bytes length) {
    CachestatRange range{offset.value(), length.value()};
    Cachestat stat{};
    return ::syscall(kCachestat, fd, &range, &stat, 0) != 0 || stat.cached > 0;
}

AlignedMemory aligned_memory(size_t size) {
    return AlignedMemory(static_cast<std::byte*>(std::aligned_alloc(4096, round_up(size, 4096))));
}
bool aligned(const void* memory) {
    return reinterpret_cast<uintptr_t>(memory) % 4096 == 0;
}

Error io_error(int result, size_t length, const char* what) {
    if (result < 0) return Error::from_errno(-result, what);
    return Error{EIO, fmt::format("{}: only {} of {} bytes", what, result, length)};
}

}  // namespace

// --- reads, plain and native writes ---

void MountedTarget::finish_simple(Pending& pending) {
    --(pending.kind == Pending::Kind::Read ? reading_ : running_);
    order_.release(pending.ranges, pending.use());
    pending.each_file([&](const FileRef& file) {
        if (pending.kind != Pending::Kind::Read) shared(file).access.unuse();
    });
    schedule_pump();
}

void MountedTarget::start_read(std::unique_ptr<Pending> pending) {
    order_.hold(pending->ranges, pending->use());
    ++reading_;
    std::shared_ptr<Pending> running = std::move(pending);
    loop_.read(shared(running->file).access.read_only(), running->ranges[0].offset, running->into,
               [this, running](int result) {
                   finish_simple(*running);
                   if (result < 0) return running->fail_with(Error::from_errno(-result, "read"));
                   ++counts_.reads;
                   counts_.bytes_read += static_cast<uint64_t>(result);
                   running->read_done(Bytes(static_cast<uint64_t>(result)));
               });
}

void MountedTarget::start_plain(std::unique_ptr<Pending> pending) {
    order_.hold(pending->ranges, pending->use());
    const auto file = std::static_pointer_cast<SharedFile>(pending->op->ranges[0].file);
    // The pump goes on.
    plain_[file].waiting.push_back(std::move(pending));
}

// Whoever opens the file, or freezes, has to wait for what the helper threads have of it.
void MountedTarget::continue_plain(const SharedRef& file, PlainWrites& writes) {
    while (!writes.waiting.empty() && !commit_->poisoned() && !frozen_ && !file->access.held()) {
        std::shared_ptr<Pending> pending = writes.waiting.front();
        const auto left = pending->op->ranges[0].data.subspan(pending->written.value());
        const auto piece = left.first(std::min(left.size(), kPlainPiece));
        const Bytes length(piece.size());
        if (writes.running > 0 && (writes.running == kPlainPieces ||
                                   writes.running_bytes + length > Bytes(2 * kPlainPiece)))
            return;
        writes.waiting.pop_front();
        if (const Error* broken = file->access.broken(); broken != nullptr) {
            finish_plain(*pending, fail(Error(*broken)));
            continue;
        }
        file->access.use();
        ++running_;
        ++writes.running;
        writes.running_bytes += length;
        write_cached(file, pending->ranges[0].offset + pending->written, piece,
                     [this, file, pending, length](Result<> done) {
                         PlainWrites& others = plain_.at(file);
                         --running_;
                         --others.running;
                         others.running_bytes -= length;
                         pending->written += length;
                         // Openers first.
                         file->access.unuse();
                         if (done && pending->written < pending->ranges[0].length)
                             others.waiting.push_front(pending);
                         else
                             finish_plain(*pending, std::move(done));
                         continue_plain(file, others);
                         schedule_pump();
                     });
    }
}

void MountedTarget::finish_plain(Pending& pending, Result<> result) {
    order_.release(pending.ranges, pending.use());
    schedule_pump();
    if (!result) return pending.fail_with(result.error());
    ++counts_.writes_plain;
    counts_.bytes_plain += pending.ranges[0].length.value();
    pending.op->done(WriteDone{});
}

void MountedTarget::start_native(std::unique_ptr<Pending> pending) {
    order_.hold(pending->ranges, pending->use());
    ++running_;
    std::shared_ptr<Pending> running = std::move(pending);
    const WriteOp::Range& range = running->op->ranges[0];
    SharedFile& file = shared(range.file);
    file.access.use();
    std::span<const std::byte> data = range.data;
    if (!aligned(data.data())) {
        running->bounce = aligned_memory(data.size());
        if (!running->bounce) return native_done(running, -ENOMEM);
        std::memcpy(running->bounce.get(), data.data(), data.size());
        data = {running->bounce.get(), data.size()};
    }
    ++counts_.atomic_submissions;
    loop_.write(file.access.direct(), range.offset, data, RWF_ATOMIC | RWF_DSYNC,
                [this, running](int result) { native_done(running, result); });
}

void MountedTarget::native_done(const std::shared_ptr<Pending>& pending, int result) {
    const WriteOp::Range& range = pending->op->ranges[0];
    const size_t length = range.data.size();
    finish_simple(*pending);
    if (result == static_cast<int>(length)) {
        ++range.file->writes_native;
        ++counts_.writes_native;
        counts_.bytes_native += length;
        pending->op->done(WriteDone{Engine::Native, Ack::None});
        return;
    }
    const Error error = io_error(result, length, "native write");
    // A refusal changed nothing: the range is not one aligned written run, or the kernel can't.
    const bool refused = error.code == EINVAL || error.code == EOPNOTSUPP || error.code == EAGAIN ||
                         error.code == ENOMEM || error.code == ENOSPC;
    if (!refused) {
        // Old or new, never mixed; but which is unknown, and so is what else that device lost.
        commit_->poison(error, "native write");
        return pending->fail_with(commit_->in_doubt());
    }
    if (pending->forced || Bytes(length) > commit_->log().unit_max()) {
        const int code = error.code == EINVAL ? EIO : error.code;
        return pending->fail_with(
            {code, fmt::format("{}: the range is not one aligned written run that the device "
                               "takes; adopt repairs the layout",
                               error.message)});
    }
    auto again = std::make_unique<Pending>();
    again->op = std::move(pending->op);
    again->ranges = pending->ranges;
    queue_.push_front(std::move(again));
}

// --- placement ---

void MountedTarget::place(const FileRef& file, ByteOffset offset, std::span<const std::byte> data,
                          bool durable, std::function<void(Result<>)> done) {
    const auto it = std::static_pointer_cast<SharedFile>(file);
    ++running_;
    loop_.write(
        it->access.direct(), offset, data, durable ? RWF_DSYNC : 0,
        [this, it, offset, data, durable, done = std::move(done)](int result) mutable {
            --running_;
            if (result > 0 && static_cast<size_t>(result) < data.size()) {
                // The rest; what is there already is old or new like any placement.
                const auto n = static_cast<uint64_t>(result);
                return place(it, offset + Bytes(n), data.subspan(n), durable, std::move(done));
            }
            // A page that somebody wrote meanwhile makes a durable write fail like this.
            const bool collided = result == -EIO && it->access.ack() == Ack::Strict &&
                                  any_cached(it->access.read_only(), offset, Bytes(data.size()));
            if (static_cast<size_t>(result) != data.size() && !collided)
                return done(fail(io_error(result, data.size(), "write to the file")));
            placed(it, offset, data, durable && !collided, std::move(done));
        });
}

void MountedTarget::placed(const SharedRef& file, ByteOffset offset,
                           std::span<const std::byte> data, bool durable,
                           std::function<void(Result<>)> done) {
    const bool others = file->access.ack() == Ack::Strict || file->cached_writes;
    if (others && any_cached(file->access.read_only(), offset, Bytes(data.size()))) {
        file->collided = true;
        return write_cached(file, offset, data, std::move(done));
    }
    if (!durable) mark_dirty(file);
    done({});
}

// Only once the bytes are there: a flush begun before would not have caught them.
void MountedTarget::mark_dirty(const SharedRef& file) {
    if (file->dirty) return;
    file->dirty = true;
    dirty_.push_back(file);
}

// Through the page cache; to be flushed.
void MountedTarget::write_cached(const SharedRef& file, ByteOffset offset,
                                 std::span<const std::byte> data,
                                 std::function<void(Result<>)> done) {
    ++running_;
    file->cached_writes = true;
    helpers_->run(
        file->inode,
        [direct = file->access.direct(), offset, data]() -> int {
            const std::string path = fmt::format("/proc/self/fd/{}", direct);
            const UniqueFd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
            if (!fd) return -errno;
            for (size_t written = 0; written < data.size();) {
                const ssize_t n = ::pwrite(fd.get(), data.data() + written, data.size() - written,
                                           static_cast<off_t>(offset.value() + written));
                if (n < 0 && errno == EINTR) continue;
                if (n <= 0) return n < 0 ? -errno : -EIO;
                written += static_cast<size_t>(n);
            }
            return 0;
        },
        [this, file, done = std::move(done)](int result) {
            --running_;
            mark_dirty(file);
            done(result < 0 ? Result<>(fail(Error::from_errno(-result, "write to the file")))
                            : Result<>());
        });
}

// --- flushing ---

// fdatasync on the descriptor that lives as long as the file: what it reports once it must see.
void MountedTarget::flush_file(const SharedRef& file, bool again,
                               std::function<void(Result<>)> done) {
    ++running_;
    const bool collided = std::exchange(file->collided, false);
    loop_.fdatasync(file->access.read_only(), [this, file, again, collided,
                                               done = std::move(done)](int result) mutable {
        --running_;
        if (result >= 0) return done({});
        // The kernel's word for "a page and a direct write collided", once: what was placed has
        // been written again through the cache since. Anything else is final.
        if (result == -EIO && collided && !again) return flush_file(file, true, std::move(done));
        done(fail(Error::from_errno(-result, fmt::format("fdatasync of inode {}", file->inode))));
    });
}

void MountedTarget::flush_placed(std::function<void(Result<>)> done) {
    std::vector<SharedRef> files;
    files.swap(dirty_);
    if (files.empty()) return done({});
    struct Progress {
        size_t left;
        Result<> result;
        std::function<void(Result<>)> done;
    };
    auto progress = std::make_shared<Progress>(Progress{files.size(), {}, std::move(done)});
    for (const SharedRef& file : files) {
        file->dirty = false;
        flush_file(file, false, [progress](Result<> flushed) {
            if (!flushed && progress->result) progress->result = std::move(flushed);
            if (--progress->left == 0) progress->done(std::move(progress->result));
        });
    }
}

void MountedTarget::flush(FileRef file, std::function<void(Result<>)> done) {
    ++counts_.flushes;
    if (commit_->poisoned()) {
        loop_.defer([done, error = commit_->in_doubt()] { done(fail(Error(error))); });
        return;
    }
    // Logged writes are durable already; plain ones are in the page cache.
    const auto finish = [this, done](Result<> flushed) {
        if (!flushed) {
            commit_->poison(flushed.error(), "flush");
            return done(fail(commit_->in_doubt()));
        }
        done({});
    };
    if (!file) return flush_placed(finish);
    const auto it = std::static_pointer_cast<SharedFile>(file);
    flush_file(it, false, finish);
}

}  // namespace atomic4
