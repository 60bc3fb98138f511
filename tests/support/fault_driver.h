// Runs an operation with a fault at its first I/O, then at its second, and so on until none fires,
// and judges every outcome: an error that is reported, or the right result.
//
// An operation is anything that works on a Device: a library call, or a whole command. It is
// described by what it does and what its right result is; what must hold after an error is the same
// for all:
//
//   - a success is right, and e2fsck finds nothing (a swallowed error is the classic way to lose
//     data);
//   - after an error the volume opens again without the fault (atomic4 volumes are recovered), what
//     the operation must not lose is there, and run once more it gives the right result;
//   - only an error that says "in doubt" may leave work for e2fsck, which it must be able to do.
#pragma once

#include <functional>
#include <string>

#include "support/fault_device.h"
#include "support/image.h"

namespace atomic4::test {

struct FaultOperation {
    std::string name;
    Image image;  // the volume as it is before
    AtomicLimits atomic_limits = AtomicLimits::none("not in this test");

    // Opens what is on the device, does the work, closes it.
    std::function<Result<>(Device&)> run;
    // After a success. Empty: the image is as it should be.
    std::function<std::string(Image&)> right;
    // After an error, and a recovery and a repair if those were needed. Empty: nothing is lost.
    std::function<std::string(Image&)> intact;
    // After an error that isn't in doubt, before anything else. Empty: nothing was changed. Null:
    // the operation doesn't promise that.
    std::function<std::string(Image&)> unchanged = nullptr;
};

// Reports through gtest. All faults: EIO and ENOSPC, once and from then on, whole and torn; or
// (unless ATOMIC4_LONG is set) a choice of them.
void run_with_every_fault(const FaultOperation& operation);

// ATOMIC4_LONG=1: the exhaustive form of the crash tests.
bool long_run();

}  // namespace atomic4::test
