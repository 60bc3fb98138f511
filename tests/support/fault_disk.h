// A disk for the real kernel that remembers everything, fails when it is told, and can be cut from
// power: a loop device, whose file is served by a process of ours through FUSE.
//
//   kernel's ext4 → /dev/loopN → FUSE file → the serving process: image and trace in shared memory
//
// Each write and each flush that reaches the disk is an event, in the order in which they were
// carried out: one at a time, each answered before the next is begun. So a test that notes
// events() when an acknowledgement comes knows what was on the disk by then; recorded() gives the
// whole to the simulation of power cuts (crash_device.h). A write with FUA arrives as a write and a
// flush; discards are refused, and zeroing comes as writes.
//
// The serving process touches no file system, so it can't wait for itself. It dies with the test,
// at the latest; its file is a mount without a place in the tree, which goes with its last user.
// Until then a dead server means EIO, never a wait.
//
// Needs root, /dev/fuse and loop devices. Only fault_disk.cc includes libfuse.
// Threads: any.
#pragma once

#include <sys/types.h>

#include <memory>
#include <optional>
#include <string>

#include "base/unique_fd.h"
#include "support/crash_device.h"
#include "support/image.h"

namespace atomic4::test {

class FaultDisk {
  public:
    // Why there can be none here.
    static std::optional<std::string> why_not();

    enum class Memory { Records, Forgets };  // the latter has no events, and costs less
    // Attached. initial: a multiple of 4096 bytes. Throws std::runtime_error.
    explicit FaultDisk(const Image& initial, Memory memory = Memory::Records);
    ~FaultDisk();
    FaultDisk(const FaultDisk&) = delete;
    FaultDisk& operator=(const FaultDisk&) = delete;

    const std::string& device() const { return device_; }  // "/dev/loop3"

    size_t events() const;
    uint64_t writes() const;   // so far, failed ones too
    uint64_t flushes() const;  // likewise

    // From the nth from now on (0: the next), `times` of them fail with EIO, and nothing of them is
    // stored. One order at a time.
    enum class What { Write, Flush, Both };
    static constexpr uint64_t kForEver = ~uint64_t{0};
    void fail(What what, uint64_t nth, uint64_t times = 1);
    void heal();
    uint64_t failed() const;  // so far
    // Like a thinly provisioned disk: blocks of 4 KiB that were never written find no space any
    // more, once `blocks` of them have got it.
    void fill_up_after(uint64_t blocks);

    // As the running system sees it.
    Image contents() const;
    std::unique_ptr<CrashDevice> recorded() const;

  private:
    struct Shared;
    [[noreturn]] static void serve(Shared& shared, int fuse);
    void attach(int file);

    Image initial_;  // empty: not recorded
    Shared* shared_ = nullptr;
    pid_t server_ = -1;
    UniqueFd loop_;
    std::string device_;
};

}  // namespace atomic4::test
