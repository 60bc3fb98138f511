// All blocks of a file, proved to be its own as far as the file and the volume's geometry can tell:
// before somebody moves or frees them.
#pragma once

#include <vector>

#include "ext4/atomic_file.h"
#include "ext4/extent_map.h"

namespace atomic4 {

struct FileBlocks {
    std::vector<Mapping> mappings;  // without holes, ascending, neighbours joined
    std::vector<Pblk> nodes;        // of the extent tree, or indirect blocks
};

// Of an extent-mapped or indirect-mapped file, also beyond EOF. EUCLEAN: a block lies outside the
// volume, or is claimed twice, or is the volume's own metadata (superblocks, descriptors, bitmaps,
// inode tables), or the block bitmap calls it free.
Result<FileBlocks> read_blocks(Volume& volume, const FileState& file);

// Sorted runs, rounded to whole clusters, neighbours joined: what an allocation is made of. Without
// bigalloc a cluster is a block.
std::vector<PblkRun> whole_clusters(const Volume& volume, std::vector<PblkRun> runs);

}  // namespace atomic4
