#include "fsck/protected_check.h"

#include "base/text.h"
#include "guard/atomic_files.h"

namespace atomic4::tools {

namespace {

// A write that the view refuses ends e2fsck: so often it is tried again where nothing was learned
// from that.
constexpr int kAttempts = 2;

Result<std::vector<FileChange>> changed_files(FsckSession& session, const ProtectedSet& set) {
    const auto volume = A4_TRY(session.open(OpenFor::Inspect));
    return changes_in(*volume, set);
}

}  // namespace

Result<ProtectedSet> ProtectedCheck::until_done(const NextSet& next) {
    int in_vain = 0;
    bool repeated = false;
    for (;;) {
        ProtectedSet set = A4_TRY(next());
        if (session_.ended()) return set;
        for (const ext2_ino_t number : at_fault_) set = set.with_only_data_of(number);
        const GuardedExit exit = A4_TRY(runs_.check(set));
        has_run_ = true;
        const bool done = !exit.refused || exit.interrupted;
        if (done) runs_.take(exit);
        // Also after an interruption: what is protected is protected.
        const bool whole = !exit.refused && !exit.interrupted && exit.signal == 0 &&
                           exit.status < kFsckOperational;
        // Until e2fsck has made it anew, a primary that misleads shows other files.
        if (session_.writing()) {
            const bool by_primary =
                whole || (!runs_.primary_misleads() && session_.open(OpenFor::Inspect));
            if (by_primary)
                A4_CHECK(put_back(set));
            else
                A4_CHECK(put_back_by_copy(set));
        }
        if (session_.ended()) return set;
        // Some damage e2fsck only gets to the end of in a second run: as with -y somebody who has
        // read its status would.
        if (done && session_.command.mode == FsckMode::Yes && !repeated &&
            (runs_.status() & kFsckUncorrected) != 0) {
            session_.talk.say("e2fsck left something uncorrected: it runs once more");
            repeated = true;
            continue;
        }
        if (done) return set;
        const bool learned = runs_.refusal() && runs_.refusal()->protection != Protection::Data &&
                             at_fault_.insert(runs_.refusal()->inode).second;
        if (!learned && ++in_vain == kAttempts) break;
    }
    session_.talk.say(
        "e2fsck wants to change what is protected, whatever is done about it: what else is "
        "wrong stays as it is");
    session_.end(kFsckUncorrected);
    return ProtectedSet();
}

Result<> ProtectedCheck::put_back_by_copy(const ProtectedSet& set) {
    was_put_back_ = false;
    if (at_fault_.empty()) return {};  // it had no leave to change any
    SuperblockPlace place;
    const auto seen = A4_TRY(session_.open_by_copy(place));
    Result<> done;
    if (seen)
        done = put_back_inodes(*seen, session_.device, set, at_fault_);
    else
        done = fail(EUCLEAN, "no copy of the superblock can be opened any more");
    if (!done && done.error().code == EIO) return done;
    if (!done) {
        session_.talk.say(done.error().message + ": inodes that e2fsck changed stay so");
        session_.end(kFsckUncorrected);
    }
    session_.corrected = true;
    return {};
}

Result<> ProtectedCheck::put_back(const ProtectedSet& set) {
    was_put_back_ = false;
    if (set.files().empty() || !session_.open(OpenFor::Inspect)) return {};
    const auto changes = A4_TRY(changed_files(session_, set));
    if (changes.empty()) return {};
    for (const FileChange& change : changes)
        session_.talk.say(printable(change.text) + (change.lost == Lost::Unit
                                                        ? ": it gets it back"
                                                        : ": it gets its blocks back"));
    const auto volume = A4_TRY(session_.open(OpenFor::Write));
    auto done = atomic4::put_back(*volume, set, changes);
    if (!done && done.error().code == EIO) return fail(std::move(done).error());
    if (!done) {
        session_.talk.say(done.error().message + ": it doesn't get them back");
        session_.end(kFsckUncorrected);
    }
    session_.corrected = was_put_back_ = true;
    return {};
}

}  // namespace atomic4::tools
