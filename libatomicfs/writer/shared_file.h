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
    // but unwritten counts as a hole here. Asked each time: truncate(2) makes holes in a file that
    // nobody opens, and a placement that finds no space is one too late.
    bool allocated(ByteOffset offset, Bytes length) const {
        const off_t hole =
            ::lseek(access.read_only(), static_cast<off_t>(offset.value()), SEEK_HOLE);
        return hole >= 0 && static_cast<uint64_t>(hole) >= (offset + length).value();
    }

    const Bytes unit;
    const AtomicLimits native;
    FileAccess access;
    size_t handles = 0;
    bool closing = false;   // the last handle is closed and its records retired
    bool dirty = false;     // written since the last flush
    bool collided = false;  // cached pages were found where we had placed, since the last flush
    bool cached_writes = false;  // we have written it through the page cache ourselves
};

}  // namespace atomic4
