#include "ext4/extent_map.h"

#include <algorithm>
#include <memory>

#include "ext4/errcode.h"

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
    A4_CHECK(check_errcode(ext2fs_extent_open2(volume.fs(), number, inode, &handle),
                           fmt::format("extent tree of inode {}", number)));
    return Handle(handle);
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
    // Stops at the extent that holds first, or at the one before it.
    errcode_t code = ext2fs_extent_goto2(handle.get(), 0, first.value());
    if (code == 0 || code == EXT2_ET_EXTENT_NOT_FOUND)
        code = ext2fs_extent_get(handle.get(), EXT2_EXTENT_CURRENT, &extent);
    Lblk at = first;
    while (code == 0 && at < end) {
        if ((extent.e_flags & EXT2_EXTENT_FLAGS_LEAF) == 0) {
            code = ext2fs_extent_get(handle.get(), EXT2_EXTENT_NEXT_LEAF, &extent);
            continue;
        }
        const Lblk start(extent.e_lblk);
        if (start >= end) break;
        if (extent.e_pblk + extent.e_len > volume_blocks ||
            extent.e_pblk < volume.fs()->super->s_first_data_block || extent.e_len == 0) {
            return fail(EUCLEAN, "{}: extent {}+{} at impossible block {}: the volume needs e2fsck",
                        what, extent.e_lblk, extent.e_len, extent.e_pblk);
        }
        const Mapping whole{start, Blocks(extent.e_len), Pblk(extent.e_pblk),
                            (extent.e_flags & EXT2_EXTENT_FLAGS_UNINIT) != 0 ? MapState::Unwritten
                                                                             : MapState::Written};
        // After a goto, NEXT_LEAF comes by the extents of the first leaf once more: what ends
        // before at has been seen (and one that reaches beyond end has ended the loop).
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

}  // namespace

Result<std::vector<Mapping>> map_range(Volume& volume, ext2_ino_t number, ext2_inode inode,
                                       Lblk first, Blocks count) {
    if (count.value() == 0) return std::vector<Mapping>{};
    if ((inode.i_flags & EXT4_EXTENTS_FL) != 0)
        return map_extents(volume, number, inode, first, first + count);
    return map_indirect(volume, number, inode, first, first + count);
}

Result<> set_mapping(Volume& volume, ext2_ino_t number, ext2_inode* inode, Lblk lblk, PblkRun run,
                     MapState state) {
    const auto handle = A4_TRY(open_tree(volume, number, inode));
    const int flags = state == MapState::Unwritten ? EXT2_EXTENT_SET_BMAP_UNINIT : 0;
    for (uint64_t i = 0; i < run.length.value(); ++i) {
        A4_CHECK(check_errcode(
            ext2fs_extent_set_bmap(handle.get(), lblk.value() + i, run.start.value() + i, flags),
            fmt::format("extent tree of inode {}", number)));
    }
    return {};
}

Result<> map_empty_file(Volume& volume, ext2_ino_t number, ext2_inode* inode,
                        std::span<const PblkRun> runs, Blocks written_blocks) {
    const auto handle = A4_TRY(open_tree(volume, number, inode));
    uint64_t lblk = 0;
    for (const PblkRun& run : runs) {
        uint64_t done = 0;
        while (done < run.length.value()) {
            const bool written = lblk < written_blocks.value();
            uint64_t n = std::min<uint64_t>(run.length.value() - done,
                                            written ? kMaxWritten : kMaxUnwritten);
            if (written) n = std::min(n, written_blocks.value() - lblk);
            ext2fs_extent extent{};
            extent.e_lblk = lblk;
            extent.e_pblk = run.start.value() + done;
            extent.e_len = static_cast<uint32_t>(n);
            extent.e_flags = written ? 0 : EXT2_EXTENT_FLAGS_UNINIT;
            A4_CHECK(
                check_errcode(ext2fs_extent_insert(
                                  handle.get(), lblk == 0 ? 0 : EXT2_EXTENT_INSERT_AFTER, &extent),
                              fmt::format("extent tree of inode {}", number)));
            A4_CHECK(check_errcode(ext2fs_extent_fix_parents(handle.get()),
                                   fmt::format("extent tree of inode {}", number)));
            lblk += n;
            done += n;
        }
    }
    return {};
}

Result<std::vector<Pblk>> tree_blocks(Volume& volume, ext2_ino_t number, ext2_inode inode) {
    std::vector<Pblk> blocks;
    const auto handle = A4_TRY(open_tree(volume, number, &inode));
    ext2fs_extent extent{};
    errcode_t code = ext2fs_extent_get(handle.get(), EXT2_EXTENT_ROOT, &extent);
    while (code == 0) {
        const bool index = (extent.e_flags & EXT2_EXTENT_FLAGS_LEAF) == 0;
        const bool second = (extent.e_flags & EXT2_EXTENT_FLAGS_SECOND_VISIT) != 0;
        if (index && !second) blocks.emplace_back(extent.e_pblk);
        code = ext2fs_extent_get(handle.get(), EXT2_EXTENT_NEXT, &extent);
    }
    if (code != EXT2_ET_EXTENT_NO_NEXT && code != EXT2_ET_NO_CURRENT_NODE)
        return fail(error_from_errcode(code, fmt::format("extent tree of inode {}", number)));
    return blocks;
}

}  // namespace atomic4
