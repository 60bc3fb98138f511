// Shows a volume's superblocks without atomic4's feature bits, and puts the bits back into whatever
// is written over them: stock tools work on the volume, and the bits never leave the disk.
//
// What tools see of a superblock copy is the copy on disk without the gate bit and the needs-replay
// bit, with the checksum that it then has to have. What they write is put on top of what they saw,
// and goes down with the bits that the copy on disk has (the gate in any case) and a right
// checksum, as one write of the aligned 4 KiB around it. Tools write superblocks in pieces of two
// bytes, the checksum last (F5): what lies on the device is whole and right after every piece,
// while the tool still reads back what it wrote. A journal's replay writes whole superblocks with
// the bits in them: those are taken out of what is shown.
//
// A superblock copy is: the primary; what lies where the volume's own rules want a copy
// (ext2fs_bg_has_super); and whatever else at the start of a group says that it is one of this
// volume and this group, such as those that a growing resize2fs writes before the primary knows of
// them.
//
// While the needs-replay bit is set the primary keeps its mount count and time of mount, too: live
// records know by them that nobody has mounted the volume since (redo/replay.h), and e2fsck counts
// from 0 again.
//
// Refused (EPERM): to take the magic number from the primary. Elsewhere a write that makes a copy
// into something else goes through.
//
// Units: bytes of the device. Threads: one, as Device.
#pragma once

#include <ext2fs/ext2fs.h>

#include <array>
#include <map>
#include <optional>

#include "device/device.h"
#include "ext4/superblock_copies.h"

namespace atomic4 {

class SuperblockMask final : public Device {
  public:
    // below must outlive this object. EINVAL: its primary superblock, and the copies where they
    // are looked for without one, are no ext4's. Which bits the volume has is asked of the device
    // at each write, except the gate: it is put in everywhere.
    // told: where a copy is known to lie, if the primary is none.
    static Result<std::unique_ptr<SuperblockMask>> make(
        Device& below, const std::optional<SuperblockPlace>& told = std::nullopt);
    // The volume's last mount before the records that are live.
    struct LastMount {
        uint64_t mount_time = 0;  // seconds
        uint32_t mount_count = 0;
    };
    // Records are live, although the primary may be too damaged to say so: it gets the needs-replay
    // bit from now on, and this mount.
    void records_are_live(LastMount since) { live_since_ = since; }

    Result<> read(ByteOffset offset, std::span<std::byte> into) override;
    Result<> write(ByteOffset offset, std::span<const std::byte> from) override;
    Result<> write_durable(ByteOffset offset, std::span<const std::byte> from) override;
    Result<> write_atomic(ByteOffset offset, std::span<const std::byte> from) override;
    Result<> zero(ByteOffset offset, Bytes length) override;
    Result<> flush() override { return below_.flush(); }

    Bytes size() const override { return below_.size(); }
    const AtomicLimits& atomic_limits() const override { return none_; }
    bool read_only() const override { return below_.read_only(); }
    const std::string& name() const override { return below_.name(); }

    // How often a superblock was written with its bits put back.
    uint64_t writes_masked() const { return writes_masked_; }

  private:
    using Copy = std::array<std::byte, 1024>;
    struct Place {
        uint64_t offset = 0;
        uint32_t group = 0;
    };

    explicit SuperblockMask(Device& below) : below_(below) {}
    std::vector<Place> places_in(uint64_t begin, uint64_t end) const;
    bool is_copy(const Place& place, const Copy& contents) const;
    Result<Copy> on_disk(const Place& place) const;
    Result<Copy> shown(const Place& place) const;
    Result<Copy> put_back(const Place& place, const Copy& wanted, const Copy& old) const;
    void learn_geometry(const Copy& primary);

    Device& below_;
    AtomicLimits none_ = AtomicLimits::none("a guarded view has none");
    ext2_super_block geometry_{};  // of the primary as it is shown
    // Copies that tools see otherwise than what is on disk would show: half of an update.
    std::map<uint64_t, Copy> pending_;
    uint64_t writes_masked_ = 0;
    std::optional<LastMount> live_since_;
};

}  // namespace atomic4
