// e2fsck's check, with atomic files where they are: steps 4 and 5 (RECOVERY.md).
#pragma once

#include <functional>
#include <set>

#include "fsck/e2fsck_runs.h"

namespace atomic4::tools {

class ProtectedCheck {
  public:
    ProtectedCheck(FsckSession& session, E2fsckRuns& runs) : session_(session), runs_(runs) {}

    // What is to be protected, looked up before each run; it may end the session.
    using NextSet = std::function<Result<ProtectedSet>()>;
    // e2fsck, until it comes to its end. Ended by us, since it wants to change what is protected,
    // it comes again: with what our passes find then, and, where it was an inode or a tree that
    // seemed sound to us, with leave to put that right; we see to it that the file stays where it
    // was. The set of the last run.
    Result<ProtectedSet> until_done(const NextSet& next);
    // Protected files that are no longer where they were get their blocks back, and what lost its
    // unit that; e2fsck has to see to the rest.
    Result<> put_back(const ProtectedSet& set);

    // While the primary superblock is of no use: the inodes and trees that e2fsck had leave to
    // change.
    Result<> put_back_by_copy(const ProtectedSet& set);

    bool has_run() const { return has_run_; }
    // After the last run.
    bool was_put_back() const { return was_put_back_; }

  private:
    FsckSession& session_;
    E2fsckRuns& runs_;
    std::set<ext2_ino_t> at_fault_;  // whose inode or tree it had to change
    bool has_run_ = false;
    bool was_put_back_ = false;
};

}  // namespace atomic4::tools
