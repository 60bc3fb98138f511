// Replays the live records of a volume's redo log (RECOVERY.md).
//
// Logical: each range names inode, generation and offset, resolved afresh. A file that is gone, or
// whose inode is another one now, is skipped and reported. A record grows a file only if it did so
// when it was written; otherwise what lies beyond EOF now is clipped.
//
// Conflicts: if the volume has been mounted since the record's session, and a file changed after
// that mount, replaying would overwrite newer bytes. Such a record is not replayed, is reported,
// and stays in the log until the user decides (Force or Discard).
//
// A session without the needs-replay bit was the daemon's, on the mounted volume
// (mounted_replay.h). Its records are replayed here too, but others may have written the same
// files: one that changed more than 2 seconds after its last record is a conflict; and if the
// volume was unmounted cleanly in that mount, records known to be placed are left as they are.
//
// A record that can't be replayed, for lack of space or because its file is damaged, is reported
// and the log kept; the others are replayed all the same. (Replayed again later, all go in order
// again.)
//
// A record that needs blocks which only groups with damaged bitmaps could give: those bitmaps are
// proved against all inodes first (ext4/bitmap_rebuild.h), since e2fsck can't go first while there
// are live records.
//
// Idempotent: interrupted anywhere and run again it gives the same. At its end everything is
// flushed, then the log is emptied, then the needs-replay bit is cleared. A corrupt log's valid
// records are replayed, and the log is left as evidence (unless forced or discarded).
#pragma once

#include <string>
#include <vector>

#include "ext4/volume.h"
#include "redo/log_reader.h"

namespace atomic4 {

// A file's time may be later than its last record's by so much without anyone else's doing: records
// are dated before they are logged, and placed afterwards.
inline constexpr uint64_t kClockSlackSeconds = 2;

enum class OnConflict { Keep, Force, Discard };

struct ReplayReport {
    uint64_t records = 0;  // replayed
    Bytes bytes;
    std::vector<std::string> skipped;    // files that are gone
    std::vector<std::string> conflicts;  // records kept (Keep), or overwritten (Force)
    std::vector<std::string> failed;     // records kept: no space, or a damaged file
    std::vector<std::string> damaged;    // of those, the ones whose file is damaged
    std::vector<std::string> rebuilt;    // block bitmaps
    std::vector<std::string> notices;    // what opening repaired (Volume::notices)
    uint64_t discarded = 0;              // records dropped
    LogEnd end = LogEnd::Clean;
    std::string end_detail;
    bool log_emptied = false;  // false: something was kept; the volume stays closed for writing
};

Result<ReplayReport> replay(Volume& volume, Device& log, const LogContents& contents,
                            OnConflict policy);

}  // namespace atomic4
