// GuardedDevice: a device on which stock tools may do anything but touch what is protected.
//
// On top of the SuperblockMask, which keeps our feature bits: a write that intersects a protected
// range (protected_set.h) is refused with EPERM, whole, and remembered with its block, inode and
// path. Metadata of protected files may be written as it is: tools write whole blocks of the inode
// table. A view alone can't keep a file's blocks where they are, since moving them is a change of
// metadata elsewhere too (F20); whoever runs a tool compares the files afterwards.
//
// Read-only: refuses all writes (EROFS), and the device below is read-only, too.
//
// Threads: one at a time, as Device; counters and refusals when nobody else uses it any more.
#pragma once

#include "guard/protected_set.h"
#include "guard/superblock_mask.h"

namespace atomic4 {

struct Refusal {
    ByteOffset offset;  // of the write
    Bytes length;
    Pblk block;  // the first protected one that it would have changed
    ext2_ino_t inode = 0;
    std::string path;
    Protection protection = Protection::Data;

    // "a write of 4096 bytes at 8388608 would change block 2048, data of /db (inode 15)"
    std::string to_text() const;
};

class GuardedDevice final : public Device {
  public:
    // Takes neither; both must outlive this object.
    GuardedDevice(SuperblockMask& masked, const ProtectedSet& set) : below_(masked), set_(set) {}
    // Nothing but the replay of the ext4 journal: when the primary superblock says that it is done
    // (needs_recovery), everything but superblocks is refused.
    void only_a_replay() { only_a_replay_ = true; }

    Result<> read(ByteOffset offset, std::span<std::byte> into) override {
        ++reads_;
        return below_.read(offset, into);
    }
    Result<> write(ByteOffset offset, std::span<const std::byte> from) override;
    Result<> write_durable(ByteOffset offset, std::span<const std::byte> from) override;
    Result<> write_atomic(ByteOffset offset, std::span<const std::byte> from) override {
        return below_.write_atomic(offset, from);
    }
    Result<> zero(ByteOffset offset, Bytes length) override;
    Result<> flush() override { return noted(below_.flush()); }

    Bytes size() const override { return below_.size(); }
    const AtomicLimits& atomic_limits() const override { return below_.atomic_limits(); }
    bool read_only() const override { return below_.read_only(); }
    const std::string& name() const override { return below_.name(); }

    uint64_t reads() const { return reads_; }
    uint64_t writes() const { return writes_; }
    uint64_t writes_refused() const { return writes_refused_; }
    // The first write or flush that the device failed: tools go on after such a thing ("ignore
    // error? yes"), but what they have done isn't there.
    const std::optional<Error>& failure() const { return failure_; }
    // The first ones: a tool that goes on would make many.
    const std::vector<Refusal>& refusals() const { return refusals_; }

  private:
    Result<> check(ByteOffset offset, std::span<const std::byte> from);
    Result<> noted(Result<> done);
    Result<> check_replay(uint64_t begin, uint64_t end);
    Result<> refuse(ByteOffset offset, Bytes length, const ProtectedRange& range);

    SuperblockMask& below_;
    const ProtectedSet& set_;
    uint64_t reads_ = 0;
    uint64_t writes_ = 0;
    uint64_t writes_refused_ = 0;
    bool only_a_replay_ = false;
    std::vector<Refusal> refusals_;
    std::optional<Error> failure_;
};

}  // namespace atomic4
