// Multiple mount protection: a block of the volume that says which host has it open.
//
// libext2fs's own protocol (ext2fs_mmp_start, _update, _stop), the one that e2fsck follows: for
// writing, the block is marked as "fsck is running", which kernels and tools on every host refuse
// at once; going there takes 2 x the check interval + 1 s (11 s by default), in which another host
// that does the same is noticed. For reading, the block must say that nobody writes; a mark that
// doesn't change for as long is one that a crash of the kernel left.
//
// libext2fs reads the block through fs->device_name, past every cache: where that doesn't lead to
// the Device (memory), it is EOPNOTSUPP.
//
// Our own mark stays behind after a crash, as e2fsck's does, and none takes it away unasked: that
// whoever left it is dead can't be proved from here. The error says who it was and what to do.
//
// Threads: one.
#pragma once

#include <ext2fs/ext2fs.h>

#include <utility>

#include "device/device.h"

namespace atomic4 {

class MmpClaim {
  public:
    // Nothing to do, and nothing held, without the feature. EBUSY: in use, with the name of the
    // host and what it does; EOPNOTSUPP; EUCLEAN: the block is damaged.
    static Result<MmpClaim> start(ext2_filsys fs, Device& device, bool writing);
    // Gives the claim back, unless it was lost.
    ~MmpClaim();
    MmpClaim(MmpClaim&& other) noexcept : fs_(std::exchange(other.fs_, nullptr)) {}
    MmpClaim& operator=(MmpClaim&&) = delete;

    // Renews it, at most once a minute. EIO: another host has taken the volume.
    Result<> keep();

  private:
    explicit MmpClaim(ext2_filsys fs) : fs_(fs) {}
    ext2_filsys fs_;
};

// Takes away the mark "fsck is running", and no other: EBUSY where a kernel has left its own, which
// may be alive. Nothing to do without a mark, or without the feature. The volume is open for
// writing.
Result<> clear_mmp_mark(ext2_filsys fs, Device& device);

}  // namespace atomic4
