// Stock e2fsck on the guarded view, as often as a run of fsck.atomic4 needs it.
#pragma once

#include <future>
#include <optional>
#include <string>
#include <vector>

#include "fsck/e2fsck.h"
#include "fsck/session.h"
#include "guard/guarded_run.h"
#include "redo/log_superblock.h"

namespace atomic4::tools {

class E2fsckRuns {
  public:
    // looking_for_it: find_e2fsck(), under way.
    E2fsckRuns(FsckSession& session, std::future<Result<std::string>>& looking_for_it)
        : session_(session), e2fscks_(session.command), looking_for_it_(looking_for_it) {}

    // That there is one that will do: before anything is changed.
    Result<> find();
    // From now on by this copy of the superblock, and the descriptors behind it.
    void go_by(const SuperblockPlace& copy);
    // The primary opens, but shows another volume than the copy that e2fsck goes by.
    void the_primary_misleads() { primary_misleads_ = true; }
    bool primary_misleads() const { return primary_misleads_; }
    // Records are live since this session began, although the primary superblock may not say so.
    void records_are_live(const std::optional<SessionStamp>& since) { live_since_ = since; }
    // The primary says all that again.
    void go_by_primary();

    // A check.
    Result<GuardedExit> check(const ProtectedSet& set) {
        return run_as(check_arguments, set, How::Checks);
    }
    // The journal's replay, and no more: e2fsck is ended (GuardedExit::refused) where it goes on.
    Result<GuardedExit> replay() { return run_as(journal_arguments, ProtectedSet(), How::Replays); }
    // Whether it would replay the journal. Writes nothing, and says nothing.
    Result<bool> would_replay();

    // What e2fsck said becomes the session's; its last run counts.
    void take(const GuardedExit& exit);
    int status() const { return status_; }
    // The write for which the last run was ended.
    const std::optional<Refusal>& refusal() const { return refusal_; }

  private:
    enum class How { Checks, Replays, Probes };
    using Arguments = std::vector<std::string> (*)(const std::string&, const FsckCommand&);
    Result<GuardedExit> run_as(Arguments arguments, const ProtectedSet& set, How how);

    FsckSession& session_;
    FsckCommand e2fscks_;  // the user's, perhaps by another copy of the superblock
    std::future<Result<std::string>>& looking_for_it_;
    std::string program_;
    std::optional<SessionStamp> live_since_;
    std::optional<Refusal> refusal_;
    bool primary_misleads_ = false;
    bool wrote_ = false;  // in its last run
    int status_ = 0;
};

}  // namespace atomic4::tools
