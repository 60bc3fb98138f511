#include "guard/superblock_mask.h"

#include <algorithm>
#include <cstring>

#include "base/crc32c.h"
#include "ext4/format.h"

namespace atomic4 {

namespace {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "atomic4 needs a little-endian host");

constexpr uint64_t kPrimary = 1024;
constexpr uint64_t kSuperSize = sizeof(ext2_super_block);
constexpr uint64_t kWhole = 4096;  // what devices write whole

ext2_super_block& super_in(std::array<std::byte, 1024>& copy) {
    return *reinterpret_cast<ext2_super_block*>(copy.data());
}
const ext2_super_block& super_in(const std::array<std::byte, 1024>& copy) {
    return *reinterpret_cast<const ext2_super_block*>(copy.data());
}

bool has_magic(const std::array<std::byte, 1024>& copy) {
    return super_in(copy).s_magic == EXT2_SUPER_MAGIC;
}

bool has_checksum(const ext2_super_block& super) {
    return (super.s_feature_ro_compat & EXT4_FEATURE_RO_COMPAT_METADATA_CSUM) != 0;
}

uint32_t checksum_of(const std::array<std::byte, 1024>& copy) {
    return crc32c(~0U, std::span(copy).first(offsetof(ext2_super_block, s_checksum)));
}

// The copy with other feature bits. A checksum that was right is so again; one that was wrong is as
// wrong as before.
void set_bits(std::array<std::byte, 1024>& copy, uint32_t compat, uint32_t incompat) {
    ext2_super_block& super = super_in(copy);
    const uint32_t fault = has_checksum(super) ? super.s_checksum ^ checksum_of(copy) : 0;
    super.s_feature_compat = (super.s_feature_compat & ~kFeatureCompatAtomic4) | compat;
    super.s_feature_incompat = (super.s_feature_incompat & ~kFeatureIncompatNeedsReplay) | incompat;
    if (has_checksum(super)) super.s_checksum = checksum_of(copy) ^ fault;
}

uint64_t blocks_of(const ext2_super_block& super) {
    uint64_t blocks = super.s_blocks_count;
    if ((super.s_feature_incompat & EXT4_FEATURE_INCOMPAT_64BIT) != 0)
        blocks |= uint64_t{super.s_blocks_count_hi} << 32;
    return blocks;
}

bool plausible(const ext2_super_block& super) {
    return super.s_magic == EXT2_SUPER_MAGIC && super.s_log_block_size <= 6 &&
           super.s_blocks_per_group != 0;
}

}  // namespace

Result<std::unique_ptr<SuperblockMask>> SuperblockMask::make(
    Device& below, const std::optional<SuperblockPlace>& told) {
    std::unique_ptr<SuperblockMask> mask(new SuperblockMask(below));
    Copy copy{};
    if (below.size().value() < kPrimary + kSuperSize)
        return fail(EINVAL, "{}: not an ext4 volume: too small", below.name());
    A4_CHECK(below.read(ByteOffset(kPrimary), copy));
    // A copy lies where it says that it does, which proves its geometry; the primary has only its
    // word.
    const ext2_super_block& primary = super_in(copy);
    for (const FoundSuperblock& found : A4_TRY(find_backup_superblocks(below, told))) {
        if (plausible(primary) &&
            std::memcmp(found.super.s_uuid, primary.s_uuid, sizeof primary.s_uuid) != 0)
            continue;
        mask->geometry_ = found.super;
        return mask;
    }
    mask->geometry_ = primary;
    if (plausible(primary)) return mask;
    return fail(EINVAL, "{}: not an ext4 volume: no superblock where one should be", below.name());
}

// One that is damaged, or half of an update, says nothing. What changes is the size.
void SuperblockMask::learn_geometry(const Copy& primary) {
    const ext2_super_block& super = super_in(primary);
    if (plausible(super) && superblock_checksum_is_right(super) &&
        super.s_log_block_size == geometry_.s_log_block_size &&
        super.s_blocks_per_group == geometry_.s_blocks_per_group &&
        super.s_first_data_block == geometry_.s_first_data_block)
        geometry_ = super;
}

// Of [begin, end): the places where a superblock can lie.
std::vector<SuperblockMask::Place> SuperblockMask::places_in(uint64_t begin, uint64_t end) const {
    std::vector<Place> places;
    if (begin < kPrimary + kSuperSize && end > kPrimary) places.push_back({kPrimary, 0});
    const uint64_t block = uint64_t{1024} << geometry_.s_log_block_size;
    const uint64_t first = geometry_.s_first_data_block * block;
    const uint64_t group = geometry_.s_blocks_per_group * block;
    if (end <= first) return places;
    const uint64_t last_size = size().value();
    uint64_t number = begin < first + kSuperSize ? 1 : (begin - first - kSuperSize) / group + 1;
    // One before, since a copy may begin before the range.
    number = std::max<uint64_t>(1, number > 1 ? number - 1 : 1);
    for (; first + number * group < end; ++number) {
        const uint64_t offset = first + number * group;
        if (offset + kSuperSize > begin && offset + kSuperSize <= last_size)
            places.push_back({offset, static_cast<uint32_t>(number)});
    }
    return places;
}

bool SuperblockMask::is_copy(const Place& place, const Copy& contents) const {
    if (place.offset == kPrimary) return true;
    if (!has_magic(contents)) return false;
    const ext2_super_block& super = super_in(contents);
    const uint64_t first_block =
        geometry_.s_first_data_block + uint64_t{place.group} * geometry_.s_blocks_per_group;
    if (first_block < blocks_of(geometry_) && has_superblock_copy(geometry_, place.group))
        return true;
    return std::memcmp(super.s_uuid, geometry_.s_uuid, sizeof super.s_uuid) == 0 &&
           super.s_block_group_nr == std::min<uint32_t>(place.group, 0xffff);
}

Result<SuperblockMask::Copy> SuperblockMask::on_disk(const Place& place) const {
    Copy copy{};
    A4_CHECK(below_.read(ByteOffset(place.offset), copy));
    return copy;
}

Result<SuperblockMask::Copy> SuperblockMask::shown(const Place& place) const {
    if (const auto pending = pending_.find(place.offset); pending != pending_.end())
        return pending->second;
    Copy copy = A4_TRY(on_disk(place));
    if (has_magic(copy) && is_copy(place, copy)) set_bits(copy, 0, 0);
    return copy;
}

// What goes down where tools want to see `wanted`.
Result<SuperblockMask::Copy> SuperblockMask::put_back(const Place& place, const Copy& wanted,
                                                      const Copy& old) const {
    if (!has_magic(wanted)) {
        if (place.offset != kPrimary) return wanted;
        if (!has_magic(old)) return wanted;
        return fail(EPERM, "{}: a write that destroys the superblock is refused", name());
    }
    Copy down = wanted;
    const bool was_live =
        has_magic(old) && (super_in(old).s_feature_incompat & kFeatureIncompatNeedsReplay) != 0;
    const bool live = place.offset == kPrimary && (was_live || live_since_);
    const uint32_t needs_replay = live ? kFeatureIncompatNeedsReplay : 0;
    set_bits(down, kFeatureCompatAtomic4, needs_replay);
    if (live && live_since_) {
        super_in(down).s_mnt_count = static_cast<uint16_t>(live_since_->mount_count);
        super_in(down).s_mtime = static_cast<uint32_t>(live_since_->mount_time);
        super_in(down).s_mtime_hi = static_cast<uint8_t>(live_since_->mount_time >> 32);
    } else if (live) {
        super_in(down).s_mnt_count = super_in(old).s_mnt_count;
        super_in(down).s_mtime = super_in(old).s_mtime;
        super_in(down).s_mtime_hi = super_in(old).s_mtime_hi;
    }
    if (has_checksum(super_in(down))) super_in(down).s_checksum = checksum_of(down);
    return down;
}

Result<> SuperblockMask::read(ByteOffset offset, std::span<std::byte> into) {
    A4_CHECK(below_.read(offset, into));
    const uint64_t begin = offset.value();
    const uint64_t end = begin + into.size();
    for (const Place& place : places_in(begin, end)) {
        const Copy copy = A4_TRY(shown(place));
        const uint64_t from = std::max(begin, place.offset);
        const uint64_t to = std::min(end, place.offset + kSuperSize);
        std::memcpy(into.data() + (from - begin), copy.data() + (from - place.offset), to - from);
    }
    return {};
}

Result<> SuperblockMask::write(ByteOffset offset, std::span<const std::byte> from) {
    A4_CHECK(check_range(*this, "write", offset, Bytes(from.size())));
    const uint64_t begin = offset.value();
    const uint64_t end = begin + from.size();
    struct Change {
        Place place;
        Copy wanted;
        Copy down;
    };
    std::vector<Change> changes;
    for (const Place& place : places_in(begin, end)) {
        Copy wanted = A4_TRY(shown(place));
        const uint64_t lo = std::max(begin, place.offset);
        const uint64_t hi = std::min(end, place.offset + kSuperSize);
        std::memcpy(wanted.data() + (lo - place.offset), from.data() + (lo - begin), hi - lo);
        if (!is_copy(place, wanted)) {
            pending_.erase(place.offset);
            continue;
        }
        // A whole one with our bits comes from a journal: tools aren't to see them.
        if (has_magic(wanted)) set_bits(wanted, 0, 0);
        const Copy old = A4_TRY(on_disk(place));
        Copy down = A4_TRY(put_back(place, wanted, old));
        changes.push_back({place, wanted, down});
    }
    if (changes.empty()) return below_.write(offset, from);

    const uint64_t lo = round_down(begin, kWhole);
    const uint64_t hi = std::min(round_up(end, kWhole), size().value());
    std::vector<std::byte> block(hi - lo);
    A4_CHECK(below_.read(ByteOffset(lo), block));
    std::memcpy(block.data() + (begin - lo), from.data(), from.size());
    for (const Change& change : changes) {
        // It may begin before or end after the 4 KiB: then it is at least written with them.
        const uint64_t from_byte = std::max(lo, change.place.offset);
        const uint64_t to_byte = std::min(hi, change.place.offset + kSuperSize);
        std::memcpy(block.data() + (from_byte - lo),
                    change.down.data() + (from_byte - change.place.offset), to_byte - from_byte);
    }
    A4_CHECK(below_.write(ByteOffset(lo), block));
    for (const Change& change : changes) {
        ++writes_masked_;
        if (change.place.offset == kPrimary) learn_geometry(change.wanted);
        Copy derived = change.down;
        if (has_magic(derived)) set_bits(derived, 0, 0);
        if (derived == change.wanted)
            pending_.erase(change.place.offset);
        else
            pending_[change.place.offset] = change.wanted;
    }
    return {};
}

Result<> SuperblockMask::write_durable(ByteOffset offset, std::span<const std::byte> from) {
    A4_CHECK(write(offset, from));
    return flush();
}

Result<> SuperblockMask::write_atomic(ByteOffset, std::span<const std::byte>) {
    return fail(EOPNOTSUPP, "{}: {}", name(), none_.why_not);
}

Result<> SuperblockMask::zero(ByteOffset offset, Bytes length) {
    A4_CHECK(check_range(*this, "zeroing", offset, length));
    if (places_in(offset.value(), offset.value() + length.value()).empty())
        return below_.zero(offset, length);
    const std::vector<std::byte> zeros(length.value());
    return write(offset, zeros);
}

}  // namespace atomic4
