// Whether an ext4 volume's own journal can be replayed, by its inode and its superblock: what
// e2fsck asks before it replays one (e2fsck/journal.c, e2fsck_journal_load), and throws it away
// otherwise. The replay is e2fsck's.
//
// Units: blocks of the filesystem. Threads: one.
#pragma once

#include <optional>
#include <string>

#include "ext4/volume.h"

namespace atomic4 {

// Why it can't; unset: it can, or is on a device of its own, or of a kind that this doesn't know.
// The group descriptors are right.
Result<std::optional<std::string>> journal_damage(Volume& volume);

}  // namespace atomic4
