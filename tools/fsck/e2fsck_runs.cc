#include "fsck/e2fsck_runs.h"

#include "base/text.h"
#include "ext4/path.h"
#include "fsck/volume_state.h"

namespace atomic4::tools {

Result<> E2fsckRuns::find() {
    if (program_.empty()) program_ = A4_TRY(looking_for_it_.get());
    return {};
}

void E2fsckRuns::go_by(const SuperblockPlace& copy) {
    e2fscks_.superblock = std::to_string(copy.block);
    e2fscks_.block_size = std::to_string(copy.block_size.value());
}

void E2fsckRuns::go_by_primary() {
    e2fscks_ = session_.command;
    primary_misleads_ = false;
    live_since_.reset();
}

Result<bool> E2fsckRuns::would_replay() {
    const GuardedExit exit = A4_TRY(run_as(journal_probe_arguments, ProtectedSet(), How::Probes));
    if (exit.interrupted) take(exit);
    return exit.status == 0 && exit.signal == 0;
}

Result<GuardedExit> E2fsckRuns::run_as(Arguments arguments, const ProtectedSet& set, How how) {
    A4_CHECK(find());
    session_.context.out.flush();
    Device& device =
        how == How::Probes || !session_.writing() ? session_.looking() : session_.device;
    const bool writing = !device.read_only();
    const auto masked = A4_TRY(SuperblockMask::make(device, told_copy(e2fscks_)));
    if (live_since_) masked->records_are_live({live_since_->fs_mtime, live_since_->fs_mnt_count});
    GuardedDevice guarded(*masked, set);
    if (how == How::Replays) guarded.only_a_replay();
    const GuardedExit exit =
        A4_TRY(run_guarded(guarded, session_.command.device, arguments(program_, e2fscks_),
                           how == How::Probes ? Output::Nowhere : Output::Ours));
    wrote_ = guarded.writes() > 0;
    session_.corrected = session_.corrected || (guarded.failure() && wrote_);
    if (guarded.failure()) return fail(Error(*guarded.failure()).with_context("under e2fsck"));
    if (writing) A4_CHECK(session_.device.flush());
    refusal_.reset();
    if (guarded.refusals().empty()) return exit;
    refusal_ = guarded.refusals().front();
    if (!writing) return exit;
    // It may have got half-way.
    session_.corrected = session_.corrected || guarded.writes() > 0;
    if (const auto volume = session_.open(OpenFor::Write)) {
        A4_CHECK((*volume)->mark_for_checking());
        const auto paths = paths_of(**volume, {refusal_->inode});
        if (paths && paths->contains(refusal_->inode)) refusal_->path = paths->at(refusal_->inode);
    }
    session_.talk.say("e2fsck was ended: " + printable(refusal_->to_text()));
    return exit;
}

void E2fsckRuns::take(const GuardedExit& exit) {
    const bool before = session_.corrected;
    if ((exit.status & (kFsckCorrected | kFsckReboot)) != 0) session_.corrected = true;
    if (exit.interrupted) {
        session_.say_interrupted();
        return session_.end(kFsckCancelled);
    }
    if (exit.signal != 0) {
        session_.talk.say(fmt::format("e2fsck was ended by signal {}", exit.signal));
        return session_.end(kFsckOperational);
    }
    // So it ends where its options are wrong, too.
    if (exit.status == kFsckCorrected && !wrote_) {
        session_.corrected = before;
        return session_.end(kFsckUsage);
    }
    status_ = exit.status;
    if (exit.status >= kFsckOperational)
        session_.end(exit.status & ~(kFsckCorrected | kFsckReboot));
}

}  // namespace atomic4::tools
