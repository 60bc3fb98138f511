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

ext2_inode inode_of(const ProtectedFile& file) {
    ext2_inode inode{};
    std::memcpy(&inode, file.inode.data(), sizeof inode);
    return inode;
}

// Of its inode and its mapping; empty: none.
Result<std::string> layout_change_of(Volume& volume, const ProtectedFile& file,
                                     const FileState& state) {
    const ext2_inode before = inode_of(file);
    if (!LINUX_S_ISREG(state.inode.i_mode)) return std::string("is no regular file any more");
    if (state.generation != before.i_generation) return std::string("is another file now");
    if (!state.atomic && (before.i_flags & kInodeFlagAtomic) != 0)
        return std::string("has lost the atomic flag");
    auto mapped = map_range(volume, file.number, state.inode, Lblk(0), kWholeFile);
    if (!mapped && mapped.error().code == EIO) return fail(std::move(mapped).error());
    if (!mapped) return mapped.error().message;
    return difference(file.mappings, joined(*mapped));
}

Result<FileChange> change_of(Volume& volume, const ProtectedFile& file) {
    auto state = read_file(volume, file.number);
    if (!state && state.error().code == EIO) return fail(std::move(state).error());
    if (!state) return FileChange{0, state.error().message, Lost::Layout};
    std::string text = A4_TRY(layout_change_of(volume, file, *state));
    if (!text.empty()) return FileChange{0, std::move(text), Lost::Layout};
    if (state->unit != file.unit) return FileChange{0, "has lost its unit", Lost::Unit};
    return FileChange{};
}

// 0: none that could be one.
Pblk xattr_block_of(Volume& volume, const ProtectedFile& file) {
    ext2_inode inode = inode_of(file);
    const uint64_t block = ext2fs_file_acl_block(volume.fs(), &inode);
    const bool possible = block >= volume.fs()->super->s_first_data_block &&
                          block < ext2fs_blocks_count(volume.fs()->super) &&
                          !volume.fixed_blocks().overlap(block, 1);
    return Pblk(possible ? block : 0);
}

// What some inodes had before they changed.
struct Had {
    std::set<ext2_ino_t> owners;
    std::vector<PblkRun> blocks;  // ascending, apart
    std::set<Pblk> xattr_blocks;  // among them; others may have them, too
};

Had had_before(Volume& volume, const ProtectedSet& set, const std::vector<FileChange>& changes) {
    Had had;
    for (const FileChange& change : changes) {
        if (change.lost != Lost::Layout) continue;
        const ProtectedFile& file = set.files()[change.file];
        const std::vector<PblkRun> its = runs_of(file);
        had.blocks.insert(had.blocks.end(), its.begin(), its.end());
        had.owners.insert(file.number);
        if (const Pblk xattrs = xattr_block_of(volume, file); xattrs != Pblk(0))
            had.xattr_blocks.insert(xattrs);
    }
    // What lies among a file's data is that file's.
    for (const ProtectedFile& file : set.files()) {
        for (const PblkRun& run : runs_of(file)) {
            std::erase_if(had.xattr_blocks, [&](Pblk block) {
                return run.start <= block && block < run.start + run.length;
            });
        }
    }
    for (const Pblk block : had.xattr_blocks) had.blocks.push_back({block, Blocks(1)});
    std::ranges::sort(had.blocks, {}, &PblkRun::start);
    return had;
}

// What of it has come to other inodes.
Result<std::map<ext2_ino_t, std::vector<BlockClaim>>> claimed_by_others(Volume& volume,
                                                                        const Had& had) {
    const auto end_of = [](const PblkRun& run) { return run.start + run.length; };
    std::map<ext2_ino_t, std::vector<BlockClaim>> theirs;
    A4_CHECK(for_each_claiming_inode(volume, [&](const ClaimingInode& inode) {
        if (had.owners.contains(inode.number)) return;
        for (const BlockClaim& claim : inode.claims) {
            if (claim.kind == BlockClaim::Kind::Xattrs &&
                had.xattr_blocks.contains(claim.run.start))
                continue;
            const Pblk end = end_of(claim.run);
            for (auto run = std::ranges::upper_bound(had.blocks, claim.run.start, {}, end_of);
                 run != had.blocks.end() && run->start < end; ++run) {
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
        FileChange change = A4_TRY(change_of(volume, set.files()[i]));
        change.file = i;
        if (!change.text.empty()) changes.push_back(std::move(change));
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
    const Had had = had_before(volume, set, changes);
    // Whoever is interrupted here leaves a volume that has to be checked.
    A4_CHECK(volume.mark_for_checking());
    // No inode points at what the bitmaps call free, not even between two writes.
    A4_CHECK(prove_all_bitmaps(volume, Unclaimed::StaysUsed, had.blocks));
    if (!had.owners.empty()) {
        for (const auto& [number, parts] : A4_TRY(claimed_by_others(volume, had)))
            A4_CHECK(move_blocks(volume, number, parts, Blocks(1)));
    }
    const auto for_each_lost = [&](auto f) -> Result<> {
        for (const FileChange& change : changes) {
            const ProtectedFile& file = set.files()[change.file];
            if (change.lost == Lost::Layout) A4_CHECK(f(file).context(file.path));
        }
        return device.flush();
    };
    A4_CHECK(for_each_lost([&](const ProtectedFile& file) -> Result<> {
        for (const ProtectedFile::Node& node : file.nodes)
            A4_CHECK(device.write(ByteOffset(node.block.value() * fs->blocksize), node.contents));
        return {};
    }));
    A4_CHECK(for_each_lost(
        [&](const ProtectedFile& file) { return device.write(file.inode_at, file.inode); }));
    ext2fs_flush_icache(fs);
    for (const FileChange& change : changes) {
        const ProtectedFile& file = set.files()[change.file];
        const auto state = read_file(volume, file.number);
        if (!state || !file.unit || state->unit == file.unit) continue;
        Transaction transaction(volume);
        A4_CHECK(move_xattr_block(volume, file.number));  // the old one is e2fsck's
        A4_CHECK(write_xattr(fs, file.number, kUnitXattr, fmt::format("{}", *file.unit)));
        A4_CHECK(transaction.commit());
    }
    return {};
}

}  // namespace atomic4
