// Placements of a mounted target, and what makes them durable; what others do to the file
// meanwhile.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <utility>

#include "ext4/mapped_parts.h"
#include "writer/mounted_pending.h"

namespace atomic4 {
namespace {

// Placements that others' pages disturb.
constexpr int kTries = 16;
// So often that is believed of an error that nothing speaks for any more.
constexpr int kUnexplained = 3;
// Holes that others make in a range while it is placed.
constexpr int kHoles = 16;

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

}  // namespace

void MountedTarget::place(const FileRef& file, ByteOffset offset, std::span<const std::byte> data,
                          bool durable, std::function<void(Result<>)> done) {
    const auto it = std::static_pointer_cast<SharedFile>(file);
    const Attempt attempt{.durable = durable};
    it->to_place.emplace_back([this, it, offset, data, attempt, done = std::move(done)]() mutable {
        // Nobody is held from opening it any more.
        if (commit_->poisoned()) return done(fail(commit_->in_doubt()));
        ++it->placing;
        place_part(it, offset, data, attempt, [it, done = std::move(done)](Result<> placed) {
            --it->placing;
            it->place_next();
            done(std::move(placed));
        });
    });
    it->place_next();
}

void MountedTarget::place_part(const SharedRef& file, ByteOffset offset,
                               std::span<const std::byte> data, Attempt attempt,
                               std::function<void(Result<>)> done) {
    ++running_;
    loop_.write(file->access.direct(), offset, data, attempt.durable ? RWF_DSYNC : 0,
                [this, file, offset, data, attempt, done = std::move(done)](int result) mutable {
                    ended();
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
                    if (result == -ENOSPC || result == -EDQUOT) {
                        if (++attempt.holes <= kHoles)
                            return place_around_holes(file, offset, data, attempt, std::move(done));
                        return place_cached(file, offset, data, std::move(done));
                    }
                    done(fail(io_error(result, data.size(), "write to the file")));
                });
}

// The range had its blocks when the record was written. If somebody has punched a hole since, or
// truncated the file, and the disk is full, then that came after this write as well as any other
// order would say; what still has blocks is written.
void MountedTarget::place_around_holes(const SharedRef& file, ByteOffset offset,
                                       std::span<const std::byte> data, Attempt attempt,
                                       std::function<void(Result<>)> done) {
    ++running_;
    auto parts = std::make_shared<std::vector<MappedPart>>();
    helpers_->run(
        file->inode,
        [fd = file->access.read_only(), offset, length = data.size(), parts] {
            auto found = mapped_parts(fd, offset, Bytes(length));
            if (!found) return -found.error().code;
            *parts = std::move(*found);
            return 0;
        },
        [this, file, offset, data, attempt, parts, done = std::move(done)](int result) mutable {
            ended();
            Bytes mapped;
            for (const MappedPart& part : *parts) mapped += part.length;
            // Filled again meanwhile, or what had no space was ext4's own tree of the file.
            if (result < 0 || mapped == Bytes(data.size()))
                return place_part(file, offset, data, attempt, std::move(done));
            place_parts(file, offset, data, attempt, parts, std::move(done));
        });
}

// One after the other, from the last.
void MountedTarget::place_parts(const SharedRef& file, ByteOffset offset,
                                std::span<const std::byte> data, Attempt attempt,
                                const std::shared_ptr<std::vector<MappedPart>>& parts,
                                std::function<void(Result<>)> done) {
    if (parts->empty()) {
        mark_dirty(file);
        return done({});
    }
    const MappedPart part = parts->back();
    parts->pop_back();
    place_part(file, part.offset, data.subspan((part.offset - offset).value(), part.length.value()),
               attempt,
               [this, file, offset, data, attempt, parts, done = std::move(done)](Result<> placed) {
                   if (!placed) return done(std::move(placed));
                   place_parts(file, offset, data, attempt, parts, done);
               });
}

// Pages that others have of what was placed may be old, and must not be written back some day.
void MountedTarget::placed(const SharedRef& file, ByteOffset offset,
                           std::span<const std::byte> data, bool durable,
                           std::function<void(Result<>)> done) {
    const bool others = file->access.ack() == Ack::Strict || file->cached_writes;
    if (others && file->any_cached(offset, Bytes(data.size())))
        return place_cached(file, offset, data, std::move(done));
    if (durable) return confirm_flush(std::move(done));
    mark_dirty(file);
    done({});
}

// Through the page cache, and from there to the device; a flush makes it durable. As long as it
// isn't certain that it was our pages that were written it is done again.
void MountedTarget::place_cached(const SharedRef& file, ByteOffset offset,
                                 std::span<const std::byte> data,
                                 std::function<void(Result<>)> done) {
    through_cache(
        file,
        [offset, data](int fd) {
            int result = 0;
            for (int i = 0; i < kTries; ++i) {
                result = write_all(fd, offset, data);
                if (result < 0) continue;
                constexpr unsigned kWrite = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
                                            SYNC_FILE_RANGE_WAIT_AFTER;
                if (::sync_file_range(fd, static_cast<off_t>(offset.value()),
                                      static_cast<off_t>(data.size()), kWrite) == 0)
                    return 0;
                result = -errno;
            }
            return result == -EIO || result == -ENOSPC || result == -EDQUOT ? 1 : result;
        },
        [file, done = std::move(done)](int result) {
            if (result < 0) return done(fail(Error::from_errno(-result, "write to the file")));
            // Whoever does that spoils his own file, and nobody else's.
            if (result > 0) {
                file->spoiled = Error{
                    EIO, fmt::format("inode {}: in doubt: others' pages of it can't be written "
                                     "back, or its blocks are taken away; close it everywhere, and "
                                     "don't mix mmap(2) and direct writes of the same pages, nor "
                                     "punch holes where clients write",
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
    through_cache(
        file, [offset, data](int fd) { return write_all(fd, offset, data); },
        [done = std::move(done)](int result) {
            done(result < 0 ? Result<>(fail(Error::from_errno(-result, "write to the file")))
                            : Result<>());
        });
}

// work, on a helper thread, with a descriptor of the file that isn't for direct I/O.
void MountedTarget::through_cache(const SharedRef& file, std::function<int(int fd)> work,
                                  EventLoop::Completion done) {
    ++running_;
    file->cached_writes = true;
    helpers_->run(
        file->inode,
        [direct = file->access.direct(), work = std::move(work)]() -> int {
            const UniqueFd fd = open_cached(direct);
            return fd ? work(fd.get()) : -errno;
        },
        [this, file, done = std::move(done)](int result) {
            ended();
            mark_dirty(file);
            done(result);
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
        ended();
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
        [fd = log_fd_, journal = volume_->has_journal()]() -> int {
            // Without a journal each inode has its own changes. Errors of pages are others'.
            if (!journal) ::syncfs(fd);
            return ::futimens(fd, nullptr) == 0 && ::fsync(fd) == 0 ? 0 : -errno;
        },
        [this, done = std::move(done)](int result) {
            ended();
            done(result < 0 ? Result<>(fail(Error::from_errno(-result, "fsync of the log")))
                            : Result<>());
        });
}

// After flushes that succeeded: that they did flush (MountedVolume::check_journal). One question at
// a time; who comes meanwhile shares the next.
void MountedTarget::confirm_flush(std::function<void(Result<>)> done) {
    if (!volume_->has_journal()) return done({});
    ++running_;
    unconfirmed_.push_back(std::move(done));
    if (!confirming_) ask_journal();
}

void MountedTarget::ask_journal() {
    confirming_ = true;
    auto asked = std::make_shared<std::vector<std::function<void(Result<>)>>>();
    asked->swap(unconfirmed_);
    auto said = std::make_shared<Result<>>();
    helpers_->run(
        [this, said] {
            *said = volume_->check_journal();
            return 0;
        },
        [this, asked, said](int) {
            confirming_ = false;
            if (!unconfirmed_.empty()) ask_journal();
            for (auto& done : *asked) {
                ended();
                done(*said);
            }
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
        flush_file(file, [this, progress](Result<> flushed) {
            if (!flushed && progress->result) progress->result = std::move(flushed);
            if (--progress->left > 0) return;
            if (!progress->result) return progress->done(std::move(progress->result));
            confirm_flush(std::move(progress->done));
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
        ended();
        if (result >= 0) {
            return confirm_flush([done, failed](const Result<>& confirmed) {
                if (!confirmed) return failed(confirmed.error());
                done({});
            });
        }
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
            ended();
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
