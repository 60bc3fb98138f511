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

// Placements that others' pages disturb.
constexpr int kTries = 16;
// So often that is believed of an error that nothing speaks for any more.
constexpr int kUnexplained = 3;

// The file that a descriptor is open on, for writes through the page cache.
UniqueFd open_cached(int fd) {
    const std::string path = fmt::format("/proc/self/fd/{}", fd);
    return UniqueFd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
}

// 0 or a negative errno.
int write_all(int fd, ByteOffset offset, std::span<const std::byte> data) {
    while (!data.empty()) {
        const ssize_t n =
            ::pwrite(fd, data.data(), data.size(), static_cast<off_t>(offset.value()));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return n < 0 ? -errno : -EIO;
        data = data.subspan(static_cast<size_t>(n));
        offset += Bytes(static_cast<uint64_t>(n));
    }
    return 0;
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
        if (!running->bounce) {
            // Later: what goes back to the queue must not do so while it is walked.
            return loop_.defer([this, running] { native_done(running, -ENOMEM); });
        }
        std::memcpy(running->bounce.get(), data.data(), data.size());
        data = {running->bounce.get(), data.size()};
    }
    ++counts_.atomic_submissions;
    loop_.write(file.access.direct(), range.offset, data, RWF_ATOMIC | RWF_DSYNC,
                [this, running](int result) { native_done(running, result); });
}

void MountedTarget::native_done(const std::shared_ptr<Pending>& pending, int result) {
    const WriteOp::Range& range = pending->op->ranges[0];
    SharedFile& file = shared(range.file);
    const size_t length = range.data.size();
    finish_simple(*pending);
    const bool may_log = !pending->forced && Bytes(length) <= commit_->log().unit_max();
    const bool done = result == static_cast<int>(length);
    const bool others = file.access.ack() == Ack::Strict || file.cached_writes;
    const bool collided = (result == -EIO && (file.page_error() || file.noisy())) ||
                          ((done || result == -EIO) && others &&
                           any_cached(file.access.read_only(), range.offset, Bytes(length)));
    if (collided && may_log) return log_instead(pending);
    if (done) {
        ++range.file->writes_native;
        ++counts_.writes_native;
        counts_.bytes_native += length;
        const Ack ack = file.access.ack();
        ++(ack == Ack::Strict ? counts_.acks_strict : counts_.acks_exclusive);
        pending->op->done(WriteDone{Engine::Native, ack});
        return;
    }
    Error error = io_error(result, length, "native write");
    if (collided) {
        error.message += ": others have cached the range; in doubt, the device is not";
        return pending->fail_with(error);
    }
    // A refusal changed nothing: the range is not one aligned written run, or the kernel can't.
    if (!is_refusal(error.code)) {
        // Old or new, never mixed; but which is unknown, and so is what else that device lost.
        commit_->poison(error, "native write");
        return pending->fail_with(commit_->in_doubt());
    }
    if (may_log) return log_instead(pending);
    if (error.code == EINVAL) {
        error.code = EIO;
        error.message +=
            ": the range is not one aligned written run that the device takes; adopt repairs the "
            "layout";
    }
    pending->fail_with(error);
}

void MountedTarget::log_instead(const std::shared_ptr<Pending>& pending) {
    auto again = std::make_unique<Pending>();
    again->op = std::move(pending->op);
    again->ranges = pending->ranges;
    queue_.push_front(std::move(again));
}

// --- placement ---

void MountedTarget::place(const FileRef& file, ByteOffset offset, std::span<const std::byte> data,
                          bool durable, std::function<void(Result<>)> done) {
    place_part(std::static_pointer_cast<SharedFile>(file), offset, data, {.durable = durable},
               std::move(done));
}

void MountedTarget::place_part(const SharedRef& file, ByteOffset offset,
                               std::span<const std::byte> data, Attempt attempt,
                               std::function<void(Result<>)> done) {
    ++running_;
    loop_.write(file->access.direct(), offset, data, attempt.durable ? RWF_DSYNC : 0,
                [this, file, offset, data, attempt, done = std::move(done)](int result) mutable {
                    --running_;
                    if (result == static_cast<int>(data.size()))
                        return placed(file, offset, data, attempt.durable, std::move(done));
                    if (result > 0) {
                        // The rest; what is there already is old or new like any placement.
                        const auto n = static_cast<uint64_t>(result);
                        return place_part(file, offset + Bytes(n), data.subspan(n), attempt,
                                          std::move(done));
                    }
                    if (result == -EIO) {
                        // Somebody's pages, in the way or themselves not written: once more, and
                        // then through the pages. Another write may have asked for the error
                        // before.
                        if (!file->page_error()) ++attempt.unexplained;
                        const int most = file->noisy() ? kUnexplained : 0;
                        if (attempt.unexplained <= most && ++attempt.disturbed <= kTries) {
                            attempt.durable = false;
                            return place_part(file, offset, data, attempt, std::move(done));
                        }
                        if (attempt.unexplained <= most)
                            return place_cached(file, offset, data, std::move(done));
                    }
                    done(fail(io_error(result, data.size(), "write to the file")));
                });
}

// Pages that others have of what was placed may be old, and must not be written back some day.
void MountedTarget::placed(const SharedRef& file, ByteOffset offset,
                           std::span<const std::byte> data, bool durable,
                           std::function<void(Result<>)> done) {
    const bool others = file->access.ack() == Ack::Strict || file->cached_writes;
    if (others && any_cached(file->access.read_only(), offset, Bytes(data.size())))
        return place_cached(file, offset, data, std::move(done));
    if (!durable) mark_dirty(file);
    done({});
}

// Through the page cache, and from there to the device; a flush makes it durable. As long as it
// isn't certain that it was our pages that were written it is done again.
void MountedTarget::place_cached(const SharedRef& file, ByteOffset offset,
                                 std::span<const std::byte> data,
                                 std::function<void(Result<>)> done) {
    ++running_;
    file->cached_writes = true;
    helpers_->run(
        file->inode,
        [direct = file->access.direct(), offset, data]() -> int {
            const UniqueFd fd = open_cached(direct);
            if (!fd) return -errno;
            int result = 0;
            for (int i = 0; i < kTries; ++i) {
                result = write_all(fd.get(), offset, data);
                if (result < 0) return result;
                constexpr unsigned kWrite = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
                                            SYNC_FILE_RANGE_WAIT_AFTER;
                if (::sync_file_range(fd.get(), static_cast<off_t>(offset.value()),
                                      static_cast<off_t>(data.size()), kWrite) == 0)
                    return 0;
                result = -errno;
            }
            return result == -EIO ? 1 : result;
        },
        [this, file, done = std::move(done)](int result) {
            --running_;
            mark_dirty(file);
            if (result < 0) return done(fail(Error::from_errno(-result, "write to the file")));
            // Whoever does that spoils his own file, and nobody else's.
            if (result > 0) {
                file->spoiled = Error{
                    EIO, fmt::format("inode {}: in doubt: others' pages of it can't be written "
                                     "back; close it everywhere, and don't mix mmap(2) and direct "
                                     "writes of the same pages",
                                     file->inode)};
            }
            done({});
        });
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
            const UniqueFd fd = open_cached(direct);
            return fd ? write_all(fd.get(), offset, data) : -errno;
        },
        [this, file, done = std::move(done)](int result) {
            --running_;
            mark_dirty(file);
            done(result < 0 ? Result<>(fail(Error::from_errno(-result, "write to the file")))
                            : Result<>());
        });
}

// --- flushing ---

// fdatasync tells of the device and of the file's pages, and of the latter says nothing certain
// about the former: then all that was done is committed in another way.
void MountedTarget::flush_file(const SharedRef& file, std::function<void(Result<>)> done) {
    if (file->noisy()) return commit_everything(std::move(done));
    ++running_;
    loop_.fdatasync(file->access.read_only(), [this, file,
                                               done = std::move(done)](int result) mutable {
        --running_;
        if (result >= 0) return done({});
        if (file->page_error() || file->noisy()) return commit_everything(std::move(done));
        done(fail(Error::from_errno(-result, fmt::format("fdatasync of inode {}", file->inode))));
    });
}

// Commits ext4's running transaction, which has all changes of sizes and mappings so far, and
// flushes the device: by the log's file, which nobody else writes. The transaction begins anew with
// the log's times, so there is one to commit.
void MountedTarget::commit_everything(std::function<void(Result<>)> done) {
    ++running_;
    helpers_->run(
        [fd = log_fd_]() -> int {
            return ::futimens(fd, nullptr) == 0 && ::fsync(fd) == 0 ? 0 : -errno;
        },
        [this, done = std::move(done)](int result) {
            --running_;
            done(result < 0 ? Result<>(fail(Error::from_errno(-result, "fsync of the log")))
                            : Result<>());
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
        flush_file(file, [progress](Result<> flushed) {
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
    const auto failed = [this, done](const Error& error) {
        commit_->poison(error, "flush");
        done(fail(commit_->in_doubt()));
    };
    if (!file) {
        return flush_placed([done, failed](const Result<>& flushed) {
            if (!flushed) return failed(flushed.error());
            done({});
        });
    }
    const auto it = std::static_pointer_cast<SharedFile>(file);
    if (it->noisy()) return flush_noisy(it, 0, done);
    ++running_;
    loop_.fdatasync(it->access.read_only(), [this, it, done, failed](int result) {
        --running_;
        if (result >= 0) return done({});
        if (it->page_error() || it->noisy()) return flush_noisy(it, result, done);
        failed(Error::from_errno(-result, fmt::format("fdatasync of inode {}", it->inode)));
    });
}

// The pages and the device, each with its own errors. What the pages say is told to whoever asks,
// as fsync(2) does: it concerns plain writes only.
void MountedTarget::flush_noisy(const SharedRef& file, int before,
                                const std::function<void(Result<>)>& done) {
    ++running_;
    helpers_->run(
        file->inode,
        [fd = file->access.read_only(), before]() -> int {
            constexpr unsigned kWrite =
                SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
            return ::sync_file_range(fd, 0, 0, kWrite) == 0 ? before : -errno;
        },
        [this, file, done](int pages) {
            --running_;
            commit_everything([this, file, done, pages](const Result<>& flushed) {
                if (!flushed) {
                    commit_->poison(flushed.error(), "flush");
                    return done(fail(commit_->in_doubt()));
                }
                if (pages == 0) return done({});
                done(fail(EIO,
                          "inode {}: pages of it could not be written back: plain writes since "
                          "the last flush may be lost; atomic ones are not concerned",
                          file->inode));
            });
        });
}

}  // namespace atomic4
