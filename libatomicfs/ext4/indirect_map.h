// All blocks of a file that is mapped by indirect blocks, as ext2 and ext3 do it.
//
// Proved: every block lies inside the volume, and there are no more of them than the volume has
// (indirect blocks that lead to themselves could go on nearly for ever); EUCLEAN otherwise. Time
// goes with the blocks that there are, not with the holes.
#pragma once

#include "ext4/extent_map.h"

namespace atomic4 {

struct IndirectMap {
    std::vector<Mapping> mappings;  // ascending, without holes, neighbours joined
    std::vector<Pblk> nodes;        // the indirect blocks
};

Result<IndirectMap> read_indirect_map(Volume& volume, ext2_ino_t number);

}  // namespace atomic4
