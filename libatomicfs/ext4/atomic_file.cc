#include "ext4/atomic_file.h"

#include <bit>
#include <charconv>
#include <cstring>

#include "base/random.h"
#include "ext4/errcode.h"
#include "ext4/format.h"
#include "ext4/inode_time.h"
#include "ext4/path.h"
#include "ext4/transaction.h"
#include "ext4/xattr.h"

namespace atomic4 {

namespace {

std::optional<Bytes> parse_unit(const std::optional<std::string>& text) {
    if (!text) return std::nullopt;
    uint64_t value = 0;
    const char* end = text->data() + text->size();
    const auto [rest, error] = std::from_chars(text->data(), end, value);
    if (error != std::errc{} || rest != end || !is_power_of_two(value) || value > kUnitMax)
        return Bytes(0);  // there, but not a unit: the check reports it
    return Bytes(value);
}

void fill_new_inode(ext2_filsys fs, FullInode& full, uint16_t mode, uint32_t uid, uint32_t gid) {
    ext2_inode& inode = *full.core();
    inode.i_mode = mode;
    inode.i_uid = static_cast<uint16_t>(uid);
    ext2fs_set_i_uid_high(inode, static_cast<uint16_t>(uid >> 16));
    inode.i_gid = static_cast<uint16_t>(gid);
    ext2fs_set_i_gid_high(inode, static_cast<uint16_t>(gid >> 16));
    inode.i_flags = EXT4_EXTENTS_FL;
    inode.i_generation = random_nonzero_u32();
    if (full.size() > EXT2_GOOD_OLD_INODE_SIZE) {
        full.large()->i_extra_isize = static_cast<uint16_t>(std::max<uint32_t>(
            fs->super->s_want_extra_isize, sizeof(ext2_inode_large) - EXT2_GOOD_OLD_INODE_SIZE));
    }
    set_times(full, kTimeAccessed | kTimeChanged | kTimeModified | kTimeCreated, time_now(fs));
}

// Nothing but what enabling made may lie in the directory with the log, at any depth.
Result<> check_not_ours(Volume& volume, ext2_ino_t directory) {
    constexpr int kDeepest = 4096;  // damaged trees have loops
    const auto look_up = [&](ext2_ino_t in, std::string_view name) -> Result<ext2_ino_t> {
        A4_CHECK(check_directory(volume.fs(), in));
        ext2_ino_t found = 0;
        const errcode_t code = ext2fs_lookup(volume.fs(), in, name.data(),
                                             static_cast<int>(name.size()), nullptr, &found);
        if (code == EXT2_ET_FILE_NOT_FOUND) return ext2_ino_t{0};
        A4_CHECK(check_errcode(code, fmt::format("directory inode {}", in)));
        return found;
    };
    const ext2_ino_t ours = A4_TRY(look_up(EXT2_ROOT_INO, kDirectoryName));
    for (int depth = 0; directory != EXT2_ROOT_INO && directory != 0 && depth < kDeepest; ++depth) {
        if (directory == ours)
            return fail(EPERM, "/{} belongs to atomic4: create the file elsewhere", kDirectoryName);
        directory = A4_TRY(look_up(directory, ".."));
    }
    return {};
}

// Drops flag and unit. If there is no block for a copy of the others' xattrs they are rewritten in
// place: a full volume has to be released, too.
Result<> stage_release(Volume& volume, ext2_ino_t number, std::optional<Pblk>* old_block) {
    ext2_filsys fs = volume.fs();
    auto moved = move_xattr_block(volume, number);
    if (!moved && !nothing_to_be_had(moved.error())) return fail(std::move(moved).error());
    if (moved) *old_block = *moved;
    A4_CHECK(write_xattr(fs, number, kUnitXattr, std::nullopt));
    ext2_inode inode{};
    const std::string what = fmt::format("inode {}", number);
    A4_CHECK(check_errcode(ext2fs_read_inode(fs, number, &inode), what));
    inode.i_flags &= ~kInodeFlagAtomic;
    return write_inode_now(fs, number, inode, kTimeChanged, what);
}

}  // namespace

Result<> check_unit(const Volume& volume, Bytes unit) {
    if (!is_power_of_two(unit.value()) || unit < volume.block_size() || unit.value() > kUnitMax) {
        return fail(EINVAL, "unit {}: want a power of two from {} (the block size) to {}", unit,
                    volume.block_size(), kUnitMax);
    }
    return {};
}

Result<FileState> read_file(Volume& volume, ext2_ino_t number, std::optional<uint32_t> generation) {
    FileState state;
    state.number = number;
    const std::string what = fmt::format("inode {}", number);
    if (number == 0 || number > volume.fs()->super->s_inodes_count)
        return fail(ESTALE, "{}: there is no such inode", what);
    A4_CHECK(check_errcode(ext2fs_read_inode(volume.fs(), number, &state.inode), what));
    if (state.inode.i_links_count == 0) return fail(ESTALE, "{}: the file is gone", what);
    state.generation = state.inode.i_generation;
    if (generation && *generation != state.generation) {
        return fail(ESTALE, "{}: the file is gone (generation {} now, {} then)", what,
                    state.generation, *generation);
    }
    state.size = Bytes(EXT2_I_SIZE(&state.inode));
    const uint64_t size_max = kFileBlocksMax * volume.fs()->blocksize;
    if (LINUX_S_ISREG(state.inode.i_mode) && state.size.value() > size_max) {
        return fail(EUCLEAN, "{}: a size of {} bytes is none that a file can have: run e2fsck",
                    what, state.size);
    }
    state.atomic = (state.inode.i_flags & kInodeFlagAtomic) != 0;
    // A fast path for the many files without xattrs isn't worth a second way to read them.
    state.unit = parse_unit(A4_TRY(read_xattr(volume.fs(), number, kUnitXattr)));
    return state;
}

Result<StagedFile> stage_file(Volume& volume, ext2_ino_t parent, const NewFile& file, bool atomic) {
    ext2_filsys fs = volume.fs();
    const uint64_t block_size = fs->blocksize;
    StagedFile staged;
    staged.number = A4_TRY(volume.inodes().allocate(parent, false));
    FullInode full(fs);
    fill_new_inode(fs, full, static_cast<uint16_t>(LINUX_S_IFREG | (file.mode & 07777)), file.uid,
                   file.gid);
    ext2_inode* inode = full.core();
    staged.generation = inode->i_generation;
    if (atomic) inode->i_flags |= kInodeFlagAtomic;
    inode->i_links_count = 1;
    if (file.size.value() > kFileBlocksMax * block_size)
        return fail(EFBIG, "a file has at most {} blocks", kFileBlocksMax);
    A4_CHECK(check_errcode(
        ext2fs_inode_size_set(fs, inode, static_cast<ext2_off64_t>(file.size.value())),
        "file size"));
    A4_CHECK(
        check_errcode(ext2fs_write_inode_full(fs, staged.number, inode, full.size()), "inode"));

    // Whole clusters: the units of the last one that the size doesn't reach stay unwritten.
    const int unit_order = std::max(std::countr_zero(file.unit.value() / block_size),
                                    volume.allocator().cluster_order());
    const uint64_t unit_blocks = uint64_t{1} << unit_order;
    const uint64_t unit_bytes = unit_blocks * block_size;
    const uint64_t units = file.size.value() / unit_bytes + (file.size.value() % unit_bytes != 0);
    if (units > kFileBlocksMax / unit_blocks)
        return fail(EFBIG, "a file has at most {} blocks", kFileBlocksMax);
    const dgrp_t group = ext2fs_group_of_ino(fs, staged.number);
    const Pblk goal(ext2fs_group_first_block2(fs, group));
    staged.runs = A4_TRY(volume.allocator().allocate_units(unit_order, units, goal));
    const Blocks written((file.size.value() + block_size - 1) / block_size);
    A4_CHECK(map_empty_file(volume, staged.number, inode, staged.runs, written));
    A4_CHECK(check_errcode(
        ext2fs_iblk_add_blocks(fs, inode, EXT2FS_NUM_B2C(fs, units * unit_blocks)), "block count"));
    A4_CHECK(check_errcode(ext2fs_write_inode(fs, staged.number, inode), "inode"));
    if (atomic) {
        A4_CHECK(write_xattr(fs, staged.number, kUnitXattr, fmt::format("{}", file.unit)));
    }
    return staged;
}

Result<StagedFile> stage_directory(Volume& volume, ext2_ino_t parent, const std::string& name,
                                   uint16_t mode) {
    ext2_filsys fs = volume.fs();
    StagedFile staged;
    staged.number = A4_TRY(volume.inodes().allocate(parent, true));
    FullInode full(fs);
    fill_new_inode(fs, full, static_cast<uint16_t>(LINUX_S_IFDIR | (mode & 07777)), 0, 0);
    ext2_inode* inode = full.core();
    staged.generation = inode->i_generation;
    inode->i_links_count = 2;
    inode->i_size = fs->blocksize;
    // The block's checksum covers the inode's generation, so the inode is written first.
    A4_CHECK(
        check_errcode(ext2fs_write_inode_full(fs, staged.number, inode, full.size()), "inode"));
    const Pblk goal(ext2fs_group_first_block2(fs, ext2fs_group_of_ino(fs, staged.number)));
    PblkRun run = A4_TRY(volume.allocator().allocate(0, goal));
    run.length = Blocks(1);  // of a cluster the rest is for growth
    char* block = nullptr;
    A4_CHECK(check_errcode(ext2fs_new_dir_block(fs, staged.number, parent, &block), "directory"));
    const errcode_t code = ext2fs_write_dir_block4(fs, run.start.value(), block, 0, staged.number);
    ext2fs_free_mem(&block);
    A4_CHECK(check_errcode(code, "directory"));
    A4_CHECK(map_empty_file(volume, staged.number, inode, std::span(&run, 1), Blocks(1)));
    A4_CHECK(check_errcode(ext2fs_iblk_add_blocks(fs, inode, 1), "block count"));
    A4_CHECK(check_errcode(ext2fs_write_inode(fs, staged.number, inode), "inode"));
    A4_CHECK(link_name(volume, {parent, name}, staged.number, EXT2_FT_DIR));
    ext2_inode parent_inode{};
    A4_CHECK(check_errcode(ext2fs_read_inode(fs, parent, &parent_inode), "directory"));
    ++parent_inode.i_links_count;
    A4_CHECK(check_errcode(ext2fs_write_inode(fs, parent, &parent_inode), "directory"));
    return staged;
}

Result<> stage_delete(Volume& volume, ext2_ino_t number) {
    ext2_filsys fs = volume.fs();
    ext2_inode inode{};
    const std::string what = fmt::format("inode {}", number);
    A4_CHECK(check_errcode(ext2fs_read_inode(fs, number, &inode), what));
    const bool directory = LINUX_S_ISDIR(inode.i_mode);
    if ((inode.i_flags & EXT4_EXTENTS_FL) == 0)
        return fail(EOPNOTSUPP, "{}: not extent-mapped", what);
    A4_CHECK(check_errcode(ext2fs_free_ext_attr(fs, number, nullptr), what));
    A4_CHECK(check_errcode(ext2fs_read_inode(fs, number, &inode), what));
    for (const Pblk block : A4_TRY(tree_blocks(volume, number, inode)))
        A4_CHECK(volume.allocator().free({block, Blocks(1)}));
    // A cluster goes once, with the last of its blocks; two mappings with a hole between them may
    // lie in the same one.
    const uint64_t cluster = uint64_t{1} << volume.allocator().cluster_order();
    uint64_t freed = 0;  // up to here
    for (const Mapping& mapping : A4_TRY(map_range(volume, number, inode, Lblk(0), kWholeFile))) {
        if (mapping.state == MapState::Hole) continue;
        uint64_t first = round_down(mapping.pblk.value(), cluster);
        const uint64_t end = round_up((mapping.pblk + mapping.length).value(), cluster);
        if (cluster > 1 && freed == first + cluster) first = freed;
        if (first < end) A4_CHECK(volume.allocator().free({Pblk(first), Blocks(end - first)}));
        freed = end;
    }
    // No links, a time of deletion, no mapping. Nor the extents flag: e2fsck takes an inode with it
    // but without an extent header for garbage, and if half of a table block's inodes are, the
    // others too.
    inode.i_links_count = 0;
    inode.i_dtime = static_cast<uint32_t>(time_now(fs).seconds);
    inode.i_flags = 0;
    std::memset(inode.i_block, 0, sizeof inode.i_block);
    inode.i_blocks = 0;
    A4_CHECK(check_errcode(ext2fs_inode_size_set(fs, &inode, 0), what));
    A4_CHECK(check_errcode(ext2fs_write_inode(fs, number, &inode), what));
    return volume.inodes().free(number, directory);
}

Result<ext2_ino_t> create_atomic_file(Volume& volume, const std::string& path,
                                      const NewFile& file) {
    A4_CHECK(volume.usable().context(path));
    A4_CHECK(check_unit(volume, file.unit));
    const NewName where = A4_TRY(lookup_new(volume, path));
    A4_CHECK(check_not_ours(volume, where.directory).context(path));
    Transaction transaction(volume);
    const StagedFile staged = A4_TRY(stage_file(volume, where.directory, file, true).context(path));
    A4_CHECK(link_name(volume, where, staged.number, EXT2_FT_REG_FILE));
    // The blocks are ours to zero: free by their bitmaps, which no one else can change.
    for (const PblkRun& run : staged.runs) {
        A4_CHECK(volume.device()
                     .zero(ByteOffset(run.start.value() * volume.block_size().value()),
                           Bytes(run.length.value() * volume.block_size().value()))
                     .context(fmt::format("{}: zeroing", path)));
    }
    A4_CHECK(transaction.commit().context(path));
    return staged.number;
}

Result<std::optional<Pblk>> move_xattr_block(Volume& volume, ext2_ino_t number) {
    ext2_filsys fs = volume.fs();
    ext2_inode inode{};
    const std::string what = fmt::format("xattrs of inode {}", number);
    A4_CHECK(check_errcode(ext2fs_read_inode(fs, number, &inode), what));
    const uint64_t old = ext2fs_file_acl_block(fs, &inode);
    if (old == 0) return std::nullopt;
    std::vector<std::byte> bytes(fs->blocksize);
    A4_CHECK(check_errcode(ext2fs_read_ext_attr3(fs, old, bytes.data(), number), what));
    ext2_ext_attr_header header{};
    std::memcpy(&header, bytes.data(), sizeof header);
    if (header.h_refcount != 1) return std::nullopt;
    const Pblk place = A4_TRY(volume.allocator().choose_block(Pblk(old)).context(what));
    A4_CHECK(volume.allocator().take(place));
    A4_CHECK(check_errcode(ext2fs_write_ext_attr3(fs, place.value(), bytes.data(), number), what));
    ext2fs_file_acl_block_set(fs, &inode, place.value());
    A4_CHECK(check_errcode(ext2fs_write_inode(fs, number, &inode), what));
    return Pblk(old);
}

Result<> release_file(Volume& volume, ext2_ino_t number) {
    std::optional<Pblk> old_block;
    {
        Transaction transaction(volume);
        A4_CHECK(stage_release(volume, number, &old_block));
        A4_CHECK(transaction.commit());
    }
    if (!old_block) return {};
    Transaction transaction(volume);
    A4_CHECK(volume.allocator().free({*old_block, Blocks(1)}));
    return transaction.commit(Transaction::Order::Freeing);
}

Result<std::vector<ext2_ino_t>> find_atomic_inodes(Volume& volume,
                                                   std::vector<ext2_ino_t>* damaged) {
    constexpr int kBufferBlocks = 128;
    ext2_inode_scan scan = nullptr;
    A4_CHECK(
        check_errcode(ext2fs_open_inode_scan(volume.fs(), kBufferBlocks, &scan), "inode scan"));
    std::vector<ext2_ino_t> found;
    ext2_ino_t number = 0;
    ext2_inode inode{};
    errcode_t code = 0;
    for (;;) {
        code = ext2fs_get_next_inode(scan, &number, &inode);
        // The scan stands behind it and can go on.
        if (code == EXT2_ET_INODE_CSUM_INVALID && damaged != nullptr) {
            damaged->push_back(number);
            continue;
        }
        if (code != 0 || number == 0) break;
        if (inode.i_links_count != 0 && LINUX_S_ISREG(inode.i_mode) &&
            (inode.i_flags & kInodeFlagAtomic) != 0)
            found.push_back(number);
    }
    ext2fs_close_inode_scan(scan);
    A4_CHECK(check_errcode(code, fmt::format("inode {}", number)));
    return found;
}

}  // namespace atomic4
