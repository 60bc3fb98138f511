// All atomic files of a volume, copied before somebody else works on it, and compared afterwards.
#pragma once

#include "guard/protected_set.h"

namespace atomic4 {

// The redo log is one of them. EUCLEAN: one of them is damaged, or an inode that may be one; what
// isn't sound can't be protected as it is.
Result<ProtectedSet> protect_atomic_files(Volume& volume);

// What is no longer as it was: "/db (inode 15): unit at block 16 has moved from 4096 to 9000". The
// volume may be in any state that can be opened (OpenFor::Inspect).
Result<std::vector<std::string>> changes_in(Volume& volume, const ProtectedSet& set);

}  // namespace atomic4
