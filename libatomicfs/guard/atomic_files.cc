#include "guard/atomic_files.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <set>

#include "ext4/bitmap_rebuild.h"
#include "ext4/block_claims.h"
#include "ext4/format.h"
#include "ext4/layout_plan.h"
#include "ext4/path.h"
#include "ext4/transaction.h"
#include "ext4/xattr.h"
#include "writer/move_blocks.h"

namespace atomic4 {

namespace {

Mapping rest_of(const Mapping& mapping, Blocks done) {
    return {mapping.lblk + done, mapping.length - done, mapping.pblk + done, mapping.state};
}

// The first block that isn't mapped as it was.
std::string difference(std::vector<Mapping> before, std::vector<Mapping> now) {
    auto old = before.begin();
    auto is = now.begin();
    while (old != before.end() && is != now.end()) {
        if (is->lblk < old->lblk) break;
        if (old->lblk < is->lblk) return fmt::format("its block {} is gone", old->lblk);
        if (old->pblk != is->pblk)
            return fmt::format("its block {} has moved from {} to {}", old->lblk, old->pblk,
                               is->pblk);
        if (old->state != is->state)
            return fmt::format("its block {} is {} now", old->lblk,
                               is->state == MapState::Written ? "written" : "unwritten");
        const Blocks same = std::min(old->length, is->length);
        *old = rest_of(*old, same);
        *is = rest_of(*is, same);
        if (old->length == Blocks(0)) ++old;
        if (is->length == Blocks(0)) ++is;
    }
    if (is != now.end()) return fmt::format("it has a new block {} at {}", is->lblk, is->pblk);
    if (old != before.end()) return fmt::format("its block {} is gone", old->lblk);
    return {};
}

Result<std::string> change_of(Volume& volume, const ProtectedFile& file) {
    auto state = read_file(volume, file.number);
    if (!state && state.error().code == EIO) return fail(std::move(state).error());
    if (!state) return state.error().message;
    ext2_inode before{};
    std::memcpy(&before, file.inode.data(), sizeof before);
    if (!LINUX_S_ISREG(state->inode.i_mode)) return std::string("is no regular file any more");
    if (state->generation != before.i_generation) return std::string("is another file now");
    if (!state->atomic && (before.i_flags & kInodeFlagAtomic) != 0)
        return std::string("has lost the atomic flag");
    if (state->unit != file.unit) return std::string("has lost its unit");
    auto mapped = map_range(volume, file.number, state->inode, Lblk(0), kWholeFile);
    if (!mapped && mapped.error().code == EIO) return fail(std::move(mapped).error());
    if (!mapped) return mapped.error().message;
    return difference(file.mappings, joined(*mapped));
}

// What of these blocks (ascending, apart) has come to other inodes than those whose they were.
Result<std::map<ext2_ino_t, std::vector<BlockClaim>>> claimed_by_others(
    Volume& volume, const std::vector<PblkRun>& blocks, const std::set<ext2_ino_t>& owners) {
    const auto end_of = [](const PblkRun& run) { return run.start + run.length; };
    std::map<ext2_ino_t, std::vector<BlockClaim>> theirs;
    A4_CHECK(for_each_claiming_inode(volume, [&](const ClaimingInode& inode) {
        if (owners.contains(inode.number)) return;
        for (const BlockClaim& claim : inode.claims) {
            const Pblk end = end_of(claim.run);
            for (auto run = std::ranges::upper_bound(blocks, claim.run.start, {}, end_of);
                 run != blocks.end() && run->start < end; ++run) {
                const Pblk from = std::max(claim.run.start, run->start);
                const Pblk to = std::min(end, end_of(*run));
                theirs[inode.number].push_back(
                    {claim.kind, claim.lblk + (from - claim.run.start), {from, to - from}});
            }
        }
    }));
    return theirs;
}

}  // namespace

Result<ProtectedSet> protect_atomic_files(Volume& volume) {
    const auto inodes = A4_TRY(find_atomic_inodes(volume));
    const auto paths = A4_TRY(paths_of(volume, {inodes.begin(), inodes.end()}));
    std::vector<ProtectedFile> files;
    for (const ext2_ino_t number : inodes) {
        const auto path = paths.find(number);
        files.push_back(
            A4_TRY(copy_file(volume, number, path == paths.end() ? std::string() : path->second)));
    }
    return ProtectedSet(std::move(files), volume.block_size());
}

Result<std::vector<FileChange>> changes_in(Volume& volume, const ProtectedSet& set) {
    std::vector<FileChange> changes;
    for (size_t i = 0; i < set.files().size(); ++i) {
        const ProtectedFile& file = set.files()[i];
        std::string change = A4_TRY(change_of(volume, file));
        if (!change.empty()) changes.push_back({i, std::move(change)});
    }
    std::set<ext2_ino_t> unnamed;
    for (const FileChange& change : changes) {
        const ProtectedFile& file = set.files()[change.file];
        if (file.path.empty()) unnamed.insert(file.number);
    }
    // Directories may be damaged, too.
    const auto paths = paths_of(volume, std::move(unnamed));
    for (FileChange& change : changes) {
        const ProtectedFile& file = set.files()[change.file];
        std::string path = file.path;
        if (path.empty() && paths && paths->contains(file.number)) path = paths->at(file.number);
        change.text = fmt::format("{}: {}", name_of_file(path, file.number), change.text);
    }
    return changes;
}

Result<> put_back(Volume& volume, const ProtectedSet& set, const std::vector<FileChange>& changes) {
    ext2_filsys fs = volume.fs();
    Device& device = volume.device();
    std::vector<PblkRun> blocks;
    std::set<ext2_ino_t> owners;
    for (const FileChange& change : changes) {
        const ProtectedFile& file = set.files()[change.file];
        const std::vector<PblkRun> its = runs_of(file);
        blocks.insert(blocks.end(), its.begin(), its.end());
        owners.insert(file.number);
    }
    std::ranges::sort(blocks, {}, &PblkRun::start);
    // Whoever is interrupted here leaves a volume that has to be checked.
    A4_CHECK(volume.mark_for_checking());
    // No inode points at what the bitmaps call free, not even between two writes.
    A4_CHECK(prove_all_bitmaps(volume, Unclaimed::StaysUsed, blocks));
    for (const auto& [number, parts] : A4_TRY(claimed_by_others(volume, blocks, owners)))
        A4_CHECK(move_blocks(volume, number, parts, Blocks(1)));
    for (const FileChange& change : changes) {
        const ProtectedFile& file = set.files()[change.file];
        for (const ProtectedFile::Node& node : file.nodes) {
            A4_CHECK(device.write(ByteOffset(node.block.value() * fs->blocksize), node.contents)
                         .context(file.path));
        }
    }
    A4_CHECK(device.flush());
    for (const FileChange& change : changes) {
        const ProtectedFile& file = set.files()[change.file];
        A4_CHECK(device.write(file.inode_at, file.inode).context(file.path));
    }
    A4_CHECK(device.flush());
    ext2fs_flush_icache(fs);
    for (const FileChange& change : changes) {
        const ProtectedFile& file = set.files()[change.file];
        const auto state = read_file(volume, file.number);
        if (!state || !file.unit || state->unit == file.unit) continue;
        Transaction transaction(volume);
        A4_CHECK(write_xattr(fs, file.number, kUnitXattr, fmt::format("{}", *file.unit)));
        A4_CHECK(transaction.commit());
    }
    return {};
}

}  // namespace atomic4
