// Volume: an unmounted ext4 volume, open and exclusively ours.
//
// open() proves that the volume may be used the way it is asked for, and says what to do where it
// may not: not an ext4, damaged, in need of recovery, unknown features, another format version. It
// does not read the bitmaps; opening 15 TiB takes milliseconds (F18). An atomic4 volume's primary
// superblock whose only fault is its checksum is repaired first (superblock_repair.h); opened for
// reading, it is read as repaired and not written. That nobody else uses the
// device is the business of device/ownership.h, before a Volume sees it.
//
// All changes go through a Transaction (transaction.h); the gate bit and the needs-replay bit have
// their own functions here, since their order against everything else is the protection.
//
// The redo log is a layer above: whoever opens for writing replays it first
// (writer/open_volume.h); a Volume only knows where it lies.
//
// Errors latched in the adapter make every later commit fail: reopen.
// Threads: one.
#pragma once

#include <ext2fs/ext2fs.h>

#include <memory>
#include <optional>
#include <string>

#include "device/device.h"
#include "device/staging_device.h"
#include "ext4/aligned_allocator.h"
#include "ext4/fixed_blocks.h"
#include "ext4/group_bitmaps.h"
#include "ext4/inode_allocator.h"
#include "ext4/inode_prealloc.h"
#include "ext4/inode_tables.h"
#include "ext4/io_adapter.h"
#include "ext4/mmp.h"
#include "ext4/superblock_copies.h"
#include "ext4/superblock_repair.h"
#include "ext4/volume_attr.h"

namespace atomic4 {

enum class OpenFor {
    Inspect,  // look at the superblock and our marks, whatever state the rest is in
    Read,     // follow metadata and read files
    Write,
};

struct VolumeOptions {
    OpenFor purpose = OpenFor::Read;
    bool require_atomic4 = true;
    // To replay the redo log: while the needs-replay bit is set, recorded errors and damage
    // elsewhere are no obstacle.
    bool recovering = false;
    // For fsck: whatever errors are recorded or stand in the descriptors. Only a journal that needs
    // recovery is an obstacle: what it holds is not read from metadata. Nor is a gate completed: it
    // is a finding.
    bool damaged_too = false;
    // Take away the mark that a crash of atomic4 or e2fsck left in the MMP block (mmp.h), also if
    // the volume is refused for its state then. Only where somebody has said that it was one.
    bool clear_mmp = false;
    // Look at every superblock copy even where there are thousands (superblock_copies.h): for
    // enable and disable.
    bool every_copy = false;
    // OpenFor::Inspect: by this copy of the superblock, and the descriptors behind it.
    std::optional<SuperblockPlace> superblock;
    // Whether this user may have root's reserved blocks; by default as the kernel decides.
    std::optional<bool> may_use_reserved;
};

class Volume {
  public:
    // Takes the device (a file, a block device, memory); keeps it until the Volume goes.
    static Result<std::unique_ptr<Volume>> open(std::unique_ptr<Device> device,
                                                const VolumeOptions& options);
    ~Volume();
    Volume(const Volume&) = delete;
    Volume& operator=(const Volume&) = delete;

    ext2_filsys fs() const { return fs_; }
    // Data goes straight to the device; metadata through metadata_device() (staged).
    Device& device() const { return *device_; }
    StagingDevice& metadata_device() { return staging_; }
    Bytes block_size() const { return Bytes(fs_->blocksize); }
    const std::string& name() const { return device_->name(); }

    bool recovering() const { return options_.recovering; }
    // Recorded errors, orphans, or not unmounted cleanly: the bitmaps are worth nothing.
    bool needs_checking() const;
    bool gate() const { return gate_; }
    bool gate_in_primary() const;
    // The opening has put the gate bit back into copies that lacked it.
    bool gate_completed() const { return gate_completed_; }
    // The copies that opening looked at. All of them if the primary has no gate bit: then any one
    // of them decides. Else, where there are many, some: a copy of an atomic4 volume loses the gate
    // only by foreign tools, since the primary gets it last and loses it first.
    const std::vector<BackupSuperblock>& backups() const { return backups_; }
    Result<> read_every_copy();
    const std::optional<VolumeAttr>& attr() const { return attr_; }
    // What opening repaired, for people.
    const std::vector<std::string>& notices() const { return notices_; }
    // Why attr() is empty although the attribute exists.
    const std::optional<Error>& attr_error() const { return attr_error_; }
    bool needs_replay() const;
    // /.atomic4/lock, 0 if there is none. Looked up once.
    Result<ext2_ino_t> lock_inode();

    // Sets the gate bit durably in every copy, backups first (enable), or clears it, backups last.
    Result<> write_gate(bool on);
    // Sets or clears the needs-replay bit durably in the primary superblock.
    Result<> write_needs_replay(bool on);
    // Durably in the primary: it has errors, so that whoever comes next checks it.
    Result<> mark_for_checking();
    // Stages the volume attribute; an operation must be open.
    Result<> stage_attr(const std::optional<VolumeAttr>& attr);
    // What the attribute was before an operation that is aborted.
    struct AttrState {
        std::optional<VolumeAttr> attr;
        std::optional<Error> error;
    };
    AttrState attr_state() const { return {attr_, attr_error_}; }
    void restore_attr(AttrState before) {
        attr_ = std::move(before.attr);
        attr_error_ = std::move(before.error);
    }

    AlignedAllocator& allocator() { return *allocator_; }
    InodePreallocations& preallocations() { return *preallocations_; }
    InodeAllocator& inodes() { return *inodes_; }
    GroupBitmaps& block_bitmaps() { return *block_bitmaps_; }
    GroupBitmaps& inode_bitmaps() { return *inode_bitmaps_; }
    const InodeTables& inode_tables();
    FixedBlocks& fixed_blocks();
    GroupDescriptors& descriptors() { return descriptors_.value(); }
    IoAdapter& adapter() { return adapter_; }

    // Poisons the volume if another host has taken it (mmp.h).
    Result<> keep_mmp();

    // EIO if an I/O error was latched or a commit failed half-way.
    Result<> usable() const;
    void poison(Error why) {
        if (!poisoned_) poisoned_ = std::move(why);
    }

  private:
    Volume(std::unique_ptr<Device> device, const VolumeOptions& options);
    tl::unexpected<Error> poison_by(const Error& error, const char* what);
    Result<> load();
    Result<errcode_t> open_filesystem(int flags);
    Result<> claim();
    Result<> settle_repair();
    Result<> check_state() const;
    Result<> read_attr();
    void set_up_allocation();

    std::unique_ptr<Device> device_;
    VolumeOptions options_;
    StagingDevice staging_;
    IoAdapter adapter_;
    ext2_filsys fs_ = nullptr;
    std::optional<MmpClaim> mmp_;
    bool gate_ = false;
    bool gate_completed_ = false;
    std::vector<BackupSuperblock> backups_;
    std::optional<VolumeAttr> attr_;
    std::optional<Error> attr_error_;
    std::optional<ext2_ino_t> lock_inode_;
    std::optional<Error> poisoned_;
    std::vector<std::string> notices_;
    std::optional<SuperblockProof> superblock_proof_;  // if the primary has a bad checksum
    std::optional<GroupDescriptors> descriptors_;
    std::optional<InodeTables> inode_tables_;
    std::optional<FixedBlocks> fixed_blocks_;
    std::unique_ptr<GroupBitmaps> block_bitmaps_;
    std::unique_ptr<GroupBitmaps> inode_bitmaps_;
    std::unique_ptr<AlignedAllocator> allocator_;
    std::unique_ptr<InodePreallocations> preallocations_;
    std::unique_ptr<InodeAllocator> inodes_;
};

}  // namespace atomic4
