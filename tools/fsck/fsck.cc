#include "fsck/fsck.h"

#include <algorithm>
#include <future>
#include <set>

#include "base/text.h"
#include "check/volume_check.h"
#include "device/forwarding_device.h"
#include "device/ownership.h"
#include "ext4/journal.h"
#include "ext4/superblock_copies.h"
#include "fsck/log_step.h"
#include "fsck/protected_check.h"
#include "fsck/terminal.h"
#include "fsck/volume_state.h"
#include "guard/fuse_view.h"
#include "writer/adopt.h"

namespace atomic4::tools {

namespace {

// The steps and their order (RECOVERY.md).
class Fsck {
  public:
    Fsck(FsckSession& session, std::future<Result<std::string>>& e2fsck)
        : session_(session), runs_(session, e2fsck), check_(session, runs_), log_(session) {}

    // fsck(8)'s exit status, without the reboot. An error is said, and part of it.
    int run() {
        auto done = steps();
        if (!done && done.error().code == ECANCELED && session_.signals.pending()) {
            session_.stop_if_told();
        } else if (!done) {
            // Whoever comes next has to look.
            const bool matters =
                done.error().code == EUCLEAN || session_.corrected || check_.has_run();
            if (session_.writing() && matters) {
                if (const auto volume = session_.open(OpenFor::Write))
                    (void)(*volume)->mark_for_checking();
            }
            Error error = std::move(done).error();
            if (!error.message.starts_with(session_.command.device + ": "))
                error = std::move(error).with_context(session_.command.device);
            report_error("fsck.atomic4", error);
            session_.end(kFsckOperational);
        }
        int status = session_.corrected ? kFsckCorrected : 0;
        if (session_.ended()) return status | session_.ended_status();
        if (left_ || log_.left() || (runs_.status() & kFsckUncorrected) != 0)
            status |= kFsckUncorrected;
        return status;
    }

  private:
    Result<> steps() {
        if (is_clean()) return {};
        A4_CHECK(FuseView::available());
        // Before anything is changed; for those who only look it goes on beside.
        if (session_.writing()) A4_CHECK(runs_.find());
        A4_CHECK(is_supported());
        if (session_.writing()) A4_CHECK(write_repaired_superblock());
        const bool misleads = A4_TRY(primary_misleads());
        if (!misleads) A4_CHECK(replay_journal());
        if (session_.ended()) return {};
        bool opens = openable();
        if (opens && (misleads || A4_TRY(descriptors_mislead()))) opens = false;
        if (!opens) A4_CHECK(check_by_copy());
        if (session_.ended()) return {};
        auto done = protected_steps();
        // Too damaged for us to say whose blocks are whose.
        if (!done && done.error().code == EUCLEAN && opens && !check_.has_run()) {
            session_.talk.say(done.error().message);
            A4_CHECK(check_by_copy());
            if (session_.ended()) return {};
            done = protected_steps();
        }
        A4_CHECK(std::move(done));
        if (session_.ended()) return {};
        return look_again();
    }

    Result<> protected_steps() {
        A4_CHECK(log_.replay());
        if (session_.ended()) return {};
        return check_protected();
    }

    // Nothing to be done, and nobody wants it done all the same.
    bool is_clean() {
        if (session_.command.force || session_.command.superblock ||
            !session_.command.extended.empty())
            return false;
        const auto volume = session_.open(OpenFor::Inspect);
        if (!volume) return false;
        ext2_super_block& super = *(*volume)->fs()->super;
        if (ext2fs_has_feature_journal_needs_recovery(&super) || (*volume)->needs_checking() ||
            (*volume)->needs_replay() || is_due(super) || !(*volume)->gate_in_primary() ||
            !looks_sound(**volume))
            return false;
        for (const BackupSuperblock& backup : (*volume)->backups()) {
            if (!backup.gate) return false;
        }
        if (!check_log(**volume).findings.empty()) return false;
        const uint64_t blocks = ext2fs_blocks_count(&super);
        session_.talk.say(fmt::format(
            "{}clean, {}/{} files, {}/{} blocks",
            session_.command.mode == FsckMode::Preen ? "" : session_.command.device + ": ",
            super.s_inodes_count - super.s_free_inodes_count, super.s_inodes_count,
            blocks - ext2fs_free_blocks_count(&super), blocks));
        return true;
    }

    bool openable() {
        const auto volume = session_.open(OpenFor::Inspect);
        if (!volume) session_.talk.say(volume.error().message);
        return volume.has_value();
    }

    // That it has what atomic4 doesn't support is no damage.
    Result<> is_supported() {
        auto volume = session_.open(OpenFor::Inspect);
        if (!volume && volume.error().code == EOPNOTSUPP) return fail(std::move(volume).error());
        return {};
    }

    // A primary superblock that is known from its copies: e2fsck doesn't see it like that.
    Result<> write_repaired_superblock() {
        const auto is_right = [&] {
            const auto looked = session_.open(OpenFor::Inspect);
            return !looked || (*looked)->notices().empty();
        };
        if (is_right()) return {};
        // It may be refused for something else.
        auto opened = session_.open(OpenFor::Write);
        if (!opened && !is_right()) return fail(std::move(opened).error());
        session_.talk.say("the superblock had a bad checksum, and agrees with a copy: repaired");
        session_.corrected = true;
        return {};
    }

    // --- (1) the ext4 journal --------------------------------------------------------------------

    Result<> replay_journal() {
        const auto volume = session_.open(OpenFor::Inspect);
        if (!volume || !ext2fs_has_feature_journal_needs_recovery((*volume)->fs()->super))
            return {};
        if (!session_.writing()) {
            session_.talk.say(
                "its journal needs recovery: what is checked is the state before that");
            return {};
        }
        // e2fsck throws a journal away that it can't use, and then checks all, before anything is
        // protected.
        const bool described = descriptors_are_right(**volume);
        // -p goes by them as they stand.
        if (!described && session_.command.mode == FsckMode::Preen) {
            session_.talk.say("group descriptors are damaged, and its journal needs recovery");
            session_.stop_for_somebody();
            return {};
        }
        std::optional<std::string> damage;
        if (described) damage = A4_TRY(journal_damage(**volume));
        if (damage) return give_up_journal(*damage);
        if (!A4_TRY(runs_.would_replay())) {
            if (session_.ended()) return {};
            if (!described) return check_by_copy();
            session_.talk.say("e2fsck can't use its journal (-fn says why): nothing is done");
            session_.end(kFsckUncorrected);
            return {};
        }
        // By wrong descriptors it would have to go on until it has made them anew.
        if (!described) return check_by_copy();
        const GuardedExit exit = A4_TRY(runs_.replay());
        if (exit.refused && !exit.interrupted) {  // it wanted to go on
            session_.corrected = true;
            return {};
        }
        if (exit.interrupted || exit.signal != 0) {
            runs_.take(exit);
            return {};
        }
        if ((exit.status & ~(kFsckCorrected | kFsckReboot)) != 0) {
            session_.talk.say(
                "its journal could not be replayed: nothing else is done, since its metadata is "
                "not to be read without it");
            session_.end(exit.status);
            return {};
        }
        session_.corrected = true;
        return {};
    }

    // What stands there without it is the truth, then. e2fsck makes a new one.
    Result<> give_up_journal(const std::string& why) {
        session_.talk.say("its journal can't be replayed: " + why);
        if (session_.command.mode == FsckMode::Preen ||
            (session_.command.mode == FsckMode::Ask &&
             !session_.talk.ask("what it holds is lost", "Go on without it"))) {
            session_.stop_for_somebody();
            return {};
        }
        const auto volume =
            A4_TRY(Volume::open(lent(session_.device), options_for(OpenFor::Inspect)));
        ext2fs_clear_feature_journal_needs_recovery(volume->fs()->super);
        volume->fs()->super->s_state &= ~EXT2_ERROR_FS;  // set, and written, by this:
        session_.corrected = true;
        return volume->mark_for_checking();
    }

    // --- A volume that is too damaged for our passes ---------------------------------------------

    // Also sees whether records are live. Unset: it can't be told.
    Result<std::optional<ProtectedSet>> protected_by_copy() {
        const auto volume = A4_TRY(session_.open_by_copy(copy_used_));
        if (!volume) return std::nullopt;
        auto report = check_volume(*volume);
        if (!report && report.error().code == EIO) return fail(std::move(report).error());
        if (!report) return std::nullopt;
        runs_.records_are_live(live_session(*volume));
        return report->take_protected_set(volume->block_size());
    }

    // The primary superblock is of no use: e2fsck makes it anew from a copy, and the atomic files
    // that this copy shows stay where they are meanwhile.
    Result<> check_by_copy() {
        auto set = A4_TRY(protected_by_copy());
        if (!set) return check_unprotected();
        if (session_.command.mode == FsckMode::Preen && !session_.command.superblock) {
            session_.stop_for_somebody();
            return {};
        }
        session_.talk.say(fmt::format("{} protected as a copy of the superblock shows them",
                                      counted(set->files().size(), "atomic file")));
        const bool misleads = A4_TRY(primary_misleads());
        // By the user's -b, too.
        if (misleads || A4_TRY(descriptors_mislead())) runs_.the_primary_misleads();
        if (!session_.command.superblock) A4_CHECK(choose_superblock(misleads));
        if (session_.writing() &&
            (misleads || !session_.open(OpenFor::Inspect) || needs_recovery())) {
            // The journal first, as always. It may be all that is needed.
            if (A4_TRY(runs_.would_replay())) {
                const GuardedExit exit = A4_TRY(runs_.replay());
                const bool went_on = exit.refused && !exit.interrupted;
                if (!went_on &&
                    (exit.interrupted || exit.signal != 0 || exit.status >= kFsckUncorrected)) {
                    runs_.take(exit);
                    session_.end(exit.status & kFsckUncorrected);
                    return {};
                }
                session_.corrected = true;
                if (openable() && !A4_TRY(descriptors_mislead()) && !A4_TRY(primary_misleads())) {
                    runs_.go_by_primary();
                    return {};
                }
                set = A4_TRY(protected_by_copy());
                if (!set) return check_unprotected();
            }
            if (session_.ended()) return {};
        }
        return check_first(*set);
    }

    // e2fsck looks for a copy itself, where it doesn't believe the primary.
    Result<> choose_superblock(bool misleads) {
        const char* why = nullptr;
        if (A4_TRY(descriptors_mislead()))
            why =
                "its group descriptors are damaged: e2fsck goes by their copy behind the "
                "superblock";
        else if (misleads)
            why = "its superblock has a right checksum, but leads nowhere: e2fsck goes by the copy";
        if (why == nullptr) return {};
        session_.talk.say(fmt::format("{} at block {}", why, copy_used_.block));
        runs_.go_by(copy_used_);
        return {};
    }

    // e2fsck before our own passes, which can't work yet.
    Result<> check_first(const ProtectedSet& set) {
        A4_CHECK(check_.until_done([&]() -> Result<ProtectedSet> { return set; }));
        if (!session_.writing()) session_.end(kFsckUncorrected);
        if (session_.ended()) return {};
        if (!openable()) session_.end(kFsckUncorrected);
        runs_.go_by_primary();
        return {};
    }

    bool needs_recovery() {
        const auto volume = session_.open(OpenFor::Inspect);
        return volume && ext2fs_has_feature_journal_needs_recovery((*volume)->fs()->super);
    }

    // A primary superblock with a right checksum that doesn't lead to the root directory, where a
    // copy does: e2fsck would believe it, and make garbage of all inodes.
    Result<bool> primary_misleads() {
        {
            const auto volume = session_.open(OpenFor::Inspect);
            const bool usable = volume ? has_root(**volume) || !descriptors_are_right(**volume)
                                       : volume.error().code != EUCLEAN;
            if (usable) return false;  // or another matter
            ext2_super_block super{};
            A4_CHECK(session_.looking().read(ByteOffset(SUPERBLOCK_OFFSET),
                                             std::as_writable_bytes(std::span(&super, 1))));
            if (!superblock_checksum_is_right(super)) return false;
        }
        const auto copy = A4_TRY(session_.open_by_copy(copy_used_));
        return copy && has_root(*copy);
    }

    // Descriptors that are damaged, and say another place than their copies, or that inodes are not
    // in use which are: e2fsck would believe them. It has to go by the copy then, of which it
    // doesn't believe the latter.
    Result<bool> descriptors_mislead() {
        std::vector<TablePlaces> places;
        std::set<dgrp_t> wrong;
        bool hide = false;
        {
            const auto volume = session_.open(OpenFor::Inspect);
            if (!volume) return false;
            ext2_filsys fs = (*volume)->fs();
            for (dgrp_t group = 0; group < fs->group_desc_count; ++group) {
                if (!descriptor_is_right(fs, group))
                    wrong.insert(group);
                else
                    hide = hide || hides_group(fs, group);
            }
            if (wrong.empty() && !hide) return false;
            for (dgrp_t group = 0; group < fs->group_desc_count; ++group)
                places.push_back(table_places(fs, group));
        }
        const auto copy = A4_TRY(session_.open_by_copy(copy_used_));
        if (!copy || copy->fs()->group_desc_count != places.size() || !descriptors_are_right(*copy))
            return false;
        bool moved = false;
        for (dgrp_t group = 0; group < places.size(); ++group) {
            if (table_places(copy->fs(), group) == places[group]) continue;
            if (!wrong.contains(group)) return false;  // a copy that contradicts what is right
            moved = true;
        }
        return hide || moved;
    }

    Result<> check_unprotected() {
        if (session_.command.mode == FsckMode::Preen) {
            session_.stop_for_somebody();
            return {};
        }
        session_.talk.say("as it is, its atomic files can't be protected: e2fsck goes first");
        runs_.take(A4_TRY(runs_.check(ProtectedSet())));
        if (!session_.ended() && session_.writing() && !openable()) session_.end(kFsckUncorrected);
        return {};
    }

    // --- (3) our passes, around (4) and (5) ------------------------------------------------------

    Result<ProtectedSet> pass(RepairRound round) {
        if (session_.stop_if_told()) return ProtectedSet();
        const auto volume = A4_TRY(session_.open(OpenFor::Write));
        for (const std::string& notice : volume->notices()) session_.talk.say(notice);
        session_.corrected =
            session_.corrected || (session_.writing() && !volume->notices().empty());
        RepairOutcome out = A4_TRY(repair(*volume, session_.command.mode, round, session_.talk));
        // The next run has to look again.
        if (out.stopped && session_.writing()) A4_CHECK(volume->mark_for_checking());
        session_.corrected = session_.corrected || out.changed;
        left_ = out.left;
        later_ = later_ || out.later;
        log_is_broken_ = out.log_is_broken;
        released_.merge(out.released);
        if (out.stopped) session_.end(kFsckUncorrected);
        return std::move(out.set);
    }

    Result<> check_protected() {
        const ProtectedSet set = A4_TRY(check_.until_done([&]() -> Result<ProtectedSet> {
            ProtectedSet found = A4_TRY(pass(RepairRound::First));
            if (session_.stop_if_told() || !log_.records_left() || !session_.writing())
                return found;
            // Nobody may share blocks with their files any more; then layouts come, too.
            A4_CHECK(log_.replay());
            if (session_.ended() || log_.records_left()) return found;
            found = A4_TRY(pass(RepairRound::First));
            session_.stop_if_told();
            return found;
        }));
        // Names and counts of what was put back; and it may find fault with the xattrs.
        for (int runs = 0; !session_.ended() && check_.was_put_back(); ++runs) {
            const GuardedExit exit = A4_TRY(runs_.check(set));
            if (!exit.refused) runs_.take(exit);
            A4_CHECK(check_.put_back(set));
            if (exit.refused || (runs > 0 && check_.was_put_back())) session_.end(kFsckUncorrected);
        }
        return {};
    }

    // --- Afterwards ------------------------------------------------------------------------------

    Result<> look_again() {
        if (!session_.writing()) return log_.name_parts();
        // Nothing was wrong, and nothing has become so.
        if (!session_.corrected && !left_ && !later_ && !log_.records_left() &&
            runs_.status() == 0 && !A4_TRY(log_.is_unnamed()))
            return {};
        log_.e2fsck_is_done();
        // e2fsck may have cleared what led to it.
        if (log_.records_left() || (!log_.left() && A4_TRY(log_.is_lost())))
            A4_CHECK(log_.replay());
        if (session_.ended()) return {};
        {
            const auto volume = A4_TRY(session_.open(OpenFor::Write));
            A4_CHECK(adopt_released(*volume));
        }
        A4_CHECK(pass(RepairRound::Last));
        if (session_.stop_if_told()) return {};
        const bool renewed = A4_TRY(log_.renew(log_is_broken_));
        A4_CHECK(log_.name_parts());
        if (session_.ended()) return {};
        // What was left may have been the old log's.
        if (!A4_TRY(log_.is_left()) && renewed && left_) A4_CHECK(pass(RepairRound::Last));
        return {};
    }

    Result<> adopt_released(Volume& volume) {
        for (const auto& [number, unit] : released_) {
            auto adopted = adopt_file(volume, number, unit);
            if (adopted) {
                session_.talk.say(fmt::format("inode {}: adopted again", number));
                continue;
            }
            if (adopted.error().code == EIO) return fail(std::move(adopted).error());
            session_.talk.say(adopted.error().message + ": it stays released");
        }
        return {};
    }

    FsckSession& session_;
    E2fsckRuns runs_;
    ProtectedCheck check_;
    LogStep log_;
    SuperblockPlace copy_used_;
    std::map<ext2_ino_t, Bytes> released_;
    bool left_ = false;   // by our last pass
    bool later_ = false;  // something was left to e2fsck
    bool log_is_broken_ = false;
};

enum class Kind { Plain, Atomic4 };

Kind kind_of(Device& device, const FsckCommand& command) {
    ReadOnlyDevice looking(device);
    VolumeOptions options = options_for(OpenFor::Inspect);
    options.every_copy = true;
    const auto volume = Volume::open(lent(looking), options);
    const bool atomic4 = volume ? (*volume)->gate() || (*volume)->attr() ||
                                      (*volume)->attr_error() || (*volume)->needs_replay()
                                : has_gate_somewhere(looking, command);
    return atomic4 ? Kind::Atomic4 : Kind::Plain;
}

struct Opened {
    std::unique_ptr<Device> device;
    bool root = false;  // mounted read-only
};

Result<Opened> open_device(const Context& context, const FsckCommand& command) {
    const auto mount_point = mounted_on(command.device);
    if (command.mode == FsckMode::No) {
        if (mount_point) {
            context.warn(fmt::format("{} is mounted on {}: what is found may be in the making",
                                     command.device, *mount_point));
        }
        return Opened{
            A4_TRY(context.open_device(command.device, Access::ReadOnly, Sharing::Shared)), false};
    }
    if (is_read_only_root(command.device)) {
        return Opened{
            A4_TRY(context.open_device(command.device, Access::ReadWrite, Sharing::Shared)), true};
    }
    return Opened{
        A4_TRY(context.open_device(command.device, Access::ReadWrite, Sharing::Exclusive)), false};
}

}  // namespace

Result<int> run(const Context& context, const FsckCommand& command, const BecomeE2fsck& become) {
    // Before there is another thread.
    std::optional<HeldSignals> signals(std::in_place);
    // Asking it for its version takes as long as much of the rest.
    std::future<Result<std::string>> e2fsck = std::async(std::launch::async, find_e2fsck);
    // libext2fs takes what follows it for options: e2fsck would work on another file.
    if (command.device.find('?') != std::string::npos)
        return fail(EINVAL,
                    "{}: e2fsck can't be given a name with a question mark: rename it, or "
                    "use a symbolic link",
                    command.device);
    Opened opened = A4_TRY(open_device(context, command));
    if (kind_of(*opened.device, command) == Kind::Plain) {
        opened.device.reset();
        const std::string program = A4_TRY(e2fsck.get());
        signals.reset();
        return fail(become(program, command));
    }
    Terminal talk(context, command, *signals);
    FsckSession session(context, command, *opened.device, *signals, talk);
    int status = Fsck(session, e2fsck).run();
    signalfd_siginfo info;
    while (signals->take(info)) {  // its effect was this status, or it came too late
    }
    if (opened.root && (status & kFsckCorrected) != 0) {
        talk.say("REBOOT SYSTEM");
        status |= kFsckReboot;
    }
    return status;
}

}  // namespace atomic4::tools
