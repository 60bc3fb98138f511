// A file of a mounted volume that clients have open: what mounted_target.cc keeps of it.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <optional>

#include "device/device.h"
#include "ext4/mounted_volume.h"
#include "writer/file_access.h"

namespace atomic4 {

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

    // Nothing has to be allocated to write there. Before EOF and not a hole; what is preallocated
    // but unwritten counts as a hole here. truncate(2) makes holes in a file that nobody opens, and
    // a placement that finds no space is one too late: what is known holds while the file has as
    // many blocks as then.
    bool allocated(ByteOffset offset, Bytes length) {
        const uint64_t from = offset.value();
        const uint64_t to = from + length.value();
        struct stat now{};
        if (::fstat(access.read_only(), &now) != 0) return false;
        const bool known = from >= data_from_ && to <= data_to_ && now.st_size == known_size_ &&
                           now.st_blocks == known_blocks_;
        // Others could have punched a hole meanwhile, and filled another.
        if (known && access.ack() == Ack::Exclusive) return true;
        const off_t hole = ::lseek(access.read_only(), static_cast<off_t>(from), SEEK_HOLE);
        if (hole < 0 || static_cast<uint64_t>(hole) < to) return false;
        data_from_ = from;
        data_to_ = static_cast<uint64_t>(hole);
        known_size_ = now.st_size;
        known_blocks_ = now.st_blocks;
        return true;
    }

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
    bool leaving = false;          // without handles, it waits for its records to retire
    bool dirty = false;            // written since the last flush
    bool cached_writes = false;    // we have written it through the page cache ourselves
    std::optional<Error> spoiled;  // others' pages made it impossible to go on with it

  private:
    UniqueFd witness_;
    bool noisy_ = false;
    // No hole in between, when last asked, and what the file was like then.
    uint64_t data_from_ = 0, data_to_ = 0;
    off_t known_size_ = 0;
    blkcnt_t known_blocks_ = 0;
};

}  // namespace atomic4
