// Puts the redo log's own file right by what its blocks and its superblocks say: its size, its
// flag, its unit, its type. For fsck, before anything that the log may hold is given up.
#pragma once

#include "ext4/volume.h"

namespace atomic4 {

// True: something was changed; the log may be readable now. False: there was nothing to change, or
// it can't be told what is right. The volume attribute is there.
Result<bool> repair_log_file(Volume& volume);

// The way to the log, when it isn't to be had by the attribute: makes the attribute lead to the
// file that has the log's id, or to the only one that is a log, wherever it is. True: changed.
Result<bool> repair_way_to_log(Volume& volume);

}  // namespace atomic4
