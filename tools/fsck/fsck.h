// fsck.atomic4: e2fsck on a guarded view, with our own passes around it (RECOVERY.md).
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "check/decide.h"
#include "common/context.h"

namespace atomic4::tools {

// fsck(8)'s exit status: a sum of these.
enum : int {
    kFsckCorrected = 1,
    kFsckReboot = 2,
    kFsckUncorrected = 4,
    kFsckOperational = 8,
    kFsckUsage = 16,
    kFsckCancelled = 32,
};

struct FsckCommand {
    std::string device;
    FsckMode mode = FsckMode::Ask;
    bool force = false;
    bool verbose = false;
    std::optional<int> progress;  // -C: a descriptor, 0 for a bar, negative for later
    // e2fsck's own, as they are.
    std::optional<std::string> superblock;  // -b
    std::optional<std::string> block_size;  // -B
    std::optional<std::string> journal;     // -j
    std::string extended;                   // -E, joined by commas
};

// For a volume that isn't atomic4's: becomes e2fsck (e2fsck.h), and returns only if that fails.
using BecomeE2fsck = std::function<Error(const std::string& e2fsck, const FsckCommand& command)>;

// fsck(8)'s exit status. An error is status 8.
Result<int> run(const Context& context, const FsckCommand& command, const BecomeE2fsck& become);

}  // namespace atomic4::tools
