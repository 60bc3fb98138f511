#include "ext4/extent_map.h"

#include <algorithm>
#include <array>
#include <memory>
#include <optional>

#include "ext4/errcode.h"
#include "ext4/indirect_map.h"

namespace atomic4 {

namespace {

constexpr uint32_t kMaxWritten = 32768;  // F13
constexpr uint32_t kMaxUnwritten = 32767;

struct FreeHandle {
    void operator()(ext2_extent_handle* handle) const { ext2fs_extent_free(handle); }
};
using Handle = std::unique_ptr<ext2_extent_handle, FreeHandle>;

Result<Handle> open_tree(Volume& volume, ext2_ino_t number, ext2_inode* inode) {
    ext2_extent_handle_t handle = nullptr;
    const std::string what = fmt::format("extent tree of inode {}", number);
    A4_CHECK(check_errcode(ext2fs_extent_open2(volume.fs(), number, inode, &handle), what));
    Handle opened(handle);
    // The kernel refuses such a tree (ext4_ext_check()). libext2fs would take it for an empty one,
    // and add extents where nodes belong.
    ext2_extent_info info{};
    A4_CHECK(check_errcode(ext2fs_extent_get_info(handle, &info), what));
    if (info.max_depth > 0 && info.num_entries == 0)
        return fail(EUCLEAN, "{}: it has levels, but no entry: the volume needs e2fsck", what);
    return opened;
}

// Appends, joining what continues the last mapping.
void append(std::vector<Mapping>& mappings, Mapping next) {
    if (next.length.value() == 0) return;
    if (!mappings.empty()) {
        Mapping& last = mappings.back();
        const bool continues = last.state == next.state && (last.state == MapState::Hole ||
                                                            last.pblk + last.length == next.pblk);
        if (continues) {
            last.length += next.length;
            return;
        }
    }
    mappings.push_back(next);
}

// Clips a mapping to [first, end).
Mapping clip(Mapping mapping, Lblk first, Lblk end) {
    if (mapping.lblk < first) {
        const Blocks cut = first - mapping.lblk;
        mapping.pblk += cut;
        mapping.length -= cut;
        mapping.lblk = first;
    }
    if (mapping.end() > end) mapping.length = end - mapping.lblk;
    return mapping;
}

Result<std::vector<Mapping>> map_extents(Volume& volume, ext2_ino_t number, ext2_inode& inode,
                                         Lblk first, Lblk end) {
    std::vector<Mapping> mappings;
    const auto handle = A4_TRY(open_tree(volume, number, &inode));
    const std::string what = fmt::format("extent tree of inode {}", number);
    const uint64_t volume_blocks = ext2fs_blocks_count(volume.fs()->super);
    ext2fs_extent extent{};
    errcode_t code = 0;
    if (first == Lblk(0)) {
        code = ext2fs_extent_get(handle.get(), EXT2_EXTENT_ROOT, &extent);
    } else {
        // Stops at the extent that holds first, or at the one before it.
        code = ext2fs_extent_goto2(handle.get(), 0, first.value());
        if (code == 0 || code == EXT2_ET_EXTENT_NOT_FOUND)
            code = ext2fs_extent_get(handle.get(), EXT2_EXTENT_CURRENT, &extent);
    }
    Lblk at = first;
    std::optional<Mapping> last;
    while (code == 0 && at < end) {
        if ((extent.e_flags & EXT2_EXTENT_FLAGS_LEAF) == 0) {
            code = ext2fs_extent_get(handle.get(), EXT2_EXTENT_NEXT_LEAF, &extent);
            continue;
        }
        const Lblk start(extent.e_lblk);
        if (start >= end) break;
        if (extent.e_pblk + extent.e_len > volume_blocks ||
            extent.e_pblk < volume.fs()->super->s_first_data_block || extent.e_len == 0 ||
            volume.fixed_blocks().overlap(extent.e_pblk, extent.e_len)) {
            return fail(EUCLEAN, "{}: extent {}+{} at impossible block {}: the volume needs e2fsck",
                        what, extent.e_lblk, extent.e_len, extent.e_pblk);
        }
        const Mapping whole{start, Blocks(extent.e_len), Pblk(extent.e_pblk),
                            (extent.e_flags & EXT2_EXTENT_FLAGS_UNINIT) != 0 ? MapState::Unwritten
                                                                             : MapState::Written};
        // After a goto, NEXT_LEAF comes by extents of the way down once more, once a level: what is
        // out of order there is seen when the whole tree is walked.
        const bool overlaps = last && start < last->end();
        if (overlaps && (first == Lblk(0) || last->lblk < start))
            return fail(EUCLEAN, "{}: overlapping extents at {}: the volume needs e2fsck", what,
                        start);
        last = whole;
        // So what ends before at has been seen (and one that reaches beyond end has ended the
        // loop).
        if (whole.end() > at) {
            const Mapping part = clip(whole, first, end);
            if (part.lblk < at)
                return fail(EUCLEAN, "{}: overlapping extents at {}: the volume needs e2fsck", what,
                            start);
            append(mappings, {at, part.lblk - at, Pblk(0), MapState::Hole});
            append(mappings, part);
            at = part.end();
        }
        code = ext2fs_extent_get(handle.get(), EXT2_EXTENT_NEXT_LEAF, &extent);
    }
    if (code != 0 && code != EXT2_ET_EXTENT_NO_NEXT && code != EXT2_ET_NO_CURRENT_NODE &&
        code != EXT2_ET_EXTENT_NOT_FOUND)
        return fail(error_from_errcode(code, what));
    append(mappings, {at, end - at, Pblk(0), MapState::Hole});
    return mappings;
}

Result<std::vector<Mapping>> map_indirect(Volume& volume, ext2_ino_t number, ext2_inode& inode,
                                          Lblk first, Lblk end) {
    std::vector<Mapping> mappings;
    // Block by block takes as long for holes as for blocks.
    constexpr uint64_t kFewBlocks = 4096;
    if ((end - first).value() > kFewBlocks) {
        const IndirectMap all = A4_TRY(read_indirect_map(volume, number)
                                           .context(fmt::format("block map of inode {}", number)));
        Lblk at = first;
        for (const Mapping& mapping : all.mappings) {
            if (mapping.end() <= first) continue;
            if (mapping.lblk >= end) break;
            const Mapping part = clip(mapping, first, end);
            append(mappings, {at, part.lblk - at, Pblk(0), MapState::Hole});
            append(mappings, part);
            at = part.end();
        }
        append(mappings, {at, end - at, Pblk(0), MapState::Hole});
        return mappings;
    }
    for (Lblk at = first; at < end; at += Blocks(1)) {
        blk64_t block = 0;
        A4_CHECK(check_errcode(
            ext2fs_bmap2(volume.fs(), number, &inode, nullptr, 0, at.value(), nullptr, &block),
            fmt::format("block map of inode {}", number)));
        if (block >= ext2fs_blocks_count(volume.fs()->super))
            return fail(EUCLEAN,
                        "inode {}: block {} lies beyond the volume: the volume needs e2fsck",
                        number, block);
        append(mappings,
               {at, Blocks(1), Pblk(block), block == 0 ? MapState::Hole : MapState::Written});
    }
    return mappings;
}

uint64_t end_of(const ext2fs_extent& extent) {
    return extent.e_lblk + extent.e_len;
}

bool unwritten(const ext2fs_extent& extent) {
    return (extent.e_flags & EXT2_EXTENT_FLAGS_UNINIT) != 0;
}

// Whether two extents can be written as one.
bool continues(const ext2fs_extent& left, const ext2fs_extent& right) {
    return end_of(left) == right.e_lblk && left.e_pblk + left.e_len == right.e_pblk &&
           unwritten(left) == unwritten(right) &&
           left.e_len + right.e_len <= (unwritten(left) ? kMaxUnwritten : kMaxWritten);
}

// The leaf that a logical block belongs to, and where the next leaf begins.
struct Leaf {
    std::vector<ext2fs_extent> extents;
    uint64_t end = uint64_t{1} << 32;
};

Result<Leaf> leaf_at(ext2_extent_handle_t handle, uint64_t lblk, const std::string& what) {
    Leaf leaf;
    const auto go = [&]() -> Result<> {
        const errcode_t code = ext2fs_extent_goto2(handle, 0, lblk);
        return check_errcode(code == EXT2_ET_EXTENT_NOT_FOUND ? 0 : code, what);
    };
    A4_CHECK(go());
    ext2fs_extent extent{};
    errcode_t code = 0;
    // The next index entry, at the lowest level that has one.
    while ((code = ext2fs_extent_get(handle, EXT2_EXTENT_UP, &extent)) == 0) {
        code = ext2fs_extent_get(handle, EXT2_EXTENT_NEXT_SIB, &extent);
        if (code == EXT2_ET_EXTENT_NO_NEXT) continue;
        A4_CHECK(check_errcode(code, what));
        leaf.end = extent.e_lblk;
        break;
    }
    if (code != 0 && code != EXT2_ET_EXTENT_NO_UP) return fail(error_from_errcode(code, what));
    A4_CHECK(go());
    code = ext2fs_extent_get(handle, EXT2_EXTENT_FIRST_SIB, &extent);
    while (code == 0) {
        const bool ascends = leaf.extents.empty() || end_of(leaf.extents.back()) <= extent.e_lblk;
        if (extent.e_len == 0 || !ascends || end_of(extent) > leaf.end)
            return fail(EUCLEAN, "{}: overlapping extents at {}: the volume needs e2fsck", what,
                        extent.e_lblk);
        leaf.extents.push_back(extent);
        code = ext2fs_extent_get(handle, EXT2_EXTENT_NEXT_SIB, &extent);
    }
    if (code != EXT2_ET_EXTENT_NO_NEXT) return fail(error_from_errcode(code, what));
    return leaf;
}

// Extents [first, first + replaced) of a leaf become these.
struct Edit {
    size_t first = 0;
    size_t replaced = 0;
    std::vector<ext2fs_extent> extents;
    bool leaf_is_empty = false;
};

// What putting this extent into its leaf means: what it covers goes, what sticks out on either side
// stays, and neighbours that it continues become one with it.
Edit plan_edit(const Leaf& leaf, const ext2fs_extent& extent) {
    Edit edit;
    const auto& old = leaf.extents;
    edit.leaf_is_empty = old.empty();
    while (edit.first < old.size() && end_of(old[edit.first]) <= extent.e_lblk) ++edit.first;
    size_t last = edit.first;
    while (last < old.size() && old[last].e_lblk < end_of(extent)) ++last;
    const auto add = [&](ext2fs_extent next) {
        if (!edit.extents.empty() && continues(edit.extents.back(), next))
            edit.extents.back().e_len += next.e_len;
        else
            edit.extents.push_back(next);
    };
    if (edit.first < last && old[edit.first].e_lblk < extent.e_lblk) {
        ext2fs_extent before = old[edit.first];
        before.e_len = static_cast<uint32_t>(extent.e_lblk - before.e_lblk);
        add(before);
    } else if (edit.first > 0 && continues(old[edit.first - 1], extent)) {
        add(old[--edit.first]);
    }
    add(extent);
    if (edit.first < last && end_of(old[last - 1]) > end_of(extent)) {
        ext2fs_extent after = old[last - 1];
        const auto cut = static_cast<uint32_t>(end_of(extent) - after.e_lblk);
        after.e_lblk += cut;
        after.e_pblk += cut;
        after.e_len -= cut;
        add(after);
    } else if (last < old.size() && continues(edit.extents.back(), old[last])) {
        add(old[last++]);
    }
    edit.replaced = last - edit.first;
    return edit;
}

// Goes to an extent of the current leaf.
Result<> go_to_index(ext2_extent_handle_t handle, size_t index, const std::string& what) {
    ext2fs_extent extent{};
    A4_CHECK(check_errcode(ext2fs_extent_get(handle, EXT2_EXTENT_FIRST_SIB, &extent), what));
    for (size_t i = 0; i < index; ++i)
        A4_CHECK(check_errcode(ext2fs_extent_get(handle, EXT2_EXTENT_NEXT_SIB, &extent), what));
    return {};
}

// The handle is in the edit's leaf. Replaces and deletes before it inserts: a leaf that has to be
// split is then in order. No leaf ever becomes empty, so no block is given back.
Result<> apply(ext2_extent_handle_t handle, Edit edit, const std::string& what) {
    const size_t kept = std::min(edit.replaced, edit.extents.size());
    for (size_t i = 0; i < kept; ++i) {
        A4_CHECK(go_to_index(handle, edit.first + i, what));
        A4_CHECK(check_errcode(ext2fs_extent_replace(handle, 0, &edit.extents[i]), what));
    }
    if (edit.replaced > kept) A4_CHECK(go_to_index(handle, edit.first + kept, what));
    for (size_t i = kept; i < edit.replaced; ++i)
        A4_CHECK(check_errcode(ext2fs_extent_delete(handle, 0), what));
    if (kept > 0) {
        A4_CHECK(go_to_index(handle, edit.first, what));
        A4_CHECK(check_errcode(ext2fs_extent_fix_parents(handle), what));
    }
    // The rest goes after the extent before it, or to the leaf's begin.
    const size_t before = edit.first + kept;
    if (kept < edit.extents.size() && !edit.leaf_is_empty)
        A4_CHECK(go_to_index(handle, before == 0 ? 0 : before - 1, what));
    for (size_t i = kept; i < edit.extents.size(); ++i) {
        const int flags = before == 0 && i == 0 ? 0 : EXT2_EXTENT_INSERT_AFTER;
        A4_CHECK(check_errcode(ext2fs_extent_insert(handle, flags, &edit.extents[i]), what));
        A4_CHECK(check_errcode(ext2fs_extent_fix_parents(handle), what));
    }
    return {};
}

}  // namespace

bool lacks_extents_flag(ext2_filsys fs, const ext2_inode& inode) {
    if (!ext2fs_has_feature_extents(fs->super) ||
        (inode.i_flags & (EXT4_EXTENTS_FL | EXT4_INLINE_DATA_FL)) != 0 ||
        (!LINUX_S_ISREG(inode.i_mode) && !LINUX_S_ISDIR(inode.i_mode)))
        return false;
    auto block = std::to_array(inode.i_block);
    return ext2fs_extent_header_verify(block.data(), sizeof block) == 0;
}

Result<> check_block_mapped(ext2_filsys fs, ext2_ino_t number, const ext2_inode& inode) {
    if (!lacks_extents_flag(fs, inode)) return {};
    return fail(EUCLEAN,
                "inode {}: it has an extent tree, but not the flag for it: the volume needs e2fsck",
                number);
}

Result<std::vector<Mapping>> map_range(Volume& volume, ext2_ino_t number, ext2_inode inode,
                                       Lblk first, Blocks count) {
    if (count.value() == 0) return std::vector<Mapping>{};
    if ((inode.i_flags & EXT4_INLINE_DATA_FL) != 0) {
        return fail(EOPNOTSUPP,
                    "inode {}: its data lies in the inode itself (inline_data), it has no blocks",
                    number);
    }
    if ((inode.i_flags & EXT4_EXTENTS_FL) != 0)
        return map_extents(volume, number, inode, first, first + count);
    A4_CHECK(check_block_mapped(volume.fs(), number, inode));
    return map_indirect(volume, number, inode, first, first + count);
}

Result<> set_mapping(Volume& volume, ext2_ino_t number, ext2_inode* inode, Lblk lblk, PblkRun run,
                     MapState state) {
    const auto handle = A4_TRY(open_tree(volume, number, inode));
    const std::string what = fmt::format("extent tree of inode {}", number);
    const uint32_t flags = state == MapState::Unwritten ? EXT2_EXTENT_FLAGS_UNINIT : 0;
    uint64_t done = 0;
    while (done < run.length.value()) {
        const uint64_t at = lblk.value() + done;
        const auto leaf = A4_TRY(leaf_at(handle.get(), at, what));
        const uint64_t count = std::min({run.length.value() - done, leaf.end - at,
                                         uint64_t{flags == 0 ? kMaxWritten : kMaxUnwritten}});
        const ext2fs_extent part{run.start.value() + done, at, static_cast<uint32_t>(count), flags};
        A4_CHECK(apply(handle.get(), plan_edit(leaf, part), what));
        done += count;
    }
    // Also where only a node below it has changed: who moves that looks for it by its inode.
    return check_errcode(ext2fs_write_inode(volume.fs(), number, inode), what);
}

Result<> build_tree(Volume& volume, ext2_ino_t number, ext2_inode* inode,
                    std::span<const Mapping> mappings) {
    const auto handle = A4_TRY(open_tree(volume, number, inode));
    const std::string what = fmt::format("extent tree of inode {}", number);
    bool first = true;
    for (const Mapping& mapping : mappings) {
        if (mapping.state == MapState::Hole) continue;
        const bool written = mapping.state == MapState::Written;
        uint64_t done = 0;
        while (done < mapping.length.value()) {
            const uint64_t n = std::min<uint64_t>(mapping.length.value() - done,
                                                  written ? kMaxWritten : kMaxUnwritten);
            ext2fs_extent extent{};
            extent.e_lblk = mapping.lblk.value() + done;
            extent.e_pblk = mapping.pblk.value() + done;
            extent.e_len = static_cast<uint32_t>(n);
            extent.e_flags = written ? 0 : EXT2_EXTENT_FLAGS_UNINIT;
            const int flags = first ? 0 : EXT2_EXTENT_INSERT_AFTER;
            A4_CHECK(check_errcode(ext2fs_extent_insert(handle.get(), flags, &extent), what));
            A4_CHECK(check_errcode(ext2fs_extent_fix_parents(handle.get()), what));
            first = false;
            done += n;
        }
    }
    return {};
}

Result<> map_empty_file(Volume& volume, ext2_ino_t number, ext2_inode* inode,
                        std::span<const PblkRun> runs, Blocks written_blocks) {
    std::vector<Mapping> mappings;
    Lblk lblk(0);
    for (const PblkRun& run : runs) {
        const Lblk end = lblk + run.length;
        const Lblk split = std::clamp(Lblk(written_blocks.value()), lblk, end);
        if (split > lblk) mappings.push_back({lblk, split - lblk, run.start, MapState::Written});
        if (end > split) {
            mappings.push_back(
                {split, end - split, run.start + (split - lblk), MapState::Unwritten});
        }
        lblk = end;
    }
    return build_tree(volume, number, inode, mappings);
}

Result<std::vector<Pblk>> tree_blocks(Volume& volume, ext2_ino_t number, ext2_inode inode) {
    std::vector<Pblk> blocks;
    const auto handle = A4_TRY(open_tree(volume, number, &inode));
    const std::string what = fmt::format("extent tree of inode {}", number);
    ext2fs_extent extent{};
    // Where the node that an index entry leads to has to begin: lookups go by that.
    std::optional<uint64_t> begins;
    errcode_t code = ext2fs_extent_get(handle.get(), EXT2_EXTENT_ROOT, &extent);
    while (code == 0) {
        const bool index = (extent.e_flags & EXT2_EXTENT_FLAGS_LEAF) == 0;
        const bool second = (extent.e_flags & EXT2_EXTENT_FLAGS_SECOND_VISIT) != 0;
        if (!second && begins && *begins != extent.e_lblk) {
            return fail(EUCLEAN, "{}: a node begins at {} and not at {}: the volume needs e2fsck",
                        what, extent.e_lblk, *begins);
        }
        begins.reset();
        if (index && !second) {
            blocks.emplace_back(extent.e_pblk);
            begins = extent.e_lblk;
        }
        code = ext2fs_extent_get(handle.get(), EXT2_EXTENT_NEXT, &extent);
    }
    if (code != EXT2_ET_EXTENT_NO_NEXT && code != EXT2_ET_NO_CURRENT_NODE)
        return fail(error_from_errcode(code, what));
    return blocks;
}

}  // namespace atomic4
