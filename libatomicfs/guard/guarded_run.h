// Runs a stock tool on a guarded view of a device, under the device's own name.
//
// The tool gets a mount namespace of its own, in which the view (fuse_view.h) lies over the
// device's path: whatever name of it the tool uses, it opens the view, its messages name the
// device, and nothing is left of it afterwards. A write that the view refuses ends the tool at once
// (SIGKILL): e2fsck -y would answer "ignore error?" with yes and go on (F17). If this process dies,
// so does the tool (PR_SET_PDEATHSIG).
//
// SIGINT and SIGTERM for this process go to the tool while it runs; what it then exits with is
// returned.
//
// Threads: one; the device belongs to the view until run_guarded() returns.
#pragma once

#include <string>
#include <vector>

#include "guard/guarded_device.h"

namespace atomic4 {

struct GuardedExit {
    int status = 0;            // exit(3)'s, if no signal
    int signal = 0;            // that ended it
    bool refused = false;      // ended by us: it wrote where it must not
    bool interrupted = false;  // we got SIGINT or SIGTERM meanwhile
};

// arguments: of execvp(3), the program first. path: the device's or image's, as the arguments name
// it (or a link to it). ENOENT: there is no such program; the view's own errors (no /dev/fuse).
// ELOOP: the view can't be laid over that name (/dev/fd/7).
enum class Output { Ours, Nowhere };
Result<GuardedExit> run_guarded(GuardedDevice& device, const std::string& path,
                                const std::vector<std::string>& arguments,
                                Output output = Output::Ours);

}  // namespace atomic4
