#include "ext4/volume.h"

#include <blkid/blkid.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "ext4/errcode.h"
#include "ext4/features.h"
#include "ext4/format.h"
#include "ext4/inode_cache.h"
#include "ext4/path.h"
#include "ext4/xattr.h"

namespace atomic4 {

namespace {

constexpr const char* kKernelRecovers =
    "mount and unmount it once, the kernel recovers its journal";

// libext2fs's callbacks carry only the filesystem; the Volume hangs on its priv_data.
Volume& volume_of(ext2_filsys fs) {
    return *static_cast<Volume*>(fs->priv_data);
}

extern "C" {

// A block for libext2fs's own needs: an extent-tree node, a directory or xattr block. It is only
// chosen here: libext2fs counts it and then reports it through atomic4_block_changed.
static errcode_t atomic4_choose_block(ext2_filsys fs, blk64_t goal, blk64_t* ret) {
    Volume& volume = volume_of(fs);
    auto block = volume.allocator().choose_block(Pblk(goal));
    if (!block && nothing_to_be_had(block.error())) {
        // Windows that files hold in memory are no reason to refuse.
        volume.preallocations().release_all();
        block = volume.allocator().choose_block(Pblk(goal));
    }
    if (!block) {
        if (block.error().code == ENOSPC) return EXT2_ET_BLOCK_ALLOC_FAIL;
        // Only damaged groups are left: refused like a lack of space, not in doubt.
        if (block.error().code != EUCLEAN) volume.adapter().latch(block.error());
        return static_cast<errcode_t>(block.error().code);
    }
    volume.descriptors().touch(ext2fs_group_of_blk2(fs, block->value()));
    *ret = block->value();
    return 0;
}

// The same when a hashed directory grows: libext2fs does that by its fallocate, which asks for
// ranges, and without this would look for them in fs->block_map, where nothing is in use.
static errcode_t atomic4_choose_range(ext2_filsys fs, int flags, blk64_t goal, blk64_t length,
                                      blk64_t* first, blk64_t* count) {
    Volume& volume = volume_of(fs);
    // Never more than a cluster: see atomic4_range_changed.
    const auto cluster = static_cast<blk64_t>(EXT2FS_CLUSTER_RATIO(fs));
    *count = std::min(length, cluster);
    if ((flags & EXT2_NEWRANGE_MIN_LENGTH) != 0 && length > cluster)
        return EXT2_ET_BLOCK_ALLOC_FAIL;
    if (const errcode_t code = atomic4_choose_block(fs, goal, first); code != 0) return code;
    // A fixed goal is a wish to go on where the last extent ends; elsewhere is asked for next.
    if ((flags & EXT2_NEWRANGE_FIXED_GOAL) != 0) {
        const auto free = volume.allocator().is_free(Pblk(goal));
        if (!free) {
            volume.adapter().latch(free.error());
            return static_cast<errcode_t>(free.error().code);
        }
        if (!*free || goal % cluster != 0) return EXT2_ET_BLOCK_ALLOC_FAIL;
        volume.descriptors().touch(ext2fs_group_of_blk2(fs, goal));
        *first = goal;
    }
    return 0;
}

static void atomic4_block_changed(ext2_filsys fs, blk64_t block, int inuse) {
    Volume& volume = volume_of(fs);
    const dgrp_t group = ext2fs_group_of_blk2(fs, block);
    if (inuse < 0) {
        // A bitmap that isn't in memory is proved against the count from before.
        volume.descriptors().uncount_block(group, inuse);
        const auto bits = volume.block_bitmaps().get(group);
        if (!bits && volume.block_bitmaps().is_damaged(group)) return;  // stays in use
        volume.descriptors().uncount_block(group, -inuse);
    }
    volume.descriptors().touch_after_block_change(group, inuse);
    const uint32_t bit = volume.block_bitmaps().bit_of(block);
    const auto done = volume.block_bitmaps().set(group, bit, 1, inuse > 0, false);
    if (!done) volume.adapter().latch(done.error());
    volume.allocator().block_changed(Pblk(block));
}

static void atomic4_range_changed(ext2_filsys fs, blk64_t block, blk_t count, int inuse) {
    // Before 1.47.4 libext2fs reports (end, 0) instead of (first, count); atomic4_choose_range
    // gives single blocks or clusters only.
    atomic4_block_changed(fs, count == 0 ? block - 1 : block, inuse);
}

}  // extern "C"

// What the device holds instead, by the names blkid knows.
std::string what_is_there(const std::string& path) {
    std::string found;
    blkid_probe probe = blkid_new_probe_from_filename(path.c_str());
    if (probe == nullptr) return found;
    blkid_probe_enable_partitions(probe, 1);
    const char* type = nullptr;
    if (blkid_do_safeprobe(probe) == 0 &&
        (blkid_probe_lookup_value(probe, "TYPE", &type, nullptr) == 0 ||
         blkid_probe_lookup_value(probe, "PTTYPE", &type, nullptr) == 0))
        found = type;
    blkid_free_probe(probe);
    return found;
}

tl::unexpected<Error> bad_superblock_checksum(const std::string& why) {
    return fail(EUCLEAN,
                "the superblock has a bad checksum, {}: if it is sound otherwise, debugfs -n -w -R "
                "\"set_super_value wtime now\" gives it a right one",
                why);
}

// With clusters larger than a block, block 0 belongs to the first one also where blocks have 1 KiB.
uint32_t first_data_block(const ext2_super_block& super) {
    return super.s_log_block_size == 0 && super.s_log_cluster_size == 0 ? 1 : 0;
}

bool default_may_use_reserved(const ext2_super_block& super) {
    if (geteuid() == 0 || geteuid() == super.s_def_resuid) return true;
    return super.s_def_resgid != 0 && getegid() == super.s_def_resgid;
}

}  // namespace

Volume::Volume(std::unique_ptr<Device> device, const VolumeOptions& options)
    : device_(std::move(device)),
      options_(options),
      staging_(*device_, Bytes(4096)),
      adapter_(staging_) {}

Volume::~Volume() {
    // Every change has been committed or was meant to be dropped: nothing is written here, but that
    // the volume is free.
    mmp_.reset();
    if (fs_ != nullptr) ext2fs_free(fs_);
}

Result<std::unique_ptr<Volume>> Volume::open(std::unique_ptr<Device> device,
                                             const VolumeOptions& options) {
    const std::string name = device->name();
    std::unique_ptr<Volume> volume(new Volume(std::move(device), options));
    A4_CHECK(volume->load().context(name));
    return volume;
}

// Through a primary superblock with a right checksum, if it can be proved.
Result<errcode_t> Volume::open_filesystem(int flags) {
    constexpr size_t kBlock = 4096;  // as staging_ begins
    if (const auto& place = options_.superblock)
        return adapter_.open_through(flags, &fs_, place->block, place->block_size);
    superblock_proof_ = A4_TRY(prove_superblock(*device_));
    const bool repaired =
        superblock_proof_ && superblock_proof_->repaired && device_->size().value() >= kBlock;
    if (repaired) {
        std::vector<std::byte> block(kBlock);
        A4_CHECK(device_->read(ByteOffset(0), block).context("superblock"));
        std::memcpy(block.data() + 1024, &*superblock_proof_->repaired, sizeof(ext2_super_block));
        staging_.overlay(0, std::move(block));
    }
    const errcode_t code = adapter_.open_through(flags, &fs_);
    if (repaired) staging_.drop();
    return code;
}

// Against other hosts (mmp.h); against others on this one: device/ownership.h.
Result<> Volume::claim() {
    if (mmp_ || options_.purpose == OpenFor::Inspect) return {};
    mmp_.emplace(A4_TRY(MmpClaim::start(fs_, *device_, options_.purpose == OpenFor::Write)));
    return {};
}

// After the copies have been read: writes what was proved, before anything else is written and
// whatever state the volume is in (the kernel needs a superblock to recover it).
Result<> Volume::settle_repair() {
    if (!superblock_proof_) return {};
    // A plain ext4 is not ours to repair: stock tools take it.
    if (!gate_)
        return bad_superblock_checksum("and no copy of it says that this is an atomic4 volume");
    std::string what =
        fmt::format("the superblock had a bad checksum, and {}", superblock_proof_->why);
    if (options_.purpose != OpenFor::Write) {
        notices_.push_back(what +
                           ": it is read as repaired, and repaired when next opened for "
                           "writing");
        return {};
    }
    // Its free counts may be old and new halves: the descriptors decide, as for kernel and e2fsck.
    blk64_t blocks = 0;
    uint32_t inodes = 0;
    bool sound = true;
    for (dgrp_t group = 0; group < fs_->group_desc_count; ++group) {
        sound = sound && (!ext2fs_has_group_desc_csum(fs_) ||
                          ext2fs_group_desc_csum_verify(fs_, group) != 0);
        blocks += ext2fs_bg_free_blocks_count(fs_, group);
        inodes += ext2fs_bg_free_inodes_count(fs_, group);
    }
    if (sound) {
        ext2fs_free_blocks_count_set(fs_->super, EXT2FS_C2B(fs_, blocks));
        fs_->super->s_free_inodes_count = inodes;
    }
    A4_CHECK(write_primary_superblock(fs_, *device_));
    A4_CHECK(device_->flush());
    notices_.push_back(what + ": repaired");
    return {};
}

Result<> Volume::load() {
    const bool writing = options_.purpose == OpenFor::Write;
    if (writing && device_->read_only())
        return fail(EROFS, "opened read-only: writing needs a writable file or device");
    // FORCE: the library's own feature check refuses our needs-replay bit; ours follows.
    // The checksums are verified: a damaged superblock does not get past this.
    int flags = EXT2_FLAG_64BITS | EXT2_FLAG_FORCE | EXT2_FLAG_SKIP_MMP;
    if (writing) flags |= EXT2_FLAG_RW;
    const errcode_t code = A4_TRY(open_filesystem(flags));
    if (adapter_.latched()) {
        Error error = *adapter_.latched();
        if (error.code == EINVAL) {
            return fail(EUCLEAN,
                        "the image is truncated or not an ext4 ({} bytes): restore it from a copy",
                        device_->size());
        }
        return fail(std::move(error));
    }
    if (code == EXT2_ET_BAD_MAGIC) {
        const std::string found = what_is_there(device_->name());
        if (found.empty() || found.starts_with("ext"))
            return fail(EINVAL, "not an ext4 volume: no valid superblock (mkfs.atomic4 makes one)");
        return fail(EINVAL, "not an ext4 volume: it holds {}", found);
    }
    if (superblock_proof_ && !superblock_proof_->repaired)
        return bad_superblock_checksum(superblock_proof_->why);
    A4_CHECK(check_errcode(code, "not a usable ext4 volume"));
    fs_->priv_data = this;
    mend_inode_cache(fs_);
    if (options_.damaged_too) adapter_.expect_damage();
    staging_.set_block_size(block_size());

    ext2_super_block& super = *fs_->super;
    // Features first: journal devices have fields that would look like damage below.
    A4_CHECK(check_features(super));
    if (super.s_inodes_per_group == 0 || super.s_inodes_per_group > fs_->blocksize * 8 ||
        super.s_clusters_per_group > fs_->blocksize * 8 || super.s_log_groups_per_flex > 31 ||
        uint64_t{super.s_blocks_per_group} != uint64_t{super.s_clusters_per_group}
                                                  << fs_->cluster_ratio_bits ||
        super.s_first_data_block != first_data_block(super) ||
        EXT2_FIRST_INODE(&super) < EXT2_GOOD_OLD_FIRST_INO ||
        EXT2_FIRST_INODE(&super) > super.s_inodes_count)
        return fail(EUCLEAN, "the superblock is damaged: the volume needs e2fsck");
    if (ext2fs_blocks_count(&super) > device_->size().value() / fs_->blocksize) {
        return fail(EUCLEAN,
                    "truncated: the filesystem has {} blocks of {} bytes, the device only {} "
                    "bytes: restore it from a copy",
                    ext2fs_blocks_count(&super), fs_->blocksize, device_->size());
    }
    gate_ = gate_in_primary();
    backups_ = A4_TRY(read_backup_superblocks(
        fs_, *device_, gate_ && !options_.every_copy ? Copies::Some : Copies::Every));
    for (const BackupSuperblock& backup : backups_) gate_ = gate_ || backup.gate;
    // Whatever state it is in: fsck.atomic4, which may have to be next, needs it, too.
    if (options_.clear_mmp) A4_CHECK(clear_mmp_mark(fs_, *device_));
    if (superblock_proof_) A4_CHECK(claim());  // before the repair is written
    A4_CHECK(settle_repair());
    if (options_.purpose != OpenFor::Inspect) {
        A4_CHECK(check_state());
        A4_CHECK(claim());
    }
    A4_CHECK(read_attr());
    if (options_.require_atomic4 && !gate_ && attr_) {
        return fail(EINVAL,
                    "an atomic4 volume whose gate bit was removed (by e2fsck or debugfs?): run "
                    "atomic4ctl enable, which puts it back");
    }
    if (options_.require_atomic4 && !gate_)
        return fail(EINVAL, "an ext4 volume, but not an atomic4 one: run atomic4ctl enable first");
    // recover finds the log without it, by its name; but not one of another version.
    const bool can_do_without = (options_.recovering || options_.damaged_too) &&
                                !(attr_error_ && attr_error_->code == EOPNOTSUPP);
    if (options_.require_atomic4 && options_.purpose != OpenFor::Inspect && !attr_ &&
        !can_do_without) {
        if (needs_replay() && !(attr_error_ && attr_error_->code == EOPNOTSUPP)) {
            return fail(EUCLEAN,
                        "the redo log has to be replayed, but the volume attribute that leads to "
                        "it is {}: atomic4ctl recover finds it by its name",
                        attr_error_ ? "damaged" : "missing");
        }
        if (attr_error_) return fail(*attr_error_);
        return fail(EUCLEAN,
                    "the gate bit is set but the volume attribute is missing: atomic4ctl enable or "
                    "disable was interrupted; run it again");
    }
    set_up_allocation();
    // A crash while enabling can leave the gate in the backups only: complete it.
    if (writing && gate_ && attr_ && !options_.damaged_too) {
        bool everywhere = gate_in_primary();
        for (const BackupSuperblock& backup : backups_)
            everywhere = everywhere && (backup.gate || !backup.valid);
        if (!everywhere) {
            A4_CHECK(write_gate(true));
            gate_completed_ = true;
        }
    }
    return {};
}

Result<> Volume::read_every_copy() {
    backups_ = A4_TRY(read_backup_superblocks(fs_, *device_, Copies::Every));
    return {};
}

Result<> Volume::check_state() const {
    ext2_super_block& super = *fs_->super;
    if (ext2fs_has_feature_journal_needs_recovery(&super)) {
        if (needs_replay()) {
            return fail(
                EUCLEAN,
                "both the ext4 journal and the atomic4 log need recovery: run fsck.atomic4 -p");
        }
        return fail(EUCLEAN, "its journal needs recovery: {}", kKernelRecovers);
    }
    if (options_.damaged_too) return {};
    // While records are live no stock tool takes the volume, so e2fsck can't go first.
    if (options_.recovering && needs_replay()) return {};
    if ((super.s_state & EXT2_ERROR_FS) != 0 || super.s_error_count != 0) {
        return fail(EUCLEAN, "ext4 has recorded errors on it: check it with fsck.atomic4 -f");
    }
    if (super.s_last_orphan != 0 || ext2fs_has_feature_orphan_present(&super))
        return fail(EUCLEAN, "it lists orphaned inodes: {}", kKernelRecovers);
    if ((super.s_state & EXT2_VALID_FS) == 0) {
        return fail(EUCLEAN, "it was not unmounted cleanly{}: check it with fsck.atomic4 -f",
                    ext2fs_has_feature_journal(&super) ? ", or never checked"
                                                       : " and has no journal to recover from");
    }
    if (!ext2fs_has_group_desc_csum(fs_)) return {};
    for (dgrp_t group = 0; group < fs_->group_desc_count; ++group) {
        if (ext2fs_group_desc_csum_verify(fs_, group) == 0)
            return fail(EUCLEAN,
                        "group {}: the descriptor has a bad checksum: the volume needs e2fsck",
                        group);
    }
    return {};
}

Result<> Volume::read_attr() {
    const auto text = read_xattr(fs_, EXT2_ROOT_INO, kVolumeXattr);
    if (!text) {
        if (options_.purpose == OpenFor::Inspect || options_.damaged_too) {
            attr_error_ = text.error();
            return {};
        }
        return fail(text.error());
    }
    if (!text->has_value()) return {};
    auto attr = VolumeAttr::parse(**text);
    if (attr)
        attr_ = std::move(*attr);
    else
        attr_error_ = attr.error();
    return {};
}

void Volume::set_up_allocation() {
    descriptors_.emplace(fs_);
    block_bitmaps_ = std::make_unique<GroupBitmaps>(fs_, *device_, *descriptors_,
                                                    GroupBitmaps::Kind::Block, fixed_blocks());
    inode_bitmaps_ = std::make_unique<GroupBitmaps>(fs_, *device_, *descriptors_,
                                                    GroupBitmaps::Kind::Inode, fixed_blocks());
    allocator_ = std::make_unique<AlignedAllocator>(
        fs_, *block_bitmaps_,
        options_.may_use_reserved.value_or(default_may_use_reserved(*fs_->super)));
    preallocations_ = std::make_unique<InodePreallocations>(*allocator_, block_size());
    inodes_ =
        std::make_unique<InodeAllocator>(fs_, *inode_bitmaps_, *block_bitmaps_, *descriptors_);
    if (options_.purpose != OpenFor::Write) return;
    // Left by check_state only while recovering.
    for (dgrp_t group = 0; group < fs_->group_desc_count; ++group) {
        if (!ext2fs_has_group_desc_csum(fs_) || ext2fs_group_desc_csum_verify(fs_, group) != 0)
            continue;
        const Error why{EUCLEAN, fmt::format("group {}: the descriptor has a bad checksum: the "
                                             "volume needs e2fsck",
                                             group)};
        descriptors_->freeze(group);
        block_bitmaps_->mark_damaged(group, why);
        inode_bitmaps_->mark_damaged(group, why);
    }
    // The library wants a block map to exist (expand_dir, alloc_stats); it never sees the real
    // ones.
    fs_->default_bitmap_type = EXT2FS_BMAP64_RBTREE;
    if (ext2fs_allocate_block_bitmap(fs_, "unused", &fs_->block_map) != 0)
        adapter_.latch(Error{ENOMEM, "out of memory"});
    ext2fs_set_alloc_block_callback(fs_, atomic4_choose_block, nullptr);
    ext2fs_set_block_alloc_stats_callback(fs_, atomic4_block_changed, nullptr);
    ext2fs_set_new_range_callback(fs_, atomic4_choose_range, nullptr);
    ext2fs_set_block_alloc_stats_range_callback(fs_, atomic4_range_changed, nullptr);
}

bool Volume::gate_in_primary() const {
    return (fs_->super->s_feature_compat & kFeatureCompatAtomic4) != 0;
}

bool Volume::needs_replay() const {
    return (fs_->super->s_feature_incompat & kFeatureIncompatNeedsReplay) != 0;
}

bool Volume::needs_checking() const {
    const ext2_super_block& super = *fs_->super;
    return (super.s_state & EXT2_ERROR_FS) != 0 || super.s_error_count != 0 ||
           (super.s_state & EXT2_VALID_FS) == 0 || super.s_last_orphan != 0 ||
           ext2fs_has_feature_orphan_present(fs_->super);
}

Result<ext2_ino_t> Volume::lock_inode() {
    if (lock_inode_) return *lock_inode_;
    ext2_ino_t inode = EXT2_ROOT_INO;
    for (const std::string_view name : {kDirectoryName, kLockName}) {
        A4_CHECK(check_directory(fs_, inode).context(name));
        const errcode_t code =
            ext2fs_lookup(fs_, inode, name.data(), static_cast<int>(name.size()), nullptr, &inode);
        if (code == EXT2_ET_FILE_NOT_FOUND || code == EXT2_ET_NO_DIRECTORY) {
            inode = 0;
            break;
        }
        A4_CHECK(check_errcode(code, name));
    }
    lock_inode_ = inode;
    return inode;
}

const InodeTables& Volume::inode_tables() {
    if (!inode_tables_) inode_tables_.emplace(fs_);
    return *inode_tables_;
}

Result<> Volume::keep_mmp() {
    if (!mmp_) return {};
    auto kept = mmp_->keep();
    if (!kept) poison(kept.error());
    return kept;
}

FixedBlocks& Volume::fixed_blocks() {
    if (!fixed_blocks_) fixed_blocks_.emplace(fs_);
    return *fixed_blocks_;
}

Result<> Volume::usable() const {
    if (poisoned_) return fail(Error(*poisoned_));
    if (adapter_.latched()) {
        return fail(EIO, "an earlier I/O error leaves the volume in doubt: reopen it ({})",
                    adapter_.latched()->message);
    }
    return {};
}

tl::unexpected<Error> Volume::poison_by(const Error& error, const char* what) {
    poison(Error{EIO, fmt::format("an earlier write of the {} failed, it is in doubt: reopen the "
                                  "volume ({})",
                                  what, error.message)});
    return fail(EIO, "{}: {}; in doubt until the volume is reopened", what, error.message);
}

Result<> Volume::write_gate(bool on) {
    A4_CHECK(usable());
    bool flush_failed = false;
    const auto flush = [&]() -> Result<> {
        auto done = device_->flush();
        flush_failed = !done;
        return done;
    };
    const auto write = [&](bool bit) -> Result<> {
        auto& compat = fs_->super->s_feature_compat;
        compat = bit ? compat | kFeatureCompatAtomic4 : compat & ~kFeatureCompatAtomic4;
        // Whatever crash comes between: a copy with the gate is left as long as the volume needs
        // protection, and the volume counts as atomic4 while any copy has it.
        if (bit) {
            A4_CHECK(write_backup_superblocks(fs_, *device_));
            A4_CHECK(flush());
            A4_CHECK(write_primary_superblock(fs_, *device_));
        } else {
            A4_CHECK(write_primary_superblock(fs_, *device_));
            A4_CHECK(flush());
            A4_CHECK(write_backup_superblocks(fs_, *device_));
        }
        return flush();
    };
    if (auto done = write(on); !done) {
        // A gate that was only completed is not taken away again.
        if (flush_failed || gate_ == on || !write(gate_))
            return poison_by(done.error(), "gate bit");
        return std::move(done).context("gate bit");
    }
    gate_ = on;
    for (BackupSuperblock& backup : backups_) backup = {backup.group, true, false, on};
    return {};
}

Result<> Volume::mark_for_checking() {
    if ((fs_->super->s_state & EXT2_ERROR_FS) != 0) return {};
    fs_->super->s_state |= EXT2_ERROR_FS;
    A4_CHECK(write_primary_superblock(fs_, *device_));
    return device_->flush();
}

Result<> Volume::write_needs_replay(bool on) {
    A4_CHECK(usable());
    auto& incompat = fs_->super->s_feature_incompat;
    incompat =
        on ? incompat | kFeatureIncompatNeedsReplay : incompat & ~kFeatureIncompatNeedsReplay;
    auto done = write_primary_superblock(fs_, *device_);
    if (done) done = device_->flush();
    if (!done) return poison_by(done.error(), "needs-replay bit");
    return {};
}

Result<> Volume::stage_attr(const std::optional<VolumeAttr>& attr) {
    A4_CHECK(write_xattr(fs_, EXT2_ROOT_INO, kVolumeXattr,
                         attr ? std::optional(attr->to_text()) : std::nullopt));
    attr_ = attr;
    attr_error_.reset();
    lock_inode_.reset();
    return {};
}

}  // namespace atomic4
