// The allocation bitmaps and group descriptors of an open volume, one group at a time.
//
// Bitmaps are read when first asked for, proved against their checksum, against the descriptor's
// free count and against what is metadata wherever files lie, and kept in a small LRU; an
// uninitialised group costs no I/O, its bitmap is computed (F18). Changed ones stay in memory until
// the operation commits.
//
// A bitmap that disagrees makes its group *damaged* (the kernel's EXT4_GROUP_INFO_BBITMAP_CORRUPT):
// EUCLEAN from then on, and nothing is allocated or freed there. The allocators go to other groups.
// An I/O error is an error, not damage.
//
// Changes belong to an operation (begin … commit or abort); abort() restores bitmaps and
// descriptors as they were. Only ext4/transaction.h calls those.
//
// With bigalloc a bit of a block bitmap, and a descriptor's free count, are clusters; the
// superblock's count stays in blocks.
//
// Every change flips every bit it names: marking a used block used, or a free one free, is
// EUCLEAN and changes nothing.
#pragma once

#include <ext2fs/ext2fs.h>

#include <array>
#include <list>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/units.h"
#include "device/device.h"
#include "ext4/fixed_blocks.h"

namespace atomic4 {

// Which group descriptors an operation changed, with copies of how they were.
class GroupDescriptors {
  public:
    explicit GroupDescriptors(ext2_filsys fs) : fs_(fs) {}

    // To be called before a group's descriptor changes.
    void touch(uint32_t group);
    // A descriptor that failed its checksum: kept as it is, so that it goes on failing.
    void freeze(uint32_t group) { frozen_.try_emplace(group, copy_of(group)); }
    bool is_frozen(uint32_t group) const { return frozen_.contains(group); }
    // libext2fs counted a block (a cluster) as freed (-1) that stays in use: as it was before.
    void uncount_block(uint32_t group, int inuse);
    // libext2fs reports a change after making it: touch() with the free count as it was.
    void touch_after_block_change(uint32_t group, int inuse);

    const std::set<uint32_t>& dirty() const { return dirty_; }
    void begin();
    void abort();
    void committed() { dirty_.clear(); }

  private:
    std::vector<std::byte> copy_of(uint32_t group) const;
    ext2_filsys fs_;
    std::set<uint32_t> dirty_;
    std::map<uint32_t, std::vector<std::byte>> before_;
    std::map<uint32_t, std::vector<std::byte>> frozen_;
};

class GroupBitmaps {
  public:
    enum class Kind { Block, Inode };
    using Bits = std::vector<uint8_t>;  // one filesystem block; bit set = in use

    GroupBitmaps(ext2_filsys fs, Device& device, GroupDescriptors& descriptors, Kind kind,
                 FixedBlocks& fixed);

    // EUCLEAN: the group is damaged.
    Result<std::shared_ptr<const Bits>> get(uint32_t group);
    // What has been found so far, by group.
    const std::map<uint32_t, Error>& damaged() const { return damaged_; }
    bool is_damaged(uint32_t group) const { return damaged_.contains(group); }
    void mark_damaged(uint32_t group, const Error& why) { damaged_.try_emplace(group, why); }
    // For bitmap_rebuild.h. Block kind. A damaged group's bitmap as it stands, with the fixed
    // blocks that lie there. EUCLEAN: the descriptor is damaged.
    Result<Bits> read_unproved(uint32_t group);
    // Makes a (damaged) group serve with these bits, its free counts by them. An operation is open.
    Result<> replace(uint32_t group, Bits bits);
    // Flips count bits from first to used (or free). Block kind: adjusts the free counts too unless
    // libext2fs has done so (count_free false).
    Result<> set(uint32_t group, uint32_t first, uint32_t count, bool used, bool count_free = true);

    // Gives an uninitialised group its computed bitmap.
    Result<> initialise(uint32_t group);

    void begin();
    void abort();
    // The changed bitmaps, with their checksums set in the descriptors: block number → contents.
    Result<std::map<uint64_t, std::shared_ptr<const Bits>>> prepare();
    // The changed bitmaps as they were, for undoing a commit that failed half-way.
    std::map<uint64_t, std::shared_ptr<const Bits>> before() const;
    void committed();
    // Whether this operation took the block, or gave it back. Block kind.
    bool newly_used(uint64_t block) const {
        return changed_to(block, true) || newly_mapped_.contains(block);
    }
    // The operation has begun to use a block of a cluster that was in use before.
    void note_newly_mapped(uint64_t block) { newly_mapped_.insert(block); }
    bool newly_free(uint64_t block) const { return changed_to(block, false); }

    uint32_t bits_in(uint32_t group) const;
    // The bit, in its group's bitmap, that a block belongs to. Block kind.
    uint32_t bit_of(uint64_t block) const;
    // Where the blocks of a bit begin.
    uint64_t block_of(uint32_t group, uint32_t bit) const;

  private:
    struct Entry {
        std::shared_ptr<Bits> bits;
        std::list<uint32_t>::iterator age;
    };
    Result<std::shared_ptr<Bits>> load(uint32_t group);
    Bits computed(uint32_t group) const;
    Result<Bits> read(uint32_t group) const;
    bool uninitialised(uint32_t group) const;
    uint64_t location(uint32_t group) const;
    Result<> verify(uint32_t group, const Bits& bits);
    void mark_fixed(uint32_t group, Bits& bits);
    tl::unexpected<Error> damage(uint32_t group, std::string why);
    void trim();
    bool changed_to(uint64_t block, bool used) const;

    ext2_filsys fs_;
    Device& device_;
    GroupDescriptors& descriptors_;
    Kind kind_;
    FixedBlocks& fixed_;
    std::unordered_map<uint32_t, Entry> cache_;
    std::list<uint32_t> by_age_;                        // clean and dirty, oldest first
    std::map<uint32_t, std::shared_ptr<Bits>> before_;  // as the operation found them
    std::set<uint32_t> dirty_;
    std::set<uint64_t> newly_mapped_;
    std::map<uint32_t, Error> damaged_;
    std::map<uint32_t, Error> replaced_;  // damaged before this operation
};

// EUCLEAN, for a request that only these groups could still serve: "what: groups 3, 7: …".
Error damaged_groups_error(const std::string& what, const std::map<uint32_t, Error>& groups);

}  // namespace atomic4
