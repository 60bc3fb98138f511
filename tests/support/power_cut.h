// Recovering what a power cut has left of a mounted volume, in each way that an operator has.
#pragma once

#include <string>

#include "redo/mounted_replay.h"
#include "support/fault_disk.h"
#include "support/write_history.h"

namespace atomic4::test {

enum class Recovery {
    PrivateMount,  // as mount.atomic4: mounted where nobody sees it, replayed, and only then shown
    PlainMount,    // mount -t ext4, and then the daemon starts
    Offline,       // e2fsck replays the journal, then atomic4ctl recover
    OfflineAfterMount,  // the kernel replays the journal, in a mount; then atomic4ctl recover
};
const char* to_text(Recovery way);

// What mount.atomic4 knows of the volume before it mounts it.
SessionStamp stamp_of(const Image& image);

struct Recovered {
    std::string complaint;  // empty: all is as it must be
    Image image;            // unmounted again, recovered
    // If asked for: what the last mount did to the disk.
    std::unique_ptr<CrashDevice> trace;
    uint64_t records = 0;  // replayed
    bool forced = false;   // see below
};

// Recovers, judges the files by the history, unmounts, and lets e2fsck look. dir: to mount on.
//
// Where the cut has interrupted a truncation (ext4 puts a file that a direct write is about to make
// longer among its orphans), the next mount finishes it and dates the file. Whoever wasn't there to
// see the time before then can't tell this from somebody's writing, and reports a conflict: all but
// PrivateMount. There the operator decides: `recover --force`.
Recovered recover_after_cut(const Image& image, Recovery way, const std::string& dir,
                            const WriteHistory& history, size_t position,
                            FaultDisk::Memory memory = FaultDisk::Memory::Forgets);

// A mount finishes the truncation of a file in there, and dates it.
bool has_orphans(const Image& image);

// The files of a history, in the mounted volume.
std::string judge_mounted(const std::string& dir, const WriteHistory& history, size_t position);

}  // namespace atomic4::test
