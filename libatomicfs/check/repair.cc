#include "check/repair.h"

#include <algorithm>
#include <set>
#include <tuple>

#include "base/text.h"
#include "ext4/bitmap_rebuild.h"
#include "ext4/errcode.h"
#include "ext4/format.h"
#include "ext4/transaction.h"
#include "redo/log_file_repair.h"
#include "writer/adopt.h"
#include "writer/move_blocks.h"

namespace atomic4 {

namespace {

constexpr int kRounds = 4;

std::string text_of(const Finding& finding) {
    return fmt::format("#{} {}: {}: {}", number_of(finding.id), printable(finding.where),
                       meaning_of(finding.id), finding.detail);
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
        for (const Finding& finding : report.findings) {
            A4_CHECK(handle(finding));
            if (out_.stopped) break;
        }
        return changed_;
    }

  private:
    Result<> handle(const Finding& finding) {
        if (about_the_log(finding.id)) return {};  // has been decided
        // In an earlier round.
        if (!said_.emplace(finding.id, finding.inode, finding.detail).second) return {};
        // What concerns one file is one question.
        if (finding.inode != 0 && handled_.contains({finding.inode, handling_of(finding.id)})) {
            talk_.say(text_of(finding));
            return {};
        }
        const Verdict verdict = judge(finding, mode_, talk_);
        if (finding.inode != 0) handled_.insert({finding.inode, handling_of(finding.id)});
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
                return true;
            default:
                return false;
        }
    }

    // Nobody may adopt or release it.
    Result<> fix_log() {
        const bool repaired = A4_TRY(repair_log_file(volume_));
        (repaired ? changed_ : out_.left) = true;
        out_.changed = out_.changed || repaired;
        return {};
    }

    bool is_log(ext2_ino_t number) const {
        return volume_.attr() && number == volume_.attr()->log_inode;
    }

    Result<> fix(const Finding& finding) {
        if (is_log(finding.inode) && finding.id != FindingId::AtomicFilesShare) return fix_log();
        switch (finding.id) {
            case FindingId::GateMissing:
            case FindingId::GateMissingEverywhere:
                if (gate_written_) return {};
                A4_CHECK(volume_.write_gate(true));
                gate_written_ = out_.changed = changed_ = true;
                return {};
            case FindingId::BlocksShared:
            case FindingId::AtomicFilesShare:
                return unshare(finding.inode);
            case FindingId::BlocksAreMetadata:
                return release(finding.inode, true);
            case FindingId::WrongType:
            case FindingId::NoLinks:
                return make_a_file(finding.inode);
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

    Result<> prove_bitmaps() {
        if (proved_) return {};
        A4_CHECK(prove_all_bitmaps(volume_));
        proved_ = true;
        return {};
    }

    // A repair that the volume has no room or is too damaged for isn't the end of the others.
    Result<bool> possible(Result<> done, ext2_ino_t number) {
        if (done) {
            out_.changed = changed_ = true;
            return true;
        }
        const int code = done.error().code;
        if (code == EIO || !volume_.usable()) return fail(std::move(done).error());
        talk_.say(fmt::format("inode {}: {}", number, done.error().message));
        return false;
    }

    Result<> adopt(ext2_ino_t number) {
        A4_CHECK(prove_bitmaps());
        auto adopted = adopt_file(volume_, number, std::nullopt);
        Result<> done;
        if (!adopted) done = fail(std::move(adopted).error());
        if (A4_TRY(possible(std::move(done), number))) return {};
        if (mode_ == FsckMode::Preen) {
            out_.left = true;
            return {};
        }
        return release(number, false);
    }

    // again: to be adopted when e2fsck has been there.
    Result<> release(ext2_ino_t number, bool again) {
        const auto file = read_file(volume_, number);
        A4_CHECK(prove_bitmaps());
        auto released = release_if_atomic(volume_, number);
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
        A4_CHECK(prove_bitmaps());
        std::vector<BlockClaim> parts;
        Blocks granule(1);
        for (const SharedBlocks& shared : report_->shared) {
            if (shared.other != number) continue;
            parts.insert(parts.end(), shared.parts.begin(), shared.parts.end());
            if (shared.kind != SharedBlocks::Other::Atomic) continue;
            const FileState file = A4_TRY(read_file(volume_, number));
            granule = Blocks(file.unit->value() / volume_.block_size().value());
        }
        out_.later = true;
        if (A4_TRY(possible(move_blocks(volume_, number, parts, granule), number))) return {};
        // What can't be read can't be copied: e2fsck will discard it, or say what it is.
        return {};
    }

    // A regular file with a link, as it was: how many it has is e2fsck's.
    Result<> make_a_file(ext2_ino_t number) {
        ext2_inode inode{};
        const std::string what = fmt::format("inode {}", number);
        A4_CHECK(check_errcode(ext2fs_read_inode(volume_.fs(), number, &inode), what));
        Transaction transaction(volume_);
        inode.i_mode = static_cast<uint16_t>(LINUX_S_IFREG | (inode.i_mode & 07777));
        if (inode.i_links_count == 0) inode.i_links_count = 1;
        A4_CHECK(check_errcode(ext2fs_write_inode(volume_.fs(), number, &inode), what));
        A4_CHECK(transaction.commit());
        out_.changed = changed_ = out_.later = true;
        return {};
    }

    Volume& volume_;
    FsckMode mode_;
    RepairRound round_;
    FsckTalk& talk_;
    RepairOutcome& out_;
    const CheckReport* report_ = nullptr;
    std::set<std::tuple<FindingId, ext2_ino_t, std::string>> said_;
    std::set<std::pair<ext2_ino_t, Handling>> handled_;
    bool changed_ = false;
    bool proved_ = false;
    bool gate_written_ = false;
};

}  // namespace

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
        CheckReport report = A4_TRY(check_volume(volume));
        const bool changed = A4_TRY(repairs.run(report));
        if (out.stopped || !changed || i + 1 == kRounds) {
            // What e2fsck will move away for somebody else isn't protected from it.
            std::set<ext2_ino_t> without;
            for (const SharedBlocks& shared : report.shared) {
                if (shared.kind == SharedBlocks::Other::Own) without.insert(shared.atomic);
                if (shared.kind == SharedBlocks::Other::Atomic) without.insert(shared.other);
            }
            std::erase_if(report.intact,
                          [&](const ProtectedFile& file) { return without.contains(file.number); });
            out.set = ProtectedSet(std::move(report.intact), volume.block_size());
            return out;
        }
    }
}

}  // namespace atomic4
