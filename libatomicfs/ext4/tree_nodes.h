// Nodes of extent trees among the blocks that an operation has staged, and giving changed ones a
// new place: a node is never rewritten where it stands. A torn or half-done change would take
// mappings with it that have nothing to do with the operation.
#pragma once

#include <span>
#include <vector>

#include "ext4/volume.h"

namespace atomic4 {

// Which node of an extent tree a block is; directory and xattr blocks are none.
enum class Node { None, Index, Leaf };
Node node_kind(std::span<const std::byte> block);

// Moves every changed node that stood on the disk before, and all nodes on its way up to the inode,
// to new blocks: nothing of the tree changes until the inode's sector switches to it. An operation
// is open. Returns the blocks that were given up, still marked as in use.
//
// ENOSPC: there is no free block for one. While recovering such a path stays where it is instead:
// replay can't wait for space.
Result<std::vector<Pblk>> move_changed_nodes(Volume& volume);

}  // namespace atomic4
