// A file of a mounted volume that clients have open: what mounted_target.cc keeps of it.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <optional>

#include "device/device.h"
#include "ext4/mounted_volume.h"
#include "writer/file_access.h"

namespace atomic4 {

// As long as it stays the same nobody can have made a hole, nor by truncate(2), which opens
// nothing.
struct FileLayout {
    uint64_t probe = 0;  // FileAccess::probes; 0: others write
    off_t size = 0;
    blkcnt_t blocks = 0;
    bool operator==(const FileLayout&) const = default;
};

class SharedFile final : public TargetFile {
  public:
    // Two descriptors of their own opening (page_error).
    SharedFile(const MountedFile& file, const FileAccess::Surroundings& around, UniqueFd read_only,
               UniqueFd witness, AtomicLimits limits)
        : unit(file.unit.value_or(Bytes(0))),
          native(std::move(limits)),
          access(around, std::move(read_only)),
          witness_(std::move(witness)) {
        inode = file.inode;
        generation = file.generation;
    }

    Result<Bytes> size() const {
        struct stat st{};
        if (::fstat(access.read_only(), &st) != 0) return fail(Error::from_errno(errno, "fstat"));
        return Bytes(static_cast<uint64_t>(st.st_size));
    }

    FileLayout layout() const {
        struct stat now{};
        if (access.ack() != Ack::Exclusive || ::fstat(access.read_only(), &now) != 0) return {};
        return {access.probes(), now.st_size, now.st_blocks};
    }
    // Nothing has to be allocated to write there, as was seen while the layout was this. What is
    // preallocated but unwritten counts as a hole here. (Asking takes the inode's lock:
    // mounted_blocks.cc.)
    bool known_allocated(ByteOffset offset, Bytes length) {
        if (seen_.probe == 0) return false;
        if (layout() != seen_) forget_data();
        return seen_.probe != 0 && offset.value() >= data_from_ &&
               offset.value() + length.value() <= data_to_;
    }
    // It is not the same any more, and might be taken for the same again.
    void forget_data() { seen_ = {}; }
    // No hole between the two, seen after the layout was so.
    void saw_data(uint64_t from, uint64_t to, const FileLayout& before) {
        if (before.probe == 0 || layout() != before) return;
        if (seen_ != before || to < data_from_ || from > data_to_) {
            seen_ = before;
            data_from_ = from;
            data_to_ = to;
        } else {
            data_from_ = std::min(data_from_, from);
            data_to_ = std::max(data_to_, to);
        }
    }

    // Whether the page cache has some of it. Kernels before 6.5 can't tell: then it may.
    bool any_cached(ByteOffset offset, Bytes length) const;

    // Whether pages of this file, whoever wrote them, could not be written back or were in a direct
    // write's way since it was last asked (errseq_t in mm/filemap.c: each descriptor is told once).
    // Anybody who may write the file can cause that, by mixing mmap(2) and O_DIRECT, and it says
    // nothing about the device.
    bool page_error() {
        const bool found =
            ::sync_file_range(witness_.get(), 0, 1, SYNC_FILE_RANGE_WAIT_BEFORE) != 0;
        noisy_ = noisy_ || found;
        return found;
    }
    // It was so once: what an fdatasync says can't be told apart any more.
    bool noisy() const { return noisy_; }

    const Bytes unit;
    const AtomicLimits native;
    FileAccess access;
    size_t handles = 0;
    // Placements that run, and those that wait for one of them to end: while somebody keeps the
    // file locked each has a thread of the kernel's.
    static constexpr size_t kPlacing = 64;
    size_t placing = 0;
    std::deque<std::function<void()>> to_place;
    void place_next() {
        while (placing < kPlacing && !to_place.empty()) {
            const auto next = std::move(to_place.front());
            to_place.pop_front();
            next();
        }
    }
    bool asking = false;           // the helper threads are looking for its holes
    bool leaving = false;          // without handles, it waits for its records to retire
    bool dirty = false;            // written since the last flush
    bool cached_writes = false;    // we have written it through the page cache ourselves
    std::optional<Error> spoiled;  // others' pages made it impossible to go on with it

  private:
    UniqueFd witness_;
    bool noisy_ = false;
    uint64_t data_from_ = 0, data_to_ = 0;
    FileLayout seen_;
};

// cachestat(2).
inline bool SharedFile::any_cached(ByteOffset offset, Bytes length) const {
    constexpr long kCachestat = 451;
    const struct {
        uint64_t offset, length;
    } range{offset.value(), length.value()};
    struct {
        uint64_t cached, dirty, writeback, evicted, recently_evicted;
    } stat{};
    return ::syscall(kCachestat, access.read_only(), &range, &stat, 0) != 0 || stat.cached > 0;
}

}  // namespace atomic4
