// A file of a mounted volume that clients have open: what mounted_target.cc keeps of it.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "device/device.h"
#include "ext4/mounted_volume.h"
#include "writer/file_access.h"

namespace atomic4 {

class SharedFile final : public TargetFile {
  public:
    SharedFile(const MountedFile& file, const FileAccess::Surroundings& around, UniqueFd read_only,
               AtomicLimits limits)
        : unit(file.unit.value_or(Bytes(0))),
          native(std::move(limits)),
          access(around, std::move(read_only)) {
        inode = file.inode;
        generation = file.generation;
    }

    Result<Bytes> size() const {
        struct stat st{};
        if (::fstat(access.read_only(), &st) != 0) return fail(Error::from_errno(errno, "fstat"));
        return Bytes(static_cast<uint64_t>(st.st_size));
    }

    // Nothing has to be allocated to write there. Before EOF and not a hole; what is preallocated
    // but unwritten counts as a hole here.
    bool allocated(ByteOffset offset, Bytes length) {
        const uint64_t from = offset.value();
        const uint64_t to = from + length.value();
        const bool known = from >= data_from_ && to <= data_to_;
        // Others could have punched a hole meanwhile.
        if (known && access.ack() == Ack::Exclusive) return true;
        const off_t hole = ::lseek(access.read_only(), static_cast<off_t>(from), SEEK_HOLE);
        if (hole < 0 || static_cast<uint64_t>(hole) < to) return false;
        data_from_ = from;
        data_to_ = static_cast<uint64_t>(hole);
        return true;
    }
    void forget_allocated() { data_from_ = data_to_ = 0; }

    const Bytes unit;
    const AtomicLimits native;
    FileAccess access;
    size_t handles = 0;
    bool closing = false;   // the last handle is closed and its records retired
    bool dirty = false;     // written since the last flush
    bool collided = false;  // cached pages were found where we had placed, since the last flush
    bool cached_writes = false;  // we have written it through the page cache ourselves

  private:
    uint64_t data_from_ = 0, data_to_ = 0;  // no hole in between, when last asked
};

}  // namespace atomic4
