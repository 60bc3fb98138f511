#include "guard/protected_set.h"

#include <algorithm>

#include "ext4/errcode.h"
#include "ext4/layout_plan.h"

namespace atomic4 {

namespace {

struct Field {
    size_t offset;
    size_t size;
};
constexpr Field kFields[] = {
    {offsetof(ext2_inode, i_mode), sizeof(ext2_inode::i_mode)},
    {offsetof(ext2_inode, i_flags), sizeof(ext2_inode::i_flags)},
    {offsetof(ext2_inode, i_block), sizeof(ext2_inode::i_block)},
    {offsetof(ext2_inode, i_generation), sizeof(ext2_inode::i_generation)},
};

ByteOffset place_of_inode(ext2_filsys fs, ext2_ino_t number) {
    const dgrp_t group = (number - 1) / fs->super->s_inodes_per_group;
    const uint64_t index = (number - 1) % fs->super->s_inodes_per_group;
    return ByteOffset(ext2fs_inode_table_loc(fs, group) * fs->blocksize +
                      index * EXT2_INODE_SIZE(fs->super));
}

}  // namespace

ProtectedSet::ProtectedSet(std::vector<ProtectedFile> files, Bytes block_size)
    : files_(std::move(files)), block_size_(block_size) {
    const uint64_t block = block_size.value();
    for (uint32_t i = 0; i < files_.size(); ++i) {
        const ProtectedFile& file = files_[i];
        for (const Mapping& mapping : file.mappings) {
            ranges_.push_back({mapping.pblk.value() * block,
                               (mapping.pblk + mapping.length).value() * block, Protection::Data,
                               i});
        }
        for (const ProtectedFile::Node& node : file.nodes) {
            ranges_.push_back({node.block.value() * block, (node.block.value() + 1) * block,
                               Protection::Tree, i});
        }
        for (const Field& field : kFields) {
            const uint64_t begin = file.inode_at.value() + field.offset;
            ranges_.push_back({begin, begin + field.size, Protection::Inode, i});
        }
    }
    std::ranges::sort(ranges_, {}, &ProtectedRange::begin);
}

ProtectedSet ProtectedSet::with_only_data_of(ext2_ino_t number) const {
    ProtectedSet other = *this;
    std::erase_if(other.ranges_, [&](const ProtectedRange& range) {
        return range.protection != Protection::Data && file_of(range).number == number;
    });
    return other;
}

std::span<const ProtectedRange> ProtectedSet::in(uint64_t begin, uint64_t end) const {
    // Apart, therefore their ends ascend, too.
    const auto first = std::ranges::upper_bound(ranges_, begin, {}, &ProtectedRange::end);
    const auto last = std::ranges::lower_bound(ranges_, end, {}, &ProtectedRange::begin);
    if (first >= last) return {};
    return {first, last};
}

Pblk ProtectedSet::end() const {
    uint64_t end = 0;
    for (const ProtectedRange& range : ranges_) {
        if (range.protection != Protection::Inode) end = std::max(end, range.end);
    }
    return Pblk(end / block_size_.value());
}

std::vector<PblkRun> runs_of(const ProtectedFile& file) {
    std::vector<PblkRun> runs;
    for (const Mapping& mapping : file.mappings) runs.push_back({mapping.pblk, mapping.length});
    for (const ProtectedFile::Node& node : file.nodes) runs.push_back({node.block, Blocks(1)});
    return runs;
}

std::string name_of_file(const std::string& path, ext2_ino_t number) {
    return path.empty() ? fmt::format("inode {}", number)
                        : fmt::format("{} (inode {})", path, number);
}

Result<ProtectedFile> copy_file(Volume& volume, ext2_ino_t number, std::string path) {
    const FileState state = A4_TRY(read_file(volume, number));
    ext2_filsys fs = volume.fs();
    ProtectedFile file;
    file.number = number;
    file.path = std::move(path);
    file.unit = state.unit;
    file.inode_at = place_of_inode(fs, number);
    file.inode.resize(EXT2_INODE_SIZE(fs->super));
    A4_CHECK(volume.metadata_device().read(file.inode_at, file.inode));
    file.mappings = joined(A4_TRY(map_range(volume, number, state.inode, Lblk(0), kWholeFile)));
    for (const Pblk block : A4_TRY(tree_blocks(volume, number, state.inode))) {
        std::vector<std::byte> contents(fs->blocksize);
        A4_CHECK(
            volume.metadata_device().read(ByteOffset(block.value() * fs->blocksize), contents));
        file.nodes.push_back({block, std::move(contents)});
    }
    return file;
}

}  // namespace atomic4
