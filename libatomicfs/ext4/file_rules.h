// Which files take atomic writes at all: the rule, on what an owned volume and a mounted one both
// know of an inode. Callers with a whole volume use writer/write_rules.h (owned) or
// mounted_volume.h.
#pragma once

#include <sys/types.h>

#include <cstdint>

#include "base/result.h"

namespace atomic4 {

struct FileFacts {
    uint32_t inode = 0;
    uint32_t generation = 0;
    mode_t mode = 0;
    uint32_t flags = 0;  // i_flags; FS_IOC_GETFLAGS gives the same numbers
    bool is_log = false;
    bool is_lock = false;
    bool volume_journals_data = false;  // data=journal for every file, by default mount options
};

// EISDIR, EINVAL (not a regular file); EPERM: append-only, immutable, the redo log, the lock file;
// EOPNOTSUPP: encrypted, verity, compressed, inline data, generation 0; EIO: data=journal, by inode
// or by volume (RFC discussion point 4).
Result<> check_file_rules(const FileFacts& file);

}  // namespace atomic4
