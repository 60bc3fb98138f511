// Replays the redo log through a mounted volume, before anyone is served (RECOVERY.md, "Replay on a
// mounted volume").
//
// The kernel has the file system: ext4's journal is recovered, files are reached by handle (inode
// and generation), and written through the page cache, so whatever anybody reads or has mapped
// shows the bytes at once. Unlike on an owned volume other programs may have written the same files
// since, so the question is always which bytes are newer. What is known:
//
//   - A live record's operation that was acknowledged had been placed. An operation that was not
//     may be found old or new, but whole.
//   - While a file had live records nobody else wrote to it unnoticed: who had it open for writing
//     made its writes wait for retirement, and who opened it had to wait for that (strict,
//     exclusive). Unless the guard was broken, which is what times are for.
//
// The kernel went on since the session (same mount, or unmounted cleanly): only the daemon died.
// What is placed stays placed, whoever has written since. An operation that isn't known to be
// placed is compared with the file: if all of it or nothing of it is there, it is left; if part of
// it, it is finished.
//
// After a crash, or with kLogInDoubt in the log (what was placed may not be stored): all live
// records are placed, in order. A record grows a file only if it did so when it was written; what
// lies beyond EOF otherwise is clipped.
//
// Conflicts: where somebody else may have written, a file whose ctime is later than its last
// record, by more than kClockSlackSeconds, is under suspicion. Bytes that differ there are not
// overwritten: the operation is reported, and stays in the log (policy Keep).
//
// The last writer of each byte range wins, so each byte is written once, through the page cache,
// and flushed at the end. Idempotent; at its end everything is durable, then the log is emptied. A
// corrupt log's valid records are replayed, and the log is left as evidence.
//
// Opens files read-write by handle: a fanotify guard that holds openers must let this process pass.
#pragma once

#include <optional>

#include "ext4/mounted_volume.h"
#include "redo/log_superblock.h"
#include "redo/replay.h"

namespace atomic4 {

// What the caller knows of the time between the record's session and now.
struct MountHistory {
    // The volume as it was before the mount that this process made itself, where nobody saw it.
    struct Before {
        SessionStamp stamp;
        bool clean = false;  // unmounted cleanly: no journal to recover
    };
    std::optional<Before> before_private_mount;
    // The guard that holds openers of files with live records was never released.
    bool guard_unbroken = false;
};

Result<SessionStamp> session_stamp(const MountedVolume& volume);

// Nothing is placed before the whole log was read and judged. Errors: the log's (log_reader.h),
// EIO. A file that can't be written (no space, immutable) is in the report, and the log kept.
Result<ReplayReport> replay_mounted(MountedVolume& volume, const LogContents& contents,
                                    OnConflict policy, const MountHistory& history);

// Reads the log, replays if anything is live or the log is corrupt, and reads it again: ready for a
// session. EUCLEAN: something was kept; the message says what, and what to do.
struct MountedLog {
    LogContents contents;
    std::optional<ReplayReport> replayed;
};
Result<MountedLog> recover_mounted_log(MountedVolume& volume, const MountHistory& history);

}  // namespace atomic4
