// The redo log in a run of fsck.atomic4: replayed before anything else is done about files (step
// 2), and looked at again when e2fsck has been there.
//
// Before e2fsck nothing of a log is given up that can't be read: it may be able to repair what
// leads to it. Nor is anything replayed into a file that others share blocks with, or that is
// damaged.
#pragma once

#include <set>

#include "check/volume_check.h"
#include "fsck/session.h"
#include "redo/log_reader.h"
#include "redo/replay.h"

namespace atomic4::tools {

class LogStep {
  public:
    explicit LogStep(FsckSession& session) : session_(session) {}

    Result<> replay();
    // The log and the lock file are where others look for them; afterwards, when directories are
    // whole. Without either nothing is to be named.
    Result<bool> is_unnamed();
    Result<> name_parts();
    // Records wait for files to be repaired.
    bool records_left() const { return records_left_; }

    // e2fsck has been there: what is damaged now stays so, and may be given up.
    void e2fsck_is_done() { last_ = true; }
    // A log that was given up, or whose file is broken for good, gets a successor. True: it has
    // one.
    Result<bool> renew(bool broken);
    // Whether something about it is left, at the last look.
    Result<bool> is_left();
    bool left() const { return left_ || unnamed_; }
    // Not even what comes before the damage can be read.
    Result<bool> is_lost();

  private:
    void note(FindingId id, std::string detail);
    void say_what_was_replayed(const ReplayReport& report);
    // True: to be done. Ends everything where -p has to stop.
    bool wants(const Finding& finding);
    // There were records, and no log is found in any way.
    Result<bool> records_are_nowhere();
    Result<CheckReport> look();
    // An atomic file by everything but what makes it one for a kernel: it may come back. One that
    // has lost its generation only gets that of its records.
    Result<bool> is_damaged_rather_than_gone(Volume& volume, ext2_ino_t number,
                                             uint32_t generation);
    // Also asks about records of files that e2fsck has made others of.
    Result<bool> is_safe_to_replay();
    // What is damaged on the way may be for e2fsck to repair first.
    Result<> repair();
    // One that can't be read is not written either: whose blocks those are isn't known.
    Result<> give_up();

    FsckSession& session_;
    std::set<ext2_ino_t> damaged_;  // files of live records, before e2fsck
    bool left_ = false;             // by the last look
    bool records_left_ = false;     // not replayed so far
    bool unnamed_ = false;          // as name_parts left it
    bool given_up_ = false;
    bool last_ = false;  // e2fsck has been there
};

// When the session began whose records are live, if there are any and that can be read.
std::optional<SessionStamp> live_session(Volume& volume);

}  // namespace atomic4::tools
