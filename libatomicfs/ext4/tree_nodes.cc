#include "ext4/tree_nodes.h"

#include <algorithm>
#include <cstring>

#include "ext4/errcode.h"

namespace atomic4 {

namespace {

constexpr int kMaxDepth = 5;  // EXT4_MAX_EXTENT_DEPTH

// A node's header and entries, in the memory of a block or of an inode's i_block.
ext3_extent_header* header_of(void* node) {
    return static_cast<ext3_extent_header*>(node);
}

uint64_t child_of(const ext3_extent_idx& entry) {
    return entry.ei_leaf + (uint64_t{entry.ei_leaf_hi} << 32);
}

// The first logical block below a node. Extents and index entries begin with it.
uint32_t first_key(const std::byte* node) {
    uint32_t key = 0;
    std::memcpy(&key, node + sizeof(ext3_extent_header), sizeof key);
    return key;
}

// The entry of an index node that leads to a logical block.
ext3_extent_idx* entry_for(ext3_extent_header* header, size_t room, uint32_t key) {
    const size_t count = std::min<size_t>(header->eh_entries, room);
    if (header->eh_magic != EXT3_EXT_MAGIC || header->eh_depth == 0 || count == 0) return nullptr;
    ext3_extent_idx* entry = EXT_FIRST_INDEX(header);
    for (size_t i = 1; i < count && entry[1].ei_block <= key; ++i) ++entry;
    return entry;
}

class Mover {
  public:
    explicit Mover(Volume& volume)
        : volume_(volume), fs_(volume.fs()), block_size_(volume.block_size().value()) {}

    Result<std::vector<Pblk>> run() {
        // Moving stages blocks: first what there is.
        std::vector<uint64_t> nodes;
        for (const auto& [block, bytes] : volume_.metadata_device().blocks()) {
            if (!volume_.block_bitmaps().newly_used(block) &&
                !volume_.inode_tables().first_inode_in(block) && node_kind(bytes) != Node::None)
                nodes.push_back(block);
        }
        for (const uint64_t node : nodes) {
            // It may have moved already, on another one's path.
            if (!volume_.metadata_device().blocks().contains(node)) continue;
            const auto path = A4_TRY(find_path(node));
            if (!path)
                return fail(EUCLEAN,
                            "block {}: a node of no extent tree that leads to it: the volume needs "
                            "e2fsck",
                            node);
            A4_CHECK(move(*path));
        }
        return std::move(given_up_);
    }

  private:
    struct Path {
        ext2_ino_t inode = 0;
        std::vector<uint64_t> nodes;  // from below the inode down to the changed one
    };

    Result<std::vector<std::byte>> read(uint64_t block) {
        std::vector<std::byte> bytes(block_size_);
        A4_CHECK(volume_.metadata_device().read(ByteOffset(block * block_size_), bytes));
        return bytes;
    }

    // By way of the inodes that the operation has changed.
    Result<std::optional<Path>> find_path(uint64_t node) {
        const uint32_t key = first_key(volume_.metadata_device().blocks().at(node).data());
        for (const auto& [block, bytes] : volume_.metadata_device().blocks()) {
            const auto first = volume_.inode_tables().first_inode_in(block);
            const auto count = static_cast<uint32_t>(EXT2_INODES_PER_BLOCK(fs_->super));
            for (uint32_t i = 0; first && i < count; ++i) {
                ext2_inode inode{};
                std::memcpy(&inode, bytes.data() + size_t{i} * EXT2_INODE_SIZE(fs_->super),
                            sizeof inode);
                if ((inode.i_flags & EXT4_EXTENTS_FL) == 0) continue;
                Path path{*first + i, {}};
                if (A4_TRY(descend(inode, node, key, path.nodes))) return std::optional(path);
            }
        }
        return std::optional<Path>{};
    }

    Result<bool> descend(ext2_inode& inode, uint64_t node, uint32_t key,
                         std::vector<uint64_t>& nodes) {
        ext3_extent_header* header = header_of(inode.i_block);
        size_t room = 4;
        std::vector<std::byte> bytes;
        for (int depth = 0; depth < kMaxDepth; ++depth) {
            const ext3_extent_idx* entry = entry_for(header, room, key);
            if (entry == nullptr) return false;
            const uint64_t child = child_of(*entry);
            if (child >= ext2fs_blocks_count(fs_->super)) return false;
            nodes.push_back(child);
            if (child == node) return true;
            bytes = A4_TRY(read(child));
            if (node_kind(bytes) != Node::Index) return false;
            header = header_of(bytes.data());
            room = (block_size_ - sizeof *header) / sizeof(ext3_extent_idx);
        }
        return false;
    }

    // From the changed node upwards; what is new already stays and only learns its child's place.
    Result<> move(const Path& path) {
        const std::string what = fmt::format("inode {}", path.inode);
        std::vector<Pblk> places;
        if (!A4_TRY(take_places(path, places))) return {};
        StagingDevice& staging = volume_.metadata_device();
        uint64_t old_child = 0;
        uint64_t new_child = 0;
        for (size_t i = path.nodes.size(); i-- > 0;) {
            const uint64_t old = path.nodes[i];
            const bool is_new = volume_.block_bitmaps().newly_used(old);
            const uint64_t now = is_new ? old : places[i].value();
            std::vector<std::byte> bytes = A4_TRY(read(old));
            if (old_child != new_child) {
                ext3_extent_header* header = header_of(bytes.data());
                A4_CHECK(point(header, (block_size_ - sizeof *header) / sizeof(ext3_extent_idx),
                               old_child, new_child, what));
                A4_CHECK(
                    check_errcode(ext2fs_extent_block_csum_set(fs_, path.inode, header), what));
            }
            A4_CHECK(staging.write(ByteOffset(now * block_size_), bytes));
            if (!is_new) {
                staging.drop_block(old);
                given_up_.emplace_back(old);
            }
            old_child = old;
            new_child = now;
        }
        if (old_child == new_child) return {};
        ext2_inode inode{};
        A4_CHECK(check_errcode(ext2fs_read_inode(fs_, path.inode, &inode), what));
        A4_CHECK(point(header_of(inode.i_block), 4, old_child, new_child, what));
        return check_errcode(ext2fs_write_inode(fs_, path.inode, &inode), what);
    }

    // A block for each node that has to move, or none: then false.
    Result<bool> take_places(const Path& path, std::vector<Pblk>& places) {
        for (const uint64_t node : path.nodes) {
            places.emplace_back(0);
            if (volume_.block_bitmaps().newly_used(node)) continue;
            auto place = volume_.allocator().choose_block(Pblk(node));
            if (!place && place.error().code == ENOSPC && volume_.recovering()) {
                for (const Pblk taken : places) {
                    if (taken.value() != 0) A4_CHECK(volume_.allocator().free({taken, Blocks(1)}));
                }
                return false;
            }
            if (!place)
                return fail(std::move(place).error().with_context(
                    fmt::format("inode {}: moving its extent tree", path.inode)));
            places.back() = *place;
            A4_CHECK(volume_.allocator().take(places.back()));
        }
        return true;
    }

    Result<> point(ext3_extent_header* header, size_t room, uint64_t old_child, uint64_t new_child,
                   const std::string& what) const {
        ext3_extent_idx* entry = EXT_FIRST_INDEX(header);
        const size_t count = std::min<size_t>(header->eh_entries, room);
        for (size_t i = 0; i < count; ++i, ++entry) {
            if (child_of(*entry) != old_child) continue;
            entry->ei_leaf = static_cast<uint32_t>(new_child);
            entry->ei_leaf_hi = static_cast<uint16_t>(new_child >> 32);
            return {};
        }
        return fail(EIO, "{}: its tree changed under an operation", what);
    }

    Volume& volume_;
    ext2_filsys fs_;
    uint64_t block_size_;
    std::vector<Pblk> given_up_;
};

}  // namespace

Node node_kind(std::span<const std::byte> block) {
    ext3_extent_header header;
    std::memcpy(&header, block.data(), sizeof header);
    // A directory block could begin like that, but not with a record as long as the other number.
    const size_t room = (block.size() - sizeof header) / sizeof(ext3_extent);
    if (header.eh_magic != EXT3_EXT_MAGIC || header.eh_max != room) return Node::None;
    return header.eh_depth == 0 ? Node::Leaf : Node::Index;
}

Result<std::vector<Pblk>> move_changed_nodes(Volume& volume) {
    return Mover(volume).run();
}

}  // namespace atomic4
