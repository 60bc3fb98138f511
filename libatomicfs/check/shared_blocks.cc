#include "check/shared_blocks.h"

#include <algorithm>
#include <map>

#include "ext4/file_blocks.h"
#include "ext4/format.h"
#include "ext4/volume.h"

namespace atomic4 {

namespace {

using Runs = std::vector<PblkRun>;

Runs runs_of(const std::vector<BlockClaim>& claims) {
    Runs runs;
    for (const BlockClaim& claim : claims) runs.push_back(claim.run);
    return runs;
}

// But for its block of xattrs, which others may have rightly.
std::vector<BlockClaim> file_claims_of(Volume& volume, ext2_ino_t number) {
    std::vector<BlockClaim> claims = claims_of(volume, number);
    std::erase_if(claims,
                  [](const BlockClaim& claim) { return claim.kind == BlockClaim::Kind::Xattrs; });
    return claims;
}

// Whose blocks are whose, by whole clusters: two inodes can't share one.
class Owners {
  public:
    // False: some of them are another one's already; then nothing is added.
    bool add(const Volume& volume, Runs runs, ext2_ino_t inode) {
        const Runs whole = whole_clusters(volume, std::move(runs));
        for (const PblkRun& run : whole) {
            const auto next = owned_.upper_bound(run.start.value());
            if (next != owned_.end() && next->second.begin < (run.start + run.length).value())
                return false;
        }
        for (const PblkRun& run : whole) {
            const uint64_t end = (run.start + run.length).value();
            owned_.emplace(end, Owned{run.start.value(), end, inode});
        }
        return true;
    }

    // f(part of the run that is somebody's, whose)
    template <class F>
    void for_each_in(PblkRun run, F f) const {
        const uint64_t end = (run.start + run.length).value();
        for (auto it = owned_.upper_bound(run.start.value());
             it != owned_.end() && it->second.begin < end; ++it) {
            const uint64_t from = std::max(run.start.value(), it->second.begin);
            const uint64_t to = std::min(end, it->second.end);
            f(PblkRun{Pblk(from), Blocks(to - from)}, it->second.inode);
        }
    }

  private:
    struct Owned {
        uint64_t begin = 0;  // blocks
        uint64_t end = 0;
        ext2_ino_t inode = 0;
    };
    std::map<uint64_t, Owned> owned_;  // by end
};

// Who is where, of those that may overlap.
class Places {
  public:
    void add(PblkRun run, ext2_ino_t inode) {
        runs_.push_back({run.start.value(), (run.start + run.length).value(), inode});
        longest_ = std::max(longest_, run.length.value());
    }
    // After the last one.
    void settle() { std::ranges::sort(runs_, {}, &Run::begin); }
    // Adds to `found` whose blocks are among these.
    void find(PblkRun run, std::set<ext2_ino_t>& found) const {
        const uint64_t begin = run.start.value();
        const uint64_t end = (run.start + run.length).value();
        const uint64_t first = begin > longest_ ? begin - longest_ : 0;
        for (auto it = std::ranges::lower_bound(runs_, first, {}, &Run::begin);
             it != runs_.end() && it->begin < end; ++it) {
            if (it->end > begin) found.insert(it->inode);
        }
    }

  private:
    struct Run {
        uint64_t begin = 0;  // blocks
        uint64_t end = 0;
        ext2_ino_t inode = 0;
    };
    std::vector<Run> runs_;
    uint64_t longest_ = 0;  // blocks
};

void add_part(SharedBlocks& shared, const BlockClaim& claim, PblkRun run) {
    if (shared.parts.empty()) shared.first = run.start;
    shared.count += run.length;
    shared.parts.push_back({claim.kind, claim.lblk + (run.start - claim.run.start), run});
}

class Sharing {
  public:
    Sharing(Volume& volume, const std::set<ext2_ino_t>& broken) : volume_(volume) {
        for (const ext2_ino_t inode : broken) {
            broken_[inode] = file_claims_of(volume, inode);
            for (const PblkRun& run : whole_clusters(volume, runs_of(broken_[inode])))
                places_of_broken_.add(run, inode);
        }
        places_of_broken_.settle();
    }

    void own(const std::vector<ProtectedFile>& intact) {
        std::vector<const ProtectedFile*> order;
        for (const ProtectedFile& file : intact) order.push_back(&file);
        const ext2_ino_t log = volume_.attr() ? volume_.attr()->log_inode : 0;
        std::ranges::sort(order, [&](const ProtectedFile* a, const ProtectedFile* b) {
            if ((a->number == log) != (b->number == log)) return a->number == log;
            const Bytes unit_a = a->unit.value_or(Bytes(0));
            const Bytes unit_b = b->unit.value_or(Bytes(0));
            return unit_a != unit_b ? unit_a > unit_b : a->number < b->number;
        });
        for (const ProtectedFile* file : order) {
            atomic_.insert(file->number);
            if (owners_.add(volume_, runs_of(*file), file->number)) stay_.insert(file->number);
        }
    }

    void look_at(const ClaimingInode& inode) {
        const ext2_ino_t number = inode.number;
        const bool is_broken = broken_.contains(number);
        give_way_to_intact(inode, is_broken);
        // Who is broken gives way to all that come; of two, the one with the higher number.
        std::set<ext2_ino_t> others;
        for (const PblkRun& run : whole_clusters(volume_, runs_of(inode.claims)))
            places_of_broken_.find(run, others);
        for (const ext2_ino_t other : others) {
            if (other == number || (is_broken && other < number)) continue;
            give_way(other, broken_.at(other), inode);
        }
    }

    std::vector<SharedBlocks> take() { return std::move(shared_); }

  private:
    void give_way_to_intact(const ClaimingInode& inode, bool is_broken) {
        std::map<ext2_ino_t, SharedBlocks> found;
        const bool own = is_volumes_own(volume_.fs(), inode.number);
        // What one that stays claims is its own, but perhaps the block of its xattrs.
        const bool stays_itself = stay_.contains(inode.number);
        for (const BlockClaim& claim : inode.claims) {
            if (stays_itself && claim.kind != BlockClaim::Kind::Xattrs) continue;
            owners_.for_each_in(claim.run, [&](PblkRun run, ext2_ino_t stays) {
                if (stays == inode.number) return;
                if (own)
                    add_parts_of(stays, run, found[stays]);
                else
                    add_part(found[stays], claim, run);
            });
        }
        for (auto& [intact, shared] : found) {
            shared.stays = own ? inode.number : intact;
            shared.gives_way = own ? intact : inode.number;
            shared.atomic = own || is_broken || (!stays_itself && atomic_.contains(inode.number));
            shared.own = own;
            shared_.push_back(std::move(shared));
        }
    }

    void add_parts_of(ext2_ino_t inode, PblkRun run, SharedBlocks& shared) {
        for (const BlockClaim& claim : file_claims_of(volume_, inode)) {
            const Pblk from = std::max(claim.run.start, run.start);
            const Pblk to = std::min(claim.run.start + claim.run.length, run.start + run.length);
            if (from < to) add_part(shared, claim, {from, to - from});
        }
    }

    void give_way(ext2_ino_t number, const std::vector<BlockClaim>& claims,
                  const ClaimingInode& stays) {
        Owners theirs;
        SharedBlocks shared;
        for (const PblkRun& run : whole_clusters(volume_, runs_of(stays.claims)))
            theirs.add(volume_, {run}, stays.number);
        for (const BlockClaim& claim : claims) {
            theirs.for_each_in(claim.run,
                               [&](PblkRun run, ext2_ino_t) { add_part(shared, claim, run); });
        }
        if (shared.parts.empty()) return;
        shared.stays = stays.number;
        shared.gives_way = number;
        shared.atomic = true;
        shared.own = is_volumes_own(volume_.fs(), stays.number);
        shared_.push_back(std::move(shared));
    }

    Volume& volume_;
    Owners owners_;
    std::set<ext2_ino_t> atomic_;  // the intact ones
    std::set<ext2_ino_t> stay_;
    std::map<ext2_ino_t, std::vector<BlockClaim>> broken_;
    Places places_of_broken_;
    std::vector<SharedBlocks> shared_;
};

bool has_wrong_type(ext2_filsys fs, ext2_ino_t number, const ext2_inode& inode) {
    if ((inode.i_flags & kInodeFlagAtomic) == 0) return false;
    return !LINUX_S_ISREG(inode.i_mode) || number == EXT2_ROOT_INO || is_volumes_own(fs, number);
}

// With the journal its deletion would be known; or by the checksum.
bool has_lost_its_links(Volume& volume, const ClaimingInode& of,
                        const std::set<ext2_ino_t>& orphans) {
    ext2_super_block* super = volume.fs()->super;
    return of.checksum_ok && of.inode.i_links_count == 0 && LINUX_S_ISREG(of.inode.i_mode) &&
           of.number >= EXT2_FIRST_INODE(super) && !orphans.contains(of.number) &&
           (of.was_atomic_file || ext2fs_has_feature_journal(super) != 0);
}

}  // namespace

bool is_volumes_own(ext2_filsys fs, ext2_ino_t number) {
    const ext2_super_block& super = *fs->super;
    // Not s_first_ino: it is 11 everywhere, but where it is damaged.
    if (number < EXT2_GOOD_OLD_FIRST_INO) return number != EXT2_ROOT_INO;
    const bool quota = ext2fs_has_feature_quota(fs->super) != 0;
    return (ext2fs_has_feature_journal(fs->super) && number == super.s_journal_inum) ||
           (ext2fs_has_feature_orphan_file(fs->super) && number == super.s_orphan_file_inum) ||
           (quota && (number == super.s_usr_quota_inum || number == super.s_grp_quota_inum ||
                      number == super.s_prj_quota_inum));
}

Result<SharingReport> find_shared_blocks(Volume& volume, InodeClaims& claims,
                                         const std::vector<ProtectedFile>& intact,
                                         const std::set<ext2_ino_t>& broken,
                                         const std::set<ext2_ino_t>& orphans) {
    SharingReport report;
    Sharing sharing(volume, broken);
    sharing.own(intact);
    A4_CHECK(claims.for_each_that_may_share([&](const ClaimingInode& inode) {
        if (has_wrong_type(volume.fs(), inode.number, inode.inode))
            report.wrong_type.push_back(inode.number);
        if (inode.was_atomic_file) report.were_atomic.insert(inode.number);
        if (has_lost_its_links(volume, inode, orphans)) report.no_links.push_back(inode.number);
        sharing.look_at(inode);
    }));
    report.shared = sharing.take();
    return report;
}

Result<std::vector<std::string>> shared_blocks_of(Volume& volume,
                                                  const std::set<ext2_ino_t>& inodes) {
    std::vector<std::string> lines;
    Owners owners;
    for (const ext2_ino_t number : inodes) {
        if (!owners.add(volume, runs_of(file_claims_of(volume, number)), number))
            lines.push_back(fmt::format("inode {} claims blocks of another one", number));
    }
    A4_CHECK(for_each_claiming_inode(volume, [&](const ClaimingInode& inode) {
        bool said = false;
        for (const BlockClaim& claim : inode.claims) {
            owners.for_each_in(claim.run, [&](PblkRun run, ext2_ino_t owner) {
                if (owner == inode.number || said) return;
                said = true;
                lines.push_back(fmt::format("block {} of inode {} is inode {}'s, too", run.start,
                                            owner, inode.number));
            });
        }
    }));
    return lines;
}

}  // namespace atomic4
