// What fsck does about a finding, in each of its modes: the one place where that is decided.
#pragma once

#include <functional>

#include "check/volume_check.h"

namespace atomic4 {

// As fsck(8)'s options: -p (or -a), -n, -y, none.
enum class FsckMode { Preen, No, Yes, Ask };

enum class Verdict {
    Note,   // nothing to be done
    Fix,    // now
    Later,  // by e2fsck; then it is looked at again
    Leave,  // it stays as it is
    Stop,   // somebody has to decide: -p ends
};

// ask: the finding's question, in mode Ask.
Verdict decide(FindingId id, FsckMode mode, const std::function<bool()>& ask);

}  // namespace atomic4
