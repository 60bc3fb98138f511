// A file of a mounted volume that clients have open: what mounted_target.cc keeps of it.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "device/atomic_limits.h"
#include "ext4/mounted_volume.h"
#include "writer/file_access.h"

namespace atomic4 {

class SharedFile final : public TargetFile {
  public:
    SharedFile(const MountedFile& file, const FileAccess::Surroundings& around, UniqueFd read_only)
        : unit(file.unit.value_or(Bytes(0))),
          native(probe_atomic_limits(read_only.get())),
          access(around, std::move(read_only)) {
        inode = file.inode;
        generation = file.generation;
    }

    Result<Bytes> size() const {
        struct stat st{};
        if (::fstat(access.read_only(), &st) != 0) return fail(Error::from_errno(errno, "fstat"));
        return Bytes(static_cast<uint64_t>(st.st_size));
    }

    // Nothing has to be allocated to write there, as was seen while nobody could have punched a
    // hole since. What is preallocated but unwritten counts as a hole here. (Asking takes the
    // inode's lock: mounted_blocks.cc.)
    bool known_allocated(ByteOffset offset, Bytes length) const {
        return access.ack() == Ack::Exclusive && access.probes() == seen_at_ &&
               offset.value() >= data_from_ && offset.value() + length.value() <= data_to_;
    }
    // No hole between the two, seen at that probe (FileAccess::probes) and no other writer since.
    void saw_data(uint64_t from, uint64_t to, uint64_t probe) {
        if (access.ack() != Ack::Exclusive || access.probes() != probe) return;
        if (seen_at_ != probe || to < data_from_ || from > data_to_) {
            seen_at_ = probe;
            data_from_ = from;
            data_to_ = to;
        } else {
            data_from_ = std::min(data_from_, from);
            data_to_ = std::max(data_to_, to);
        }
    }
    void forget_allocated() { data_from_ = data_to_ = 0; }

    const Bytes unit;
    const AtomicLimits native;
    FileAccess access;
    size_t handles = 0;
    bool asking = false;    // the helper threads are looking for its holes
    bool leaving = false;   // without handles, it waits for its records to retire
    bool dirty = false;     // written since the last flush
    bool collided = false;  // cached pages were found where we had placed, since the last flush
    bool cached_writes = false;  // we have written it through the page cache ourselves

  private:
    uint64_t data_from_ = 0, data_to_ = 0;
    uint64_t seen_at_ = 0;
};

}  // namespace atomic4
