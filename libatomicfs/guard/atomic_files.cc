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

// What some files had before they changed.
struct Had {
    std::set<ext2_ino_t> owners;
    std::vector<PblkRun> blocks;  // ascending, apart
    std::set<Pblk> xattr_blocks;  // among them; others may have them, too
};

Had had_before(Volume& volume, const ProtectedSet& set,
               const std::vector<const ProtectedFile*>& files) {
    Had had;
    for (const ProtectedFile* file : files) {
        const std::vector<PblkRun> its = runs_of(*file);
        had.blocks.insert(had.blocks.end(), its.begin(), its.end());
        had.owners.insert(file->number);
        if (const Pblk xattrs = xattr_block_of(volume, *file); xattrs != Pblk(0))
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

// Their trees, then the inodes that lead there. The blocks are theirs.
Result<> write_back(Device& device, const std::vector<const ProtectedFile*>& files) {
    for (const ProtectedFile* file : files) {
        for (const ProtectedFile::Node& node : file->nodes) {
            const ByteOffset at(node.block.value() * node.contents.size());
            A4_CHECK(device.write(at, node.contents).context(file->path));
        }
    }
    A4_CHECK(device.flush());
    for (const ProtectedFile* file : files)
        A4_CHECK(device.write(file->inode_at, file->inode).context(file->path));
    return device.flush();
}

// In place, where there is no block for a copy of its block of xattrs; the old one is e2fsck's.
Result<> give_unit(Volume& volume, const ProtectedFile& file) {
    const auto state = read_file(volume, file.number);
    if (!state || !file.unit || state->unit == file.unit) return {};
    Transaction transaction(volume);
    auto moved = move_xattr_block(volume, file.number);
    if (!moved && !nothing_to_be_had(moved.error())) return fail(std::move(moved).error());
    A4_CHECK(write_xattr(volume.fs(), file.number, kUnitXattr, fmt::format("{}", *file.unit)));
    return transaction.commit();
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
    std::vector<const ProtectedFile*> files;
    for (const FileChange& change : changes) {
        if (change.lost == Lost::Layout) files.push_back(&set.files()[change.file]);
    }
    const Had had = had_before(volume, set, files);
    // Whoever is interrupted here leaves a volume that has to be checked.
    A4_CHECK(volume.mark_for_checking());
    // No inode points at what the bitmaps call free, not even between two writes.
    A4_CHECK(prove_all_bitmaps(volume, Unclaimed::StaysUsed, had.blocks));
    if (!files.empty()) {
        for (const auto& [number, parts] : A4_TRY(claimed_by_others(volume, had)))
            A4_CHECK(move_blocks(volume, number, parts, Blocks(1)));
        A4_CHECK(write_back(volume.device(), files));
        ext2fs_flush_icache(volume.fs());
    }
    Result<> all;
    for (const FileChange& change : changes) {
        auto given = give_unit(volume, set.files()[change.file]);
        if (!given && all) all = std::move(given);
    }
    return all;
}

Result<> put_back_inodes(Volume& seen, Device& device, const ProtectedSet& set,
                         const std::set<ext2_ino_t>& numbers) {
    std::vector<const ProtectedFile*> files;
    for (const ProtectedFile& file : set.files()) {
        if (numbers.contains(file.number)) files.push_back(&file);
    }
    for (const auto& [number, parts] :
         A4_TRY(claimed_by_others(seen, had_before(seen, set, files)))) {
        return fail(EUCLEAN, "block {} has come to inode {} meanwhile", parts.front().run.start,
                    number);
    }
    return write_back(device, files);
}

}  // namespace atomic4
