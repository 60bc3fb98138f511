// Stock e2fsck, on a guarded view or, where nothing is to be guarded, instead of us.
#pragma once

#include <string>
#include <vector>

#include "fsck/fsck.h"
#include "guard/guarded_run.h"

namespace atomic4::tools {

// Where it is, and that it is not too old (1.45: before that -E no_optimize_extents is unknown).
// ENOENT, EOPNOTSUPP.
Result<std::string> find_e2fsck();

// With the user's options, on the view: the journal's replay. Without them, so that nothing but the
// journal can make it fail: a look whether it can be replayed.
std::vector<std::string> journal_arguments(const std::string& e2fsck, const FsckCommand& command);
std::vector<std::string> journal_probe_arguments(const std::string& e2fsck,
                                                 const FsckCommand& command);
std::vector<std::string> check_arguments(const std::string& e2fsck, const FsckCommand& command);

// A BecomeE2fsck: execv(2).
Error become_e2fsck(const std::string& e2fsck, const FsckCommand& command);

}  // namespace atomic4::tools
