#include "fsck/fsck.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <ctime>
#include <future>
#include <iostream>
#include <set>

#include "base/held_signals.h"
#include "base/text.h"
#include "check/repair.h"
#include "device/forwarding_device.h"
#include "device/ownership.h"
#include "device/read_only_device.h"
#include "ext4/errcode.h"
#include "ext4/format.h"
#include "ext4/journal.h"
#include "ext4/path.h"
#include "ext4/transaction.h"
#include "ext4/xattr.h"
#include "fsck/e2fsck.h"
#include "guard/atomic_files.h"
#include "guard/fuse_view.h"
#include "redo/log_file_repair.h"
#include "redo/log_reader.h"
#include "redo/volume_log.h"
#include "writer/adopt.h"
#include "writer/enable.h"
#include "writer/open_volume.h"

namespace atomic4::tools {

namespace {

// A write that the view refuses ends e2fsck: so often it is tried again where nothing was learned
// from that.
constexpr int kAttempts = 2;

constexpr const char* kInterrupted = "interrupted: what is left is done by the next run";

// Progress is e2fsck's: lines of "pass done all device" on a descriptor, of which ours have pass 0
// (systemd-fsck and other readers take that for the beginning), or a line on the terminal that is
// written over.
class Terminal final : public FsckTalk {
  public:
    Terminal(const Context& context, const FsckCommand& command, const HeldSignals& signals)
        : context_(context),
          command_(command),
          signals_(signals),
          prefix_(command.mode == FsckMode::Preen ? command.device + ": " : "") {}
    void say(const std::string& line) override {
        clear_bar();
        context_.print(prefix_ + line + "\n");
    }
    bool progress(uint64_t done, uint64_t all) override {
        show_progress(done, all);
        return !signals_.pending();
    }
    bool ask(const std::string& line, const std::string& question) override {
        clear_bar();
        context_.out << line << ". " << question << "? (y/n) " << std::flush;
        std::string answer;
        while (answers(answer)) {
            if (answer.starts_with("y") || answer.starts_with("Y")) return true;
            if (answer.starts_with("n") || answer.starts_with("N")) return false;
            context_.out << "y or n? " << std::flush;
        }
        return false;
    }

  private:
    void show_progress(uint64_t done, uint64_t all) {
        const int per_mille = all == 0 ? 1000 : static_cast<int>(done * 1000 / all);
        if (!command_.progress || (per_mille == said_ && done != all)) return;
        said_ = per_mille;
        if (*command_.progress > 0) {
            const std::string line = fmt::format("0 {} {} {}\n", done, all, command_.device);
            // Who doesn't listen any more is no reason to stop.
            struct sigaction ignored{};
            struct sigaction before{};
            ignored.sa_handler = SIG_IGN;
            ::sigaction(SIGPIPE, &ignored, &before);
            (void)!::write(*command_.progress, line.data(), line.size());
            ::sigaction(SIGPIPE, &before, nullptr);
        } else if (*command_.progress == 0) {
            context_.print(fmt::format("\r{}: atomic files {}.{}%", command_.device, per_mille / 10,
                                       per_mille % 10));
            context_.out.flush();
            bar_ = true;
            if (done == all) clear_bar();
        }
    }
    // A line, unless a signal comes first.
    bool answers(std::string& line) {
        std::array<pollfd, 2> events{{{STDIN_FILENO, POLLIN, 0}, {signals_.fd(), POLLIN, 0}}};
        while (std::cin.rdbuf()->in_avail() <= 0 && events[0].revents == 0) {
            if (::poll(events.data(), events.size(), -1) < 0 && errno != EINTR) return false;
            if (events[1].revents != 0) return false;
        }
        return static_cast<bool>(std::getline(std::cin, line));
    }
    void clear_bar() {
        if (!bar_) return;
        context_.print("\r" + std::string(command_.device.size() + 21, ' ') + "\r");
        context_.out.flush();
        bar_ = false;
    }

    const Context& context_;
    const FsckCommand& command_;
    const HeldSignals& signals_;
    std::string prefix_;
    int said_ = -1;  // per mille
    bool bar_ = false;
};

VolumeOptions options_for(OpenFor purpose) {
    VolumeOptions options;
    options.purpose = purpose;
    options.require_atomic4 = false;
    options.damaged_too = true;
    options.may_use_reserved = true;
    return options;
}

std::optional<uint64_t> number_in(const std::optional<std::string>& text) {
    uint64_t number = 0;
    if (!text) return std::nullopt;
    const auto end = text->data() + text->size();
    const auto [stop, error] = std::from_chars(text->data(), end, number);
    if (error != std::errc() || stop != end) return std::nullopt;
    return number;
}

// By -b and -B. What they don't say, or can't, is e2fsck's to find out, or to complain of.
std::optional<SuperblockPlace> told_copy(const FsckCommand& command) {
    const auto block = number_in(command.superblock);
    if (!block) return std::nullopt;
    return SuperblockPlace{*block, Bytes(number_in(command.block_size).value_or(0))};
}

bool has_gate(const ext2_super_block& super) {
    return super.s_magic == EXT2_SUPER_MAGIC &&
           (super.s_feature_compat & kFeatureCompatAtomic4) != 0;
}

// By the primary superblock and the copies, of a volume that can't be opened.
bool has_gate_somewhere(Device& device, const FsckCommand& command) {
    ext2_super_block super{};
    if (device.read(ByteOffset(1024), std::as_writable_bytes(std::span(&super, 1))) &&
        has_gate(super))
        return true;
    const auto copies = find_backup_superblocks(device, told_copy(command));
    return copies && std::ranges::any_of(
                         *copies, [](const FoundSuperblock& copy) { return has_gate(copy.super); });
}

// e2fsck's reasons for a check that nobody has asked for.
bool is_due(const ext2_super_block& super) {
    if (super.s_max_mnt_count > 0 && super.s_mnt_count >= super.s_max_mnt_count) return true;
    if (super.s_checkinterval == 0) return false;
    const auto now = static_cast<uint64_t>(std::time(nullptr));
    return now < super.s_lastcheck || now >= uint64_t{super.s_lastcheck} + super.s_checkinterval;
}

class Fsck {
  public:
    Fsck(const Context& context, const FsckCommand& command, Device& device,
         std::future<Result<std::string>>& e2fsck, const HeldSignals& signals, FsckTalk& talk)
        : context_(context),
          command_(command),
          e2fscks_(command),
          device_(device),
          looking_for_e2fsck_(e2fsck),
          signals_(signals),
          talk_(talk) {}

    // fsck(8)'s exit status, without the reboot. An error is said, and part of it.
    int run() {
        auto done = steps();
        if (!done && done.error().code == ECANCELED && signals_.pending()) {
            stop_if_told();
        } else if (!done) {
            // Whoever comes next has to look.
            const bool matters = done.error().code == EUCLEAN || corrected_ || e2fsck_has_run_;
            if (writing() && matters) {
                if (const auto volume = open(OpenFor::Write)) (void)(*volume)->mark_for_checking();
            }
            report_error("fsck.atomic4", std::move(done).error().with_context(command_.device));
            end(kFsckOperational);
        }
        int status = corrected_ ? kFsckCorrected : 0;
        if (ended_) return status | ended_status_;
        if (left_ || log_left_ || (e2fsck_status_ & kFsckUncorrected) != 0)
            status |= kFsckUncorrected;
        return status;
    }

  private:
    Result<> steps() {
        if (is_clean()) return {};
        A4_CHECK(FuseView::available());
        // Before anything is changed; for those who only look it goes on beside.
        if (writing()) A4_CHECK(find());
        A4_CHECK(is_supported());
        if (writing()) write_repaired_superblock();
        A4_CHECK(replay_journal());
        if (ended_) return {};
        if (ended_) return {};
        bool opens = openable();
        if (opens && A4_TRY(tables_are_misplaced())) opens = false;
        if (!opens) A4_CHECK(check_by_copy());
        if (ended_) return {};
        auto done = protected_steps();
        // Too damaged for us to say whose blocks are whose.
        if (!done && done.error().code == EUCLEAN && opens && !e2fsck_has_run_) {
            talk_.say(done.error().message);
            A4_CHECK(check_by_copy());
            if (ended_) return {};
            done = protected_steps();
        }
        A4_CHECK(std::move(done));
        if (ended_) return {};
        return look_again();
    }

    Result<> protected_steps() {
        A4_CHECK(replay_log());
        if (ended_) return {};
        return check_protected();
    }

    Result<> find() {
        if (e2fsck_.empty()) e2fsck_ = A4_TRY(looking_for_e2fsck_.get());
        return {};
    }

    // Between steps.
    bool stop_if_told() {
        if (ended_ || !signals_.pending()) return ended_;
        talk_.say(kInterrupted);
        end(kFsckCancelled);
        return true;
    }

    bool writing() const { return command_.mode != FsckMode::No; }

    void end(int status) {
        ended_status_ |= status;
        ended_ = true;
    }

    void stop_for_somebody() {
        talk_.say("UNEXPECTED INCONSISTENCY; RUN fsck MANUALLY. (i.e., without -a or -p options)");
        end(kFsckUncorrected);
    }

    Result<std::unique_ptr<Volume>> open(OpenFor purpose) {
        if (purpose == OpenFor::Write && writing())
            return Volume::open(lent(device_), options_for(OpenFor::Write));
        looking_.emplace(device_);
        return Volume::open(lent(*looking_), options_for(OpenFor::Inspect));
    }

    // Nothing to be done, and nobody wants it done all the same.
    bool is_clean() {
        if (command_.force || command_.superblock || !command_.extended.empty()) return false;
        const auto volume = open(OpenFor::Inspect);
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
        talk_.say(fmt::format("{}clean, {}/{} files, {}/{} blocks",
                              command_.mode == FsckMode::Preen ? "" : command_.device + ": ",
                              super.s_inodes_count - super.s_free_inodes_count,
                              super.s_inodes_count, blocks - ext2fs_free_blocks_count(&super),
                              blocks));
        return true;
    }

    // What e2fsck looks at before it calls a volume clean.
    static bool looks_sound(Volume& volume) {
        ext2_filsys fs = volume.fs();
        ext2_super_block& super = *fs->super;
        if (ext2fs_free_blocks_count(&super) > ext2fs_blocks_count(&super) ||
            super.s_free_inodes_count > super.s_inodes_count || !volume.notices().empty() ||
            !descriptors_are_right(volume))
            return false;
        if (!ext2fs_has_feature_journal(&super) || super.s_journal_inum == 0) return true;
        ext2_inode journal{};
        return super.s_journal_inum == EXT2_JOURNAL_INO &&
               ext2fs_read_inode(fs, EXT2_JOURNAL_INO, &journal) == 0 &&
               LINUX_S_ISREG(journal.i_mode) && journal.i_links_count != 0;
    }

    bool openable() {
        const auto volume = open(OpenFor::Inspect);
        if (!volume) talk_.say(volume.error().message);
        return volume.has_value();
    }

    // That it has what atomic4 doesn't support is no damage.
    Result<> is_supported() {
        auto volume = open(OpenFor::Inspect);
        if (!volume && volume.error().code == EOPNOTSUPP) return fail(std::move(volume).error());
        return {};
    }

    // A primary superblock that is known from its copies: e2fsck doesn't see it like that.
    void write_repaired_superblock() {
        {
            const auto looked = open(OpenFor::Inspect);
            if (!looked || (*looked)->notices().empty()) return;
        }
        // Whatever else it is refused for.
        (void)open(OpenFor::Write);
        talk_.say("the superblock had a bad checksum, and agrees with a copy: repaired");
        corrected_ = true;
    }

    // --- e2fsck ----------------------------------------------------------------------------------

    using Arguments = std::vector<std::string> (*)(const std::string&, const FsckCommand&);
    Result<GuardedExit> run_e2fsck(Arguments arguments, const ProtectedSet& set) {
        return run_e2fsck(arguments, set, writing(), Output::Ours, false);
    }

    // Without writing and without a word.
    Result<bool> would_replay() {
        const GuardedExit exit = A4_TRY(
            run_e2fsck(journal_probe_arguments, ProtectedSet(), false, Output::Nowhere, false));
        if (exit.interrupted) take(exit);
        return exit.status == 0 && exit.signal == 0;
    }

    Result<GuardedExit> run_e2fsck(Arguments arguments, const ProtectedSet& set, bool writing,
                                   Output output, bool only_a_replay) {
        A4_CHECK(find());
        context_.out.flush();
        std::unique_ptr<SuperblockMask> masked;
        if (writing) {
            masked = A4_TRY(SuperblockMask::make(device_, told_copy(e2fscks_)));
        } else {
            looking_.emplace(device_);
            masked = A4_TRY(SuperblockMask::make(*looking_, told_copy(e2fscks_)));
        }
        if (records_seen_)
            masked->records_are_live({records_seen_->fs_mtime, records_seen_->fs_mnt_count});
        GuardedDevice guarded(*masked, set);
        if (only_a_replay) guarded.only_a_replay();
        const GuardedExit exit =
            A4_TRY(run_guarded(guarded, command_.device, arguments(e2fsck_, e2fscks_), output));
        wrote_ = guarded.writes() > 0;
        if (writing) A4_CHECK(device_.flush());
        refusal_.reset();
        if (guarded.refusals().empty()) return exit;
        refusal_ = guarded.refusals().front();
        if (!writing) return exit;
        // It may have got half-way.
        corrected_ = corrected_ || guarded.writes() > 0;
        if (const auto volume = open(OpenFor::Write)) {
            A4_CHECK((*volume)->mark_for_checking());
            const auto paths = paths_of(**volume, {refusal_->inode});
            if (paths && paths->contains(refusal_->inode))
                refusal_->path = paths->at(refusal_->inode);
        }
        talk_.say("e2fsck was ended: " + printable(refusal_->to_text()));
        return exit;
    }

    // What e2fsck said; its last run counts.
    void take(const GuardedExit& exit) {
        const bool before = corrected_;
        if ((exit.status & (kFsckCorrected | kFsckReboot)) != 0) corrected_ = true;
        if (exit.interrupted) {
            talk_.say(kInterrupted);
            return end(kFsckCancelled);
        }
        if (exit.signal != 0) {
            talk_.say(fmt::format("e2fsck was ended by signal {}", exit.signal));
            return end(kFsckOperational);
        }
        // So it ends where its options are wrong, too.
        if (exit.status == kFsckCorrected && !wrote_) {
            corrected_ = before;
            return end(kFsckUsage);
        }
        e2fsck_status_ = exit.status;
        if (exit.status >= kFsckOperational) end(exit.status & ~(kFsckCorrected | kFsckReboot));
    }

    // --- (1) the ext4 journal --------------------------------------------------------------------

    Result<> replay_journal() {
        const auto volume = open(OpenFor::Inspect);
        if (!volume || !ext2fs_has_feature_journal_needs_recovery((*volume)->fs()->super))
            return {};
        if (!writing()) {
            talk_.say("its journal needs recovery: what is checked is the state before that");
            return {};
        }
        // e2fsck throws a journal away that it can't use, and then checks all, before anything is
        // protected.
        const bool described = descriptors_are_right(**volume);
        if (!described && command_.mode == FsckMode::Preen) {  // which goes by them as they stand
            talk_.say("group descriptors are damaged, and its journal needs recovery");
            stop_for_somebody();
            return {};
        }
        std::optional<std::string> damage;
        if (described) damage = A4_TRY(journal_damage(**volume));
        if (damage) return give_up_journal(*damage);
        if (!A4_TRY(would_replay())) {
            if (ended_) return {};
            if (!described) return check_by_copy();
            talk_.say("e2fsck can't use its journal (-fn says why): nothing is done");
            end(kFsckUncorrected);
            return {};
        }
        // By wrong descriptors it would have to go on until it has made them anew.
        if (!described) return check_by_copy();
        const GuardedExit exit =
            A4_TRY(run_e2fsck(journal_arguments, ProtectedSet(), true, Output::Ours, true));
        if (exit.refused && !exit.interrupted) {  // it wanted to go on
            corrected_ = true;
            return {};
        }
        if (exit.interrupted || exit.signal != 0) {
            take(exit);
            return {};
        }
        if ((exit.status & ~(kFsckCorrected | kFsckReboot)) != 0) {
            talk_.say(
                "its journal could not be replayed: nothing else is done, since its metadata is "
                "not to be read without it");
            end(exit.status);
            return {};
        }
        corrected_ = true;
        return {};
    }

    // What stands there without it is the truth, then. e2fsck makes a new one.
    Result<> give_up_journal(const std::string& why) {
        talk_.say("its journal can't be replayed: " + why);
        if (command_.mode == FsckMode::Preen ||
            (command_.mode == FsckMode::Ask &&
             !talk_.ask("what it holds is lost", "Go on without it"))) {
            stop_for_somebody();
            return {};
        }
        VolumeOptions options = options_for(OpenFor::Inspect);
        const auto volume = A4_TRY(Volume::open(lent(device_), options));
        ext2fs_clear_feature_journal_needs_recovery(volume->fs()->super);
        volume->fs()->super->s_state &= ~EXT2_ERROR_FS;  // set, and written, by this:
        corrected_ = true;
        return volume->mark_for_checking();
    }

    static bool descriptor_is_right(ext2_filsys fs, dgrp_t group) {
        const uint64_t end = ext2fs_blocks_count(fs->super);
        const auto inside = [&](uint64_t first, uint64_t count) {
            return first >= fs->super->s_first_data_block && first < end && count <= end - first;
        };
        return (!ext2fs_has_group_desc_csum(fs) || ext2fs_group_desc_csum_verify(fs, group) != 0) &&
               inside(ext2fs_block_bitmap_loc(fs, group), 1) &&
               inside(ext2fs_inode_bitmap_loc(fs, group), 1) &&
               inside(ext2fs_inode_table_loc(fs, group), fs->inode_blocks_per_group);
    }

    static bool descriptors_are_right(Volume& volume) {
        for (dgrp_t group = 0; group < volume.fs()->group_desc_count; ++group) {
            if (!descriptor_is_right(volume.fs(), group)) return false;
        }
        return true;
    }

    // --- A volume that is too damaged for our passes ---------------------------------------------

    // As a copy of the superblock and its descriptors show it; null if there is none that does.
    Result<std::unique_ptr<Volume>> open_by_copy() {
        looking_.emplace(device_);
        for (const FoundSuperblock& copy :
             A4_TRY(find_backup_superblocks(*looking_, told_copy(command_)))) {
            VolumeOptions options = options_for(OpenFor::Inspect);
            options.superblock = copy.place;
            auto volume = Volume::open(lent(*looking_), options);
            if (!volume) continue;
            copy_used_ = copy.place;
            return volume;
        }
        return nullptr;
    }

    static std::optional<SessionStamp> live_session(Volume& volume) {
        if (!volume.attr()) return std::nullopt;
        const auto log = open_log_device(volume);
        if (!log) return std::nullopt;
        const auto contents = read_log(**log, volume.attr()->log_id);
        if (!contents || contents->live.empty()) return std::nullopt;
        return contents->superblock.stamp;
    }

    // Also sees whether records are live. Unset: it can't be told.
    Result<std::optional<ProtectedSet>> protected_by_copy() {
        const auto volume = A4_TRY(open_by_copy());
        if (!volume) return std::nullopt;
        auto report = check_volume(*volume);
        if (!report && report.error().code == EIO) return fail(std::move(report).error());
        if (!report) return std::nullopt;
        records_seen_ = live_session(*volume);
        return report->take_protected_set(volume->block_size());
    }

    // The primary superblock is of no use: e2fsck makes it anew from a copy, and the atomic files
    // that this copy shows stay where they are meanwhile.
    Result<> check_by_copy() {
        auto set = A4_TRY(protected_by_copy());
        if (!set) return check_unprotected();
        if (command_.mode == FsckMode::Preen && !command_.superblock) {
            stop_for_somebody();
            return {};
        }
        talk_.say(fmt::format("{} protected as a copy of the superblock shows them",
                              counted(set->files().size(), "atomic file")));
        if (!command_.superblock && A4_TRY(tables_are_misplaced())) {
            talk_.say(
                fmt::format("its group descriptors are damaged: e2fsck goes by their copy "
                            "behind the superblock at block {}",
                            copy_used_.block));
            e2fscks_.superblock = std::to_string(copy_used_.block);
            e2fscks_.block_size = std::to_string(copy_used_.block_size.value());
        }
        if (writing() && (!open(OpenFor::Inspect) || needs_recovery())) {
            // The journal first, as always. It may be all that is needed.
            if (A4_TRY(would_replay())) {
                const GuardedExit exit =
                    A4_TRY(run_e2fsck(journal_arguments, ProtectedSet(), true, Output::Ours, true));
                const bool went_on = exit.refused && !exit.interrupted;
                if (!went_on &&
                    (exit.interrupted || exit.signal != 0 || exit.status >= kFsckUncorrected)) {
                    take(exit);
                    end(exit.status & kFsckUncorrected);
                    return {};
                }
                corrected_ = true;
                if (openable() && !A4_TRY(tables_are_misplaced())) return it_is_there_again();
                set = A4_TRY(protected_by_copy());
                if (!set) return check_unprotected();
            }
            if (ended_) return {};
        }
        return check_first(*set);
    }

    // e2fsck before our own passes, which can't work yet.
    Result<> check_first(const ProtectedSet& set) {
        A4_CHECK(check_until_done([&]() -> Result<ProtectedSet> { return set; }));
        if (!writing()) end(kFsckUncorrected);
        if (ended_) return {};
        if (!openable()) end(kFsckUncorrected);
        return it_is_there_again();
    }

    Result<> it_is_there_again() {
        records_seen_.reset();  // the primary says it now
        e2fscks_ = command_;
        return {};
    }

    bool needs_recovery() {
        const auto volume = open(OpenFor::Inspect);
        return volume && ext2fs_has_feature_journal_needs_recovery((*volume)->fs()->super);
    }

    // Descriptors that are damaged, and say another place than their copies: e2fsck would believe
    // them where they only have a wrong checksum. It has to go by the copy then.
    Result<bool> tables_are_misplaced() {
        std::vector<std::array<uint64_t, 3>> places;
        std::set<dgrp_t> wrong;
        {
            const auto volume = open(OpenFor::Inspect);
            if (!volume || descriptors_are_right(**volume)) return false;
            for (dgrp_t group = 0; group < (*volume)->fs()->group_desc_count; ++group) {
                places.push_back(places_of((*volume)->fs(), group));
                if (!descriptor_is_right((*volume)->fs(), group)) wrong.insert(group);
            }
        }
        const auto copy = A4_TRY(open_by_copy());
        if (!copy || copy->fs()->group_desc_count != places.size() || !descriptors_are_right(*copy))
            return false;
        return std::ranges::any_of(
            wrong, [&](dgrp_t group) { return places_of(copy->fs(), group) != places[group]; });
    }

    static std::array<uint64_t, 3> places_of(ext2_filsys fs, dgrp_t group) {
        return {ext2fs_block_bitmap_loc(fs, group), ext2fs_inode_bitmap_loc(fs, group),
                ext2fs_inode_table_loc(fs, group)};
    }

    Result<> check_unprotected() {
        if (command_.mode == FsckMode::Preen) {
            stop_for_somebody();
            return {};
        }
        talk_.say("as it is, its atomic files can't be protected: e2fsck goes first");
        take(A4_TRY(run_e2fsck(check_arguments, ProtectedSet())));
        if (!ended_ && writing() && !openable()) end(kFsckUncorrected);
        return {};
    }

    // --- (2) the redo log ------------------------------------------------------------------------

    void note(FindingId id, std::string detail) {
        judge({id, "redo log", std::move(detail)}, command_.mode, talk_);
    }

    void say_what_was_replayed(const ReplayReport& report) {
        if (report.records > 0) {
            note(FindingId::RecordsReplayed,
                 fmt::format("{}, {} bytes", counted(report.records, "record"), report.bytes));
        }
        for (const std::string& line : report.skipped) note(FindingId::RecordsOfGoneFiles, line);
        if (report.end == LogEnd::TornTail) note(FindingId::TornTail, report.end_detail);
        for (const std::string& line : report.rebuilt) talk_.say(line);
        for (const std::string& line : report.failed) note(FindingId::RecordNotReplayed, line);
        for (const std::string& line : report.notices) talk_.say(line);
    }

    // True: to be done. Ends everything where -p has to stop.
    bool wants(const Finding& finding) {
        const Verdict verdict = judge(finding, command_.mode, talk_);
        if (verdict == Verdict::Stop) end(kFsckUncorrected);
        if (verdict == Verdict::Leave) log_left_ = true;
        return verdict == Verdict::Fix;
    }

    // Before e2fsck nothing of a log is given up that can't be read: it may be able to repair what
    // leads to it. Nor is anything replayed into a file that others share blocks with.
    Result<> replay_log() {
        if (stop_if_told()) return {};
        log_left_ = false;
        records_left_ = false;
        bool replay = false;
        bool discard = false;
        for (const Finding& finding : A4_TRY(look_at_log()).findings) {
            if (finding.id == FindingId::LogUnknown) {
                judge(finding, command_.mode, talk_);
                end(kFsckOperational);
                return {};
            }
            const bool fix = wants(finding);
            if (ended_) return {};
            if (fix &&
                (finding.id == FindingId::LogDamaged || finding.id == FindingId::AttributeDamaged))
                A4_CHECK(repair_log());
            if (fix && finding.id == FindingId::AttributeDamaged && A4_TRY(records_are_nowhere())) {
                discard =
                    wants({FindingId::LogDamaged, "redo log", "nothing leads to it"}) || discard;
                if (ended_) return {};
            }
            discard = discard || (fix && may_discard(finding.id));
            // There is none that could be lost, or it would have been found by its name.
            log_given_up_ = log_given_up_ || (fix && finding.id == FindingId::AttributeDamaged);
            replay = replay || fix;
        }
        if (!replay) return {};
        if (!A4_TRY(is_safe_to_replay())) {
            records_left_ = true;
            return {};
        }
        if (ended_) return {};
        auto report = recover_damaged(lent(device_), OnConflict::Keep);
        if (!report && report.error().code == EIO) return fail(std::move(report).error());
        if (!report) {
            talk_.say(report.error().message);
            records_left_ = true;
            if (discard && last_) return give_up_log();
            return {};
        }
        corrected_ = corrected_ || report->records > 0 || report->log_emptied;
        say_what_was_replayed(*report);
        records_left_ = !report->failed.empty();
        for (const std::string& line : report->conflicts) {
            if (wants({FindingId::RecordConflict, "redo log", line})) discard = true;
            if (ended_) return {};
        }
        if (discard && (last_ || !records_left_)) return give_up_log();
        return {};
    }

    // There were some, and no log is found in any way.
    Result<bool> records_are_nowhere() {
        const auto volume = A4_TRY(open(OpenFor::Inspect));
        return volume->needs_replay() && !volume->attr();
    }

    static bool may_discard(FindingId id) {
        return id == FindingId::LogDamaged || id == FindingId::LogCorrupt ||
               id == FindingId::LogSuperblock;
    }

    Result<CheckReport> look_at_log() {
        const auto volume = A4_TRY(open(OpenFor::Inspect));
        return check_log(*volume);
    }

    // An atomic file by everything but what makes it one for a kernel: it may come back. One that
    // has lost its generation only gets that of its records.
    Result<bool> is_damaged_rather_than_gone(Volume& volume, ext2_ino_t number,
                                             uint32_t generation) {
        ext2_inode inode{};
        if (last_ || ext2fs_read_inode(volume.fs(), number, &inode) != 0) return false;
        if ((inode.i_flags & kInodeFlagAtomic) == 0 || inode.i_dtime != 0) return false;
        const auto unit = read_xattr(volume.fs(), number, kUnitXattr);
        if (!unit || !unit->has_value()) return false;
        if (inode.i_generation == generation) return true;
        if (inode.i_generation != 0) return false;
        if (!wants({FindingId::GenerationZero, "redo log",
                    fmt::format("inode {}, by its records {}", number, generation)}))
            return true;
        const auto writable = A4_TRY(open(OpenFor::Write));
        const std::string what = fmt::format("inode {}", number);
        A4_CHECK(check_errcode(ext2fs_read_inode(writable->fs(), number, &inode), what));
        Transaction transaction(*writable);
        inode.i_generation = generation;
        A4_CHECK(check_errcode(ext2fs_write_inode(writable->fs(), number, &inode), what));
        A4_CHECK(transaction.commit());
        corrected_ = true;
        return true;
    }

    // A record that would lose its end by the file's size, although blocks say that it is wrong:
    // one that the kernel cut shorter has none there.
    static bool cuts_short(const LogContents& contents, const FileState& file,
                           const std::vector<Mapping>& mapped, Bytes block_size) {
        const auto beyond = [&](uint64_t end) {
            return std::ranges::any_of(mapped, [&](const Mapping& mapping) {
                const uint64_t last = mapping.end().value() * block_size.value();
                return mapping.state == MapState::Written &&
                       mapping.lblk.value() * block_size.value() < end &&
                       last >= file.size.value() + block_size.value();
            });
        };
        for (const LoggedRecord& record : contents.live) {
            for (const RangeRef& range : record.ranges) {
                const uint64_t end = (range.offset + range.length).value();
                if (range.inode == file.number && range.new_size <= file.size &&
                    end > file.size.value() && beyond(end))
                    return true;
            }
        }
        return false;
    }

    // Also asks about records of files that e2fsck has made others of.
    Result<bool> is_safe_to_replay() {
        const auto volume = A4_TRY(open(OpenFor::Inspect));
        if (!volume->attr()) return true;
        const auto log = open_log_device(*volume);
        if (!log) return true;
        const auto contents = read_log(**log, volume->attr()->log_id);
        if (!contents) return true;
        std::map<ext2_ino_t, uint32_t> files;
        for (const LoggedRecord& record : contents->live) {
            for (const RangeRef& range : record.ranges) files[range.inode] = range.generation;
        }
        std::set<ext2_ino_t> inodes;
        for (const auto& [inode, generation] : files) {
            const auto file = read_file(*volume, inode, generation);
            if (!file && file.error().code == EUCLEAN) damaged_.insert(inode);
            if (!file && file.error().code == ESTALE && damaged_.contains(inode)) {
                if (!wants({FindingId::RecordOfDamagedFile, "redo log", file.error().message}))
                    return false;
            }
            if (!file && A4_TRY(is_damaged_rather_than_gone(*volume, inode, generation))) {
                note(FindingId::RecordNotSafe, fmt::format("inode {} is damaged", inode));
                return false;
            }
            if (!file) continue;
            if (!last_ && file->atomic && !LINUX_S_ISREG(file->inode.i_mode)) {
                note(FindingId::RecordNotSafe,
                     fmt::format("inode {} is no regular file by its mode", inode));
                return false;
            }
            const auto mapped = map_range(*volume, inode, file->inode, Lblk(0), kWholeFile);
            if (!mapped && mapped.error().code == EUCLEAN) damaged_.insert(inode);
            if (!last_ && mapped && cuts_short(*contents, *file, *mapped, volume->block_size())) {
                note(FindingId::RecordNotSafe,
                     fmt::format("inode {} has written blocks beyond its size", inode));
                return false;
            }
            inodes.insert(inode);
        }
        if (inodes.empty()) return true;
        const auto lines = A4_TRY(shared_blocks_of(*volume, inodes));
        for (const std::string& line : lines) note(FindingId::RecordNotSafe, line);
        return lines.empty();
    }

    // What is damaged on the way may be for e2fsck to repair first.
    Result<> repair_log() {
        const auto volume = A4_TRY(open(OpenFor::Write));
        auto repaired = volume->attr() ? repair_log_file(*volume) : Result<bool>(false);
        if (repaired && !*repaired) repaired = repair_way_to_log(*volume);
        if (!repaired && repaired.error().code == EIO) return fail(std::move(repaired).error());
        corrected_ = corrected_ || (repaired && *repaired);
        return {};
    }

    // One that can't be read is not written either: whose blocks those are isn't known.
    Result<> give_up_log() {
        log_given_up_ = true;
        if (A4_TRY(log_is_lost())) {
            talk_.say(
                "what the redo log held can't be read: writes that were acknowledged last "
                "may be lost");
            const auto volume = A4_TRY(open(OpenFor::Write));
            if (volume->needs_replay()) A4_CHECK(volume->write_needs_replay(false));
        } else {
            const ReplayReport report = A4_TRY(recover_damaged(lent(device_), OnConflict::Discard));
            if (report.discarded > 0)
                talk_.say(fmt::format("{} given up", counted(report.discarded, "record")));
        }
        corrected_ = true;
        records_left_ = false;
        return {};
    }

    // Not even what comes before the damage can be read.
    Result<bool> log_is_lost() {
        const CheckReport report = A4_TRY(look_at_log());
        return std::ranges::any_of(report.findings, [](const Finding& finding) {
            return finding.id == FindingId::LogDamaged || finding.id == FindingId::AttributeDamaged;
        });
    }

    // --- (3) our passes, (4) e2fsck, (5) what it did all the same --------------------------------

    Result<ProtectedSet> pass(RepairRound round) {
        if (stop_if_told()) return ProtectedSet();
        const auto volume = A4_TRY(open(OpenFor::Write));
        for (const std::string& notice : volume->notices()) talk_.say(notice);
        corrected_ = corrected_ || (writing() && !volume->notices().empty());
        RepairOutcome out = A4_TRY(repair(*volume, command_.mode, round, talk_));
        // The next run has to look again.
        if (out.stopped && writing()) A4_CHECK(volume->mark_for_checking());
        corrected_ = corrected_ || out.changed;
        left_ = out.left;
        later_ = later_ || out.later;
        log_is_broken_ = out.log_is_broken;
        released_.merge(out.released);
        if (out.stopped) end(kFsckUncorrected);
        return std::move(out.set);
    }

    // e2fsck with what this gives, until it comes to its end. Ended by us, since it wants to change
    // what is protected, it comes again: with what our passes find then, and, where it was an inode
    // or a tree that seemed sound to us, with leave to put that right; we see to it that the file
    // stays where it was. The set of the last run.
    template <class Next>
    Result<ProtectedSet> check_until_done(Next next) {
        int in_vain = 0;
        for (;;) {
            ProtectedSet set = A4_TRY(next());
            if (ended_) return set;
            for (const ext2_ino_t number : at_fault_) set = set.with_only_data_of(number);
            const GuardedExit exit = A4_TRY(run_e2fsck(check_arguments, set));
            e2fsck_has_run_ = true;
            const bool done = !exit.refused || exit.interrupted;
            if (done) take(exit);
            // Also after an interruption: what is protected is protected.
            if (writing()) was_put_back_ = A4_TRY(put_back(set));
            if (done || ended_) return set;
            const bool learned = refusal_ && refusal_->protection != Protection::Data &&
                                 at_fault_.insert(refusal_->inode).second;
            if (!learned && ++in_vain == kAttempts) break;
        }
        talk_.say(
            "e2fsck wants to change what is protected, whatever is done about it: what else is "
            "wrong stays as it is");
        end(kFsckUncorrected);
        return ProtectedSet();
    }

    Result<> check_protected() {
        const ProtectedSet set = A4_TRY(check_until_done([&]() -> Result<ProtectedSet> {
            ProtectedSet found = A4_TRY(pass(RepairRound::First));
            if (stop_if_told() || !records_left_ || !writing()) return found;
            // Nobody may share blocks with their files any more; then layouts come, too.
            A4_CHECK(replay_log());
            if (ended_ || records_left_) return found;
            found = A4_TRY(pass(RepairRound::First));
            stop_if_told();
            return found;
        }));
        if (ended_ || !was_put_back_) return {};
        // Names and counts of what was put back.
        const GuardedExit exit = A4_TRY(run_e2fsck(check_arguments, set));
        if (!exit.refused) take(exit);
        const bool again = A4_TRY(put_back(set));
        if (exit.refused || again) end(kFsckUncorrected);
        return {};
    }

    Result<std::vector<FileChange>> changed_files(const ProtectedSet& set) {
        const auto volume = A4_TRY(open(OpenFor::Inspect));
        return changes_in(*volume, set);
    }

    // Whether anything had to be.
    Result<bool> put_back(const ProtectedSet& set) {
        if (set.files().empty() || !open(OpenFor::Inspect)) return false;
        const auto changes = A4_TRY(changed_files(set));
        if (changes.empty()) return false;
        for (const FileChange& change : changes)
            talk_.say(printable(change.text) + ": it gets its blocks back");
        const auto volume = A4_TRY(open(OpenFor::Write));
        auto done = atomic4::put_back(*volume, set, changes);
        if (!done && done.error().code == EIO) return fail(std::move(done).error());
        if (!done) {
            talk_.say(done.error().message + ": it doesn't get them back");
            end(kFsckUncorrected);
        }
        corrected_ = true;
        return true;
    }

    // --- Afterwards ------------------------------------------------------------------------------

    Result<> look_again() {
        if (!writing()) return {};
        // Nothing was wrong, and nothing has become so.
        if (!corrected_ && !left_ && !later_ && !records_left_ && e2fsck_status_ == 0) return {};
        last_ = true;
        if (records_left_) A4_CHECK(replay_log());
        if (ended_) return {};
        {
            const auto volume = A4_TRY(open(OpenFor::Write));
            A4_CHECK(adopt_released(*volume));
        }
        A4_CHECK(pass(RepairRound::Last));
        if (ended_) return {};
        if (stop_if_told()) return {};
        if (log_given_up_ || log_is_broken_) {
            A4_CHECK(make_log());
            // What was left may have been the old one's.
            if (left_ && !log_left_) A4_CHECK(pass(RepairRound::Last));
            if (ended_) return {};
        }
        log_left_ = log_left_ || records_left_ || A4_TRY(log_is_lost());
        return {};
    }

    Result<> adopt_released(Volume& volume) {
        for (const auto& [number, unit] : released_) {
            auto adopted = adopt_file(volume, number, unit);
            if (adopted) {
                talk_.say(fmt::format("inode {}: adopted again", number));
                continue;
            }
            if (adopted.error().code == EIO) return fail(std::move(adopted).error());
            talk_.say(adopted.error().message + ": it stays released");
        }
        return {};
    }

    // As large as it was, if that can be told.
    static std::optional<Bytes> size_of_log(Volume& volume) {
        const auto file = read_file(volume, volume.attr()->log_inode);
        EnableOptions as_it_was;
        if (file) as_it_was.log_size = file->size;
        const Bytes all(ext2fs_blocks_count(volume.fs()->super) * volume.block_size().value());
        if (!file || !plan_enable(volume.block_size(), all, as_it_was)) return std::nullopt;
        return file->size;
    }

    // A log that is gone, or whose file can't be repaired, gets a successor.
    Result<> make_log() {
        if (!log_is_broken_ && !A4_TRY(log_is_lost())) return {};
        const auto volume = A4_TRY(open(OpenFor::Write));
        EnableOptions options;
        options.replace_log = true;
        if (volume->attr()) {
            options.unit = volume->attr()->unit;
            options.log_size = size_of_log(*volume);
        }
        auto enabled = enable(*volume, options);
        if (!enabled && enabled.error().code == EIO) return fail(std::move(enabled).error());
        talk_.say(enabled ? "it has a new redo log" : enabled.error().message);
        corrected_ = corrected_ || enabled;
        log_left_ = !enabled;
        if (enabled) records_left_ = false;  // they were in the old one
        return {};
    }

    const Context& context_;
    const FsckCommand& command_;
    FsckCommand e2fscks_;  // the same, perhaps by another copy of the superblock
    Device& device_;
    std::future<Result<std::string>>& looking_for_e2fsck_;
    std::string e2fsck_;
    const HeldSignals& signals_;
    FsckTalk& talk_;
    std::optional<ReadOnlyDevice> looking_;
    std::map<ext2_ino_t, Bytes> released_;
    std::optional<Refusal> refusal_;  // of e2fsck's last run
    std::set<ext2_ino_t> at_fault_;   // whose inode or tree it had to change
    std::set<ext2_ino_t> damaged_;    // of live records, before e2fsck
    bool corrected_ = false;
    SuperblockPlace copy_used_;
    bool wrote_ = false;                        // e2fsck, in its last run
    int e2fsck_status_ = 0;                     // its last run
    bool left_ = false;                         // by our last pass
    bool later_ = false;                        // something was left to e2fsck
    bool log_left_ = false;                     // by the last look at the log
    bool records_left_ = false;                 // not replayed so far
    std::optional<SessionStamp> records_seen_;  // although the primary superblock may not say so
    bool log_given_up_ = false;
    bool log_is_broken_ = false;
    bool last_ = false;  // e2fsck has been there
    bool e2fsck_has_run_ = false;
    bool was_put_back_ = false;  // after its last run
    bool ended_ = false;
    int ended_status_ = 0;
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
    int status = Fsck(context, command, *opened.device, e2fsck, *signals, talk).run();
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
