// What a guarded view lets nobody touch: the data of atomic files, the blocks of their extent
// trees, and of their inodes what says where the data is and that it is theirs (mode, flags,
// i_block, generation). Copied, so that a file can be put back as it was whatever a tool did to its
// inode (F17).
//
// Units: bytes of the device in the ranges, blocks in the files. Threads: any number, once made.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "ext4/aligned_allocator.h"
#include "ext4/atomic_file.h"
#include "ext4/extent_map.h"

namespace atomic4 {

struct ProtectedFile {
    ext2_ino_t number = 0;
    std::string path;  // empty: not looked up, or it has none
    std::optional<Bytes> unit;
    std::vector<std::byte> inode;  // all of its bytes in the table
    ByteOffset inode_at;
    std::vector<Mapping> mappings;  // without holes
    struct Node {
        Pblk block;
        std::vector<std::byte> contents;
    };
    std::vector<Node> nodes;  // of the extent tree
};

enum class Protection {
    Data,   // no write at all
    Tree,   // none that changes it
    Inode,  // none that changes it
};

// Its data and its tree, in no order.
std::vector<PblkRun> runs_of(const ProtectedFile& file);

struct ProtectedRange {
    uint64_t begin = 0;  // bytes
    uint64_t end = 0;
    Protection protection = Protection::Data;
    uint32_t file = 0;  // index
};

class ProtectedSet {
  public:
    ProtectedSet() = default;
    ProtectedSet(std::vector<ProtectedFile> files, Bytes block_size);
    // The same, but that this file's inode and tree may be changed: a tool finds fault with them.
    // Its data may not.
    ProtectedSet with_only_data_of(ext2_ino_t number) const;

    // The ranges that intersect [begin, end), ascending. Empty nearly always, and then cheap.
    std::span<const ProtectedRange> in(uint64_t begin, uint64_t end) const;

    const std::vector<ProtectedFile>& files() const { return files_; }
    const ProtectedFile& file_of(const ProtectedRange& range) const { return files_[range.file]; }
    Bytes block_size() const { return block_size_; }
    // The block after the last one of any file's data or tree.
    Pblk end() const;

  private:
    std::vector<ProtectedFile> files_;
    std::vector<ProtectedRange> ranges_;
    Bytes block_size_{4096};
};

// "/db (inode 15)", or "inode 15" without a path.
std::string name_of_file(const std::string& path, ext2_ino_t number);

// Copies a file, which must be sound: EUCLEAN otherwise.
Result<ProtectedFile> copy_file(Volume& volume, ext2_ino_t number, std::string path);

}  // namespace atomic4
