// Where a file's blocks are, and changing it.
//
// Reading works for extent-mapped and indirect files; changing only for extent-mapped ones. Every
// mapping read from disk is proved to lie inside the volume and in ascending order, an extent also
// to claim no block of the volume's own metadata; anything else is EUCLEAN. Files with inline data
// have no blocks: EOPNOTSUPP.
//
// Changes belong to a Transaction. They update the inode passed in and write it (staged); the
// caller sets sizes and times and writes it again.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "ext4/volume.h"

namespace atomic4 {

// Logical block numbers have 32 bits: as many blocks a file can have, and so long a range is all of
// it.
inline constexpr uint64_t kFileBlocksMax = 0xffffffff;
inline constexpr Blocks kWholeFile(uint64_t{1} << 32);

enum class MapState { Hole, Unwritten, Written };

struct Mapping {
    Lblk lblk;
    Blocks length;
    Pblk pblk;  // 0 for a hole
    MapState state = MapState::Hole;
    bool operator==(const Mapping&) const = default;
    Lblk end() const { return lblk + length; }
};

// Whether what the inode has is an extent tree, though its flag says block numbers, as e2fsck sees
// it (pass 1, PR_1_UNSET_EXTENT_FL), which sets the flag. Taken for block numbers it would be
// blocks of anybody.
bool lacks_extents_flag(ext2_filsys fs, const ext2_inode& inode);
// EUCLEAN: so it is.
Result<> check_block_mapped(ext2_filsys fs, ext2_ino_t number, const ext2_inode& inode);

// The mappings of [first, first + count), holes included, in order; neighbours that continue each
// other are one. EUCLEAN: they aren't to be believed.
Result<std::vector<Mapping>> map_range(Volume& volume, ext2_ino_t number, ext2_inode inode,
                                       Lblk first, Blocks count);

// Maps [lblk, lblk + run.length) to the run, replacing what was there; small ranges (a few MiB).
Result<> set_mapping(Volume& volume, ext2_ino_t number, ext2_inode* inode, Lblk lblk, PblkRun run,
                     MapState state);

// Gives an inode without a mapping (i_block all zero) these, in ascending order; holes are passed
// over. Extents are as long as the format allows. The tree's own blocks are counted in i_blocks,
// the others by the caller.
Result<> build_tree(Volume& volume, ext2_ino_t number, ext2_inode* inode,
                    std::span<const Mapping> mappings);

// Maps an empty file to the runs, from logical block 0 on: written up to written_blocks, unwritten
// beyond. Extents are as long as the format allows.
Result<> map_empty_file(Volume& volume, ext2_ino_t number, ext2_inode* inode,
                        std::span<const PblkRun> runs, Blocks written_blocks);

// The tree's own blocks (index and leaf nodes), for those who free or protect them. EUCLEAN: they
// don't fit together.
Result<std::vector<Pblk>> tree_blocks(Volume& volume, ext2_ino_t number, ext2_inode inode);

}  // namespace atomic4
