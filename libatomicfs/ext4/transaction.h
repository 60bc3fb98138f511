// Transaction: one metadata operation on an owned volume.
//
// From construction on, metadata writes are staged: an operation that fails, or whose Transaction
// goes out of scope without commit(), has changed nothing, on disk or in memory.
//
// commit() writes in the order that a power cut at any moment can stand:
//
//   Allocating                                       Freeing
//   1 bitmaps, group descriptors   (blocks leaked    1 inodes, superblock
//     flush                         at worst)          flush
//   2 new blocks of trees, directories,              2 directories
//     xattrs; flush                                    flush
//   3 inodes, superblock                             3 bitmaps, group descriptors
//     flush                                            flush
//   4 directory blocks that were there before
//     flush
//   5 recovering a full volume: index nodes that
//     were there before, flush, leaves, flush
//
// so that no inode ever points at a block that the bitmaps call free (another file would get it).
// What is made gets its name last: the kernel, which would record an error for a name without an
// inode, meets none. What is removed loses its inode first: whoever runs the removal again still
// finds it by its name.
//
// A node of an extent tree that was there before is not written where it stands: it and the nodes
// above it move to new blocks (tree_nodes.h), and the inode's sector switches from the old tree to
// the new one; then the old blocks are given back, in an operation of their own. Without a free
// block for that the operation fails (ENOSPC). Only recovery, which can't wait, rewrites nodes in
// place then: 5 at least lets both halves of a split leaf be found.
//
// What a crash can leave is blocks in use that nobody owns, wrong counts, a bitmap whose checksum
// is old, and, after a second crash in the recovery of a full volume, extents in two leaves or a
// torn leaf: e2fsck's work (RECOVERY.md).
// Data blocks are zeroed by the caller before commit(), and covered by its first flush.
//
// If a write fails, what was written is put back, and the operation is reported as failed; if that
// fails too, or a flush fails, the volume is poisoned ("in doubt").
#pragma once

#include "ext4/volume.h"

namespace atomic4 {

class Transaction {
  public:
    enum class Order { Allocating, Freeing };

    explicit Transaction(Volume& volume);
    ~Transaction();
    Transaction(const Transaction&) = delete;
    Transaction& operator=(const Transaction&) = delete;

    Result<> commit(Order order = Order::Allocating);
    // Whether an allocating commit would find the blocks that it needs; nothing is committed
    // afterwards.
    Result<> rehearse();

  private:
    using Images = std::map<uint64_t, std::span<const std::byte>>;  // block number → contents
    void abort();
    Result<> free_blocks(const std::vector<Pblk>& blocks);
    Result<> write_images(const Images& images);
    Result<> put_back(const std::vector<const Images*>& written, const Images& before);

    Volume& volume_;
    bool open_ = true;
    ext2_super_block super_before_;
    Volume::AttrState attr_before_;
};

}  // namespace atomic4
