#include "check/shared_blocks.h"

#include <algorithm>
#include <map>

#include "ext4/file_blocks.h"
#include "ext4/format.h"
#include "ext4/volume.h"

namespace atomic4 {

namespace {

struct Owned {
    uint64_t begin = 0;  // blocks
    uint64_t end = 0;
    ext2_ino_t inode = 0;
};

// Blocks of atomic files, none of them twice.
class OwnedBlocks {
  public:
    // False: some of them are another one's already; then nothing is added. Whole clusters: two
    // inodes can't share one.
    bool add(const Volume& volume, const ProtectedFile& file) {
        std::vector<PblkRun> runs;
        for (const Mapping& mapping : file.mappings) runs.push_back({mapping.pblk, mapping.length});
        for (const ProtectedFile::Node& node : file.nodes) runs.push_back({node.block, Blocks(1)});
        std::vector<Owned> owned;
        for (const PblkRun& run : whole_clusters(volume, std::move(runs))) {
            owned.push_back({run.start.value(), (run.start + run.length).value(), file.number});
        }
        for (const Owned& part : owned) {
            const auto next = owned_.upper_bound(part.begin);
            if (next != owned_.end() && next->second.begin < part.end) return false;
        }
        for (const Owned& part : owned) owned_.emplace(part.end, part);
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
    std::map<uint64_t, Owned> owned_;  // by end
};

bool is_volumes_own(ext2_filsys fs, ext2_ino_t number) {
    const ext2_super_block& super = *fs->super;
    if (number < EXT2_FIRST_INODE(&super)) return number != EXT2_ROOT_INO;
    return number == super.s_journal_inum || number == super.s_usr_quota_inum ||
           number == super.s_grp_quota_inum || number == super.s_prj_quota_inum ||
           number == super.s_orphan_file_inum;
}

class Sharing {
  public:
    Sharing(ext2_filsys fs, const OwnedBlocks& owned) : fs_(fs), owned_(owned) {}

    void look_at(ext2_ino_t number, const std::vector<BlockClaim>& claims,
                 SharedBlocks::Other kind) {
        std::map<ext2_ino_t, SharedBlocks> found;
        for (const BlockClaim& claim : claims) {
            owned_.for_each_in(claim.run, [&](PblkRun run, ext2_ino_t atomic) {
                if (atomic == number) return;
                SharedBlocks& shared = found[atomic];
                if (shared.parts.empty()) shared.first = run.start;
                shared.count += run.length;
                shared.parts.push_back(
                    {claim.kind, claim.lblk + (run.start - claim.run.start), run});
            });
        }
        for (auto& [atomic, shared] : found) {
            shared.atomic = atomic;
            shared.other = number;
            shared.kind = is_volumes_own(fs_, number) ? SharedBlocks::Other::Own : kind;
            shared_.push_back(std::move(shared));
        }
    }

    std::vector<SharedBlocks> take() { return std::move(shared_); }

  private:
    ext2_filsys fs_;
    const OwnedBlocks& owned_;
    std::vector<SharedBlocks> shared_;
};

bool has_wrong_type(const ext2_inode& inode) {
    return (inode.i_flags & kInodeFlagAtomic) != 0 && !LINUX_S_ISREG(inode.i_mode);
}

}  // namespace

Result<SharingReport> find_shared_blocks(Volume& volume, const std::vector<ProtectedFile>& files,
                                         const std::set<ext2_ino_t>& orphans) {
    OwnedBlocks owned;
    std::set<ext2_ino_t> stay;
    std::set<ext2_ino_t> give_way;
    // Of two the one with the larger unit stays, since a new place for it is harder to find; the
    // log before all.
    std::vector<const ProtectedFile*> order;
    for (const ProtectedFile& file : files) order.push_back(&file);
    const ext2_ino_t log = volume.attr() ? volume.attr()->log_inode : 0;
    std::ranges::stable_sort(order, [&](const ProtectedFile* a, const ProtectedFile* b) {
        if ((a->number == log) != (b->number == log)) return a->number == log;
        return a->unit.value_or(Bytes(0)) > b->unit.value_or(Bytes(0));
    });
    for (const ProtectedFile* file : order)
        (owned.add(volume, *file) ? stay : give_way).insert(file->number);

    SharingReport report;
    Sharing sharing(volume.fs(), owned);
    A4_CHECK(for_each_claiming_inode(volume, [&](const ClaimingInode& inode) {
        if (has_wrong_type(inode.inode)) report.wrong_type.push_back(inode.number);
        if (inode.inode.i_links_count == 0 &&
            inode.number >= EXT2_FIRST_INODE(volume.fs()->super) && !orphans.contains(inode.number))
            report.no_links.push_back(inode.number);
        if (stay.contains(inode.number)) return;
        sharing.look_at(inode.number, inode.claims,
                        give_way.contains(inode.number) ? SharedBlocks::Other::Atomic
                                                        : SharedBlocks::Other::File);
    }));
    report.shared = sharing.take();
    return report;
}

}  // namespace atomic4
