// mkfs.atomic4: stock mke2fs formats, then atomic4 is enabled.
//
// Before anything is written: the device is nobody else's, holds nothing known (or -F), and what
// was asked for is something that atomic4 can enable afterwards. If enabling fails, a plain, clean
// ext4 is left, and that is said.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/units.h"
#include "common/context.h"
#include "writer/enable.h"

namespace atomic4::tools {

struct MkfsCommand {
    std::string device;
    std::optional<std::string> size;          // as mke2fs takes it
    std::vector<std::string> mke2fs_options;  // passed on
    std::string features;                     // the -O words, to be looked at first
    std::optional<uint64_t> block_size;       // -b, likewise
    std::optional<Bytes> unit;
    std::optional<Bytes> log_size;
    bool force = false;
    bool dry_run = false;
    bool quiet = false;
};
Result<int> run(const Context& context, const MkfsCommand& command);

// The part after mke2fs: enables atomic4 on the new volume. On failure, half_done says whether
// changes may have been left half-done, as after an I/O error; otherwise it is a plain ext4.
Result<EnablePlan> enable_new(const Context& context, const MkfsCommand& command,
                              const EnableOptions& options, bool& half_done);

}  // namespace atomic4::tools
