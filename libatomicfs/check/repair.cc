#include "check/repair.h"

#include <algorithm>
#include <set>
#include <tuple>

#include "base/text.h"
#include "ext4/bitmap_rebuild.h"
#include "ext4/checksums_ignored.h"
#include "ext4/errcode.h"
#include "ext4/format.h"
#include "ext4/transaction.h"
#include "redo/log_file_repair.h"
#include "writer/adopt.h"
#include "writer/move_blocks.h"

namespace atomic4 {

namespace {

constexpr int kRounds = 8;

// What comes first: who has which blocks decides what may be freed.
enum class Phase { Marks, Blocks, Layout };

Phase phase_of(FindingId id) {
    switch (id) {
        case FindingId::BlocksShared:
        case FindingId::AtomicGivesWay:
        case FindingId::BlocksAreMetadata:
            return Phase::Blocks;
        case FindingId::FlagWithoutUnit:
        case FindingId::BadUnit:
        case FindingId::MisalignedUnit:
        case FindingId::BrokenUnit:
        case FindingId::PartMappedUnit:
        case FindingId::UnwrittenBeforeEof:
        case FindingId::GenerationZero:
            return Phase::Layout;
        default:
            return Phase::Marks;
    }
}

// Finding by finding; a file is repaired once, whatever is found about it.
class Repairs {
  public:
    Repairs(Volume& volume, FsckMode mode, RepairRound round, FsckTalk& talk, RepairOutcome& out)
        : volume_(volume), mode_(mode), round_(round), talk_(talk), out_(out) {}

    // True: something has changed, so that all has to be looked at again.
    Result<bool> run(const CheckReport& report) {
        report_ = &report;
        changed_ = false;
        out_.left = false;
        for (const Phase phase : {Phase::Marks, Phase::Blocks, Phase::Layout}) {
            for (const Finding& finding : report.findings) {
                if (phase_of(finding.id) != phase) continue;
                A4_CHECK(handle(finding));
                if (out_.stopped) return changed_;
            }
            // What changed may be what the next phase would go by.
            if (changed_ && phase != Phase::Layout) return true;
        }
        return changed_;
    }

  private:
    Result<> handle(const Finding& finding) {
        if (about_the_log(finding.id)) return {};  // has been decided
        if (log_tried_ && is_log(finding.inode) && phase_of(finding.id) == Phase::Layout) {
            out_.log_is_broken = true;
            return {};
        }
        // In an earlier round, and it is still there.
        if (!said_.emplace(finding.id, finding.inode, finding.detail).second) {
            const Verdict before = decide(finding.id, mode_, [] { return false; });
            out_.left = out_.left || (before != Verdict::Note && before != Verdict::Later);
            out_.later = out_.later || before == Verdict::Later;
            return {};
        }
        // What concerns one file is one question.
        if (finding.inode != 0 && handled_.contains({finding.inode, phase_of(finding.id)})) {
            talk_.say(text_of(finding));
            return {};
        }
        const Verdict verdict = judge(finding, mode_, talk_);
        if (finding.inode != 0) handled_.insert({finding.inode, phase_of(finding.id)});
        switch (verdict) {
            case Verdict::Note:
                return {};
            case Verdict::Stop:
                out_.stopped = true;
                return {};
            case Verdict::Leave:
                out_.left = true;
                return {};
            case Verdict::Later:
                if (round_ == RepairRound::Last) return what_e2fsck_left(finding);
                out_.later = true;
                return {};
            case Verdict::Fix:
                break;
        }
        return fix(finding);
    }

    static bool about_the_log(FindingId id) {
        switch (id) {
            case FindingId::LiveRecords:
            case FindingId::LogDamaged:
            case FindingId::LogCorrupt:
            case FindingId::LogSuperblock:
            case FindingId::LogUnknown:
            case FindingId::AttributeDamaged:
            case FindingId::NeedsReplayWithoutRecords:
            case FindingId::PartsUnnamed:
                return true;
            default:
                return false;
        }
    }

    // Nobody may adopt or release it.
    Result<> fix_log() {
        log_tried_ = true;
        const bool repaired = A4_TRY(repair_log_file(volume_));
        (repaired ? changed_ : out_.log_is_broken) = true;
        out_.changed = out_.changed || repaired;
        return {};
    }

    bool is_log(ext2_ino_t number) const {
        return volume_.attr() && number == volume_.attr()->log_inode;
    }

    Result<> fix(const Finding& finding) {
        // Whoever is interrupted here leaves work for e2fsck, which takes the mark away.
        if (round_ == RepairRound::First) A4_CHECK(volume_.mark_for_checking());
        if (is_log(finding.inode) && phase_of(finding.id) == Phase::Layout) return fix_log();
        switch (finding.id) {
            case FindingId::GateMissing:
            case FindingId::GateMissingEverywhere:
                if (gate_written_) return {};
                A4_CHECK(volume_.write_gate(true));
                gate_written_ = out_.changed = changed_ = true;
                return {};
            case FindingId::BlocksShared:
            case FindingId::AtomicGivesWay:
                return unshare(finding.inode);
            case FindingId::BlocksAreMetadata:
                return is_shared(finding.inode) ? unshare(finding.inode)
                                                : release(finding.inode, true);
            case FindingId::WrongType:
            case FindingId::NoLinks:
                return make_a_file(finding.inode);
            case FindingId::MisplacedFlag:
                return clear_flag(finding.inode);
            case FindingId::FlagWithoutUnit:
            case FindingId::BadUnit:
            case FindingId::MisalignedUnit:
            case FindingId::BrokenUnit:
            case FindingId::PartMappedUnit:
            case FindingId::UnwrittenBeforeEof:
            case FindingId::GenerationZero:
                return adopt(finding.inode);
            default:
                out_.left = true;
                return {};
        }
    }

    // Damage that e2fsck didn't take for damage, or couldn't repair.
    Result<> what_e2fsck_left(const Finding& finding) {
        const bool file =
            finding.id == FindingId::InodeDamaged || finding.id == FindingId::WrittenBeyondEof;
        if (!file || mode_ == FsckMode::Preen) {
            out_.left = true;
            return {};
        }
        return release(finding.inode, false);
    }

    // Before the first repair that allocates, and after each that has freed something.
    Result<> prove_bitmaps(Unclaimed unclaimed = Unclaimed::StaysUsed) {
        if (proved_ && unclaimed == Unclaimed::StaysUsed) return {};
        A4_CHECK(prove_all_bitmaps(volume_, unclaimed));
        proved_ = true;
        return {};
    }

    // A repair that the volume has no room for, or is too damaged for, isn't the end of the others.
    Result<bool> possible(Result<> done, ext2_ino_t number) {
        if (done) {
            out_.changed = changed_ = true;
            return true;
        }
        failed_with_ = done.error().code;
        if (failed_with_ == EIO || !volume_.usable()) return fail(std::move(done).error());
        talk_.say(fmt::format("inode {}: {}", number, done.error().message));
        return false;
    }

    // With what bitmaps call used though nobody claims it, if it takes that.
    template <class Work>
    Result<bool> with_room(ext2_ino_t number, Work work) {
        auto proved = prove_bitmaps();
        Result<> done = proved ? work() : std::move(proved);
        if (!done && done.error().code == ENOSPC) {
            proved = prove_bitmaps(Unclaimed::BecomesFree);
            if (proved) done = work();
        }
        return possible(std::move(done), number);
    }

    Result<> adopt(ext2_ino_t number) {
        // What a record says is for the file as it is.
        if (volume_.needs_replay()) {
            out_.later = true;
            return {};
        }
        if (is_shared(number)) {  // it couldn't be given other blocks
            out_.left = true;
            return {};
        }
        const bool adopted = A4_TRY(with_room(number, [&]() -> Result<> {
            A4_CHECK(adopt_file(volume_, number, std::nullopt));
            return {};
        }));
        proved_ = false;
        if (adopted) return {};
        // e2fsck may put right what stands in the way.
        if (failed_with_ == EUCLEAN && round_ == RepairRound::First) {
            out_.later = true;
            return {};
        }
        if (mode_ == FsckMode::Preen) {
            out_.left = true;
            return {};
        }
        return release(number, false);
    }

    bool is_shared(ext2_ino_t number) const {
        return std::ranges::any_of(report_->shared, [&](const SharedBlocks& shared) {
            return shared.gives_way == number || shared.stays == number;
        });
    }

    // again: to be adopted when e2fsck has been there.
    Result<> release(ext2_ino_t number, bool again) {
        const auto file = read_file(volume_, number);
        A4_CHECK(prove_bitmaps());
        auto released = release_if_atomic(volume_, number);
        proved_ = false;  // a block of xattrs may be free now
        Result<> done;
        if (!released) done = fail(std::move(released).error());
        if (!A4_TRY(possible(std::move(done), number))) {
            out_.left = true;
            return {};
        }
        talk_.say(fmt::format("inode {}: released, it keeps its bytes but is no atomic file now",
                              number));
        if (again && file && file->unit && check_unit(volume_, *file->unit))
            out_.released[number] = *file->unit;
        out_.later = true;
        return {};
    }

    Result<> unshare(ext2_ino_t number) {
        std::vector<BlockClaim> parts;
        Blocks granule(1);
        for (const SharedBlocks& shared : report_->shared) {
            if (shared.gives_way != number) continue;
            parts.insert(parts.end(), shared.parts.begin(), shared.parts.end());
            if (!shared.atomic) continue;
            const auto file = read_file(volume_, number);
            if (file && file->unit && check_unit(volume_, *file->unit))
                granule = Blocks(file->unit->value() / volume_.block_size().value());
        }
        out_.later = true;
        // What can't be read can't be copied: e2fsck will discard it, or say what it is.
        A4_CHECK(with_room(number, [&] { return move_blocks(volume_, number, parts, granule); }));
        return {};
    }

    template <class Change>
    Result<> change_inode(ext2_ino_t number, Change change) {
        const auto work = [&]() -> Result<> {
            ext2_inode inode{};
            const std::string what = fmt::format("inode {}", number);
            A4_CHECK(check_errcode(ext2fs_read_inode(volume_.fs(), number, &inode), what));
            change(inode);
            Transaction transaction(volume_);
            A4_CHECK(check_errcode(ext2fs_write_inode(volume_.fs(), number, &inode), what));
            return transaction.commit();
        };
        out_.later = true;
        A4_CHECK(possible(work(), number));
        return {};
    }

    // A regular file with a link, as it was: how many it has is e2fsck's.
    Result<> make_a_file(ext2_ino_t number) {
        const ChecksumsIgnored ignored(volume_.fs());  // that may be all that is wrong with it
        return change_inode(number, [](ext2_inode& inode) {
            inode.i_mode = static_cast<uint16_t>(LINUX_S_IFREG | (inode.i_mode & 07777));
            if (inode.i_links_count == 0) inode.i_links_count = 1;
        });
    }

    Result<> clear_flag(ext2_ino_t number) {
        return change_inode(number, [](ext2_inode& inode) { inode.i_flags &= ~kInodeFlagAtomic; });
    }

    Volume& volume_;
    FsckMode mode_;
    RepairRound round_;
    FsckTalk& talk_;
    RepairOutcome& out_;
    const CheckReport* report_ = nullptr;
    std::set<std::tuple<FindingId, ext2_ino_t, std::string>> said_;
    std::set<std::pair<ext2_ino_t, Phase>> handled_;
    bool changed_ = false;
    bool proved_ = false;
    bool gate_written_ = false;
    bool log_tried_ = false;
    int failed_with_ = 0;  // the last repair that was not possible
};

}  // namespace

std::string text_of(const Finding& finding) {
    return fmt::format("#{} {}: {}: {}", number_of(finding.id), printable(finding.where),
                       meaning_of(finding.id), finding.detail);
}

Verdict judge(const Finding& finding, FsckMode mode, FsckTalk& talk) {
    const std::string line = text_of(finding);
    bool asked = false;
    const Verdict verdict = decide(finding.id, mode, [&] {
        asked = true;
        return talk.ask(line, question_of(finding.id));
    });
    if (asked) return verdict;
    switch (verdict) {
        case Verdict::Fix:
            talk.say(fmt::format("{}. {}? yes", line, question_of(finding.id)));
            break;
        case Verdict::Leave:
            talk.say(*question_of(finding.id) != '\0'
                         ? fmt::format("{}. {}? no", line, question_of(finding.id))
                         : line);
            break;
        case Verdict::Stop:
            talk.say(line);
            talk.say(
                "UNEXPECTED INCONSISTENCY; RUN fsck MANUALLY. (i.e., without -a or -p "
                "options)");
            break;
        case Verdict::Note:
        case Verdict::Later:
            talk.say(line);
    }
    return verdict;
}

Result<RepairOutcome> repair(Volume& volume, FsckMode mode, RepairRound round, FsckTalk& talk) {
    RepairOutcome out;
    Repairs repairs(volume, mode, round, talk, out);
    for (int i = 0;; ++i) {
        CheckReport report = A4_TRY(check_volume(
            volume, [&](uint64_t done, uint64_t all) { return talk.progress(done, all); }));
        const bool changed = A4_TRY(repairs.run(report));
        if (out.stopped || !changed || i + 1 == kRounds) {
            out.set = report.take_protected_set(volume.block_size());
            return out;
        }
    }
}

}  // namespace atomic4
