#include "ext4/group_bitmaps.h"

#include <bit>
#include <cstring>

namespace atomic4 {

namespace {

constexpr size_t kCachedBytes = size_t{4} << 20;

bool test_bit(const GroupBitmaps::Bits& bits, uint32_t bit) {
    return (bits[bit / 8] >> (bit % 8) & 1) != 0;
}

void set_bit(GroupBitmaps::Bits& bits, uint32_t bit, bool used) {
    const auto mask = static_cast<uint8_t>(1u << (bit % 8));
    bits[bit / 8] = static_cast<uint8_t>(used ? bits[bit / 8] | mask : bits[bit / 8] & ~mask);
}

// Byte-wise in the middle: units are mostly multiples of eight blocks.
void fill_bits(GroupBitmaps::Bits& bits, uint32_t first, uint32_t count, bool used) {
    while (count > 0 && first % 8 != 0) {
        set_bit(bits, first++, used);
        --count;
    }
    std::memset(bits.data() + first / 8, used ? 0xff : 0, count / 8);
    first += count / 8 * 8;
    for (count %= 8; count > 0; --count) set_bit(bits, first++, used);
}

// Whether all count bits from first are equal to used.
bool all_bits(const GroupBitmaps::Bits& bits, uint32_t first, uint32_t count, bool used) {
    for (; count > 0 && first % 8 != 0; --count) {
        if (test_bit(bits, first++) != used) return false;
    }
    for (; count >= 8; count -= 8, first += 8) {
        if (bits[first / 8] != (used ? 0xff : 0)) return false;
    }
    for (; count > 0; --count) {
        if (test_bit(bits, first++) != used) return false;
    }
    return true;
}

uint32_t count_used(const GroupBitmaps::Bits& bits, uint32_t bit_count) {
    uint32_t used = 0;
    for (uint32_t i = 0; i < bit_count / 8; ++i)
        used += static_cast<uint32_t>(std::popcount(bits[i]));
    for (uint32_t bit = bit_count / 8 * 8; bit < bit_count; ++bit)
        used += test_bit(bits, bit) ? 1 : 0;
    return used;
}

}  // namespace

std::vector<std::byte> GroupDescriptors::copy_of(uint32_t group) const {
    const auto* raw =
        reinterpret_cast<const std::byte*>(ext2fs_group_desc(fs_, fs_->group_desc, group));
    return {raw, raw + EXT2_DESC_SIZE(fs_->super)};
}

void GroupDescriptors::touch(uint32_t group) {
    before_.try_emplace(group, copy_of(group));
    dirty_.insert(group);
}

void GroupDescriptors::touch_after_block_change(uint32_t group, int inuse) {
    if (!before_.contains(group)) {
        const uint32_t now = ext2fs_bg_free_blocks_count(fs_, group);
        ext2fs_bg_free_blocks_count_set(fs_, group, now + static_cast<uint32_t>(inuse));
        touch(group);
        ext2fs_bg_free_blocks_count_set(fs_, group, now);
    }
    dirty_.insert(group);
}

void GroupDescriptors::uncount_block(uint32_t group, int inuse) {
    const auto delta = static_cast<uint32_t>(inuse);
    const int64_t blocks = int64_t{inuse} * EXT2FS_CLUSTER_RATIO(fs_);
    ext2fs_free_blocks_count_add(fs_->super, static_cast<blk64_t>(blocks));
    if (const auto frozen = frozen_.find(group); frozen != frozen_.end()) {
        std::memcpy(ext2fs_group_desc(fs_, fs_->group_desc, group), frozen->second.data(),
                    frozen->second.size());
        return;
    }
    ext2fs_bg_free_blocks_count_set(fs_, group, ext2fs_bg_free_blocks_count(fs_, group) + delta);
    ext2fs_group_desc_csum_set(fs_, group);
}

void GroupDescriptors::begin() {
    before_.clear();
}

void GroupDescriptors::abort() {
    for (const auto& [group, bytes] : before_) {
        std::memcpy(ext2fs_group_desc(fs_, fs_->group_desc, group), bytes.data(), bytes.size());
        dirty_.erase(group);
    }
    before_.clear();
}

GroupBitmaps::GroupBitmaps(ext2_filsys fs, Device& device, GroupDescriptors& descriptors, Kind kind,
                           FixedBlocks& fixed)
    : fs_(fs), device_(device), descriptors_(descriptors), kind_(kind), fixed_(fixed) {}

uint32_t GroupBitmaps::bits_in(uint32_t group) const {
    if (kind_ == Kind::Inode) return fs_->super->s_inodes_per_group;
    return static_cast<uint32_t>(
        EXT2FS_NUM_B2C(fs_, static_cast<uint64_t>(ext2fs_group_blocks_count(fs_, group))));
}

uint32_t GroupBitmaps::bit_of(uint64_t block) const {
    const uint64_t first = ext2fs_group_first_block2(fs_, ext2fs_group_of_blk2(fs_, block));
    return static_cast<uint32_t>((block - first) >> fs_->cluster_ratio_bits);
}

uint64_t GroupBitmaps::block_of(uint32_t group, uint32_t bit) const {
    return ext2fs_group_first_block2(fs_, group) + (uint64_t{bit} << fs_->cluster_ratio_bits);
}

uint64_t GroupBitmaps::location(uint32_t group) const {
    return kind_ == Kind::Block ? ext2fs_block_bitmap_loc(fs_, group)
                                : ext2fs_inode_bitmap_loc(fs_, group);
}

bool GroupBitmaps::uninitialised(uint32_t group) const {
    return ext2fs_has_group_desc_csum(fs_) &&
           ext2fs_bg_flags_test(fs_, group,
                                kind_ == Kind::Block ? EXT2_BG_BLOCK_UNINIT : EXT2_BG_INODE_UNINIT);
}

// What the kernel's ext4_init_block_bitmap() and libext2fs compute: the group's superblock and
// descriptors, and its own bitmaps and inode table where they lie inside it.
GroupBitmaps::Bits GroupBitmaps::computed(uint32_t group) const {
    Bits bits(fs_->blocksize, 0);
    const uint32_t count = bits_in(group);
    if (kind_ == Kind::Block) {
        const uint64_t first = ext2fs_group_first_block2(fs_, group);
        const uint64_t last = ext2fs_group_last_block2(fs_, group);
        for_each_fixed_run(fs_, group, [&](uint64_t block, uint64_t n) {
            for (; n > 0; --n, ++block) {
                if (block >= first && block <= last) set_bit(bits, bit_of(block), true);
            }
        });
    }
    // Beyond the group's end bits are set: padding, as e2fsck wants it.
    fill_bits(bits, count, fs_->blocksize * 8 - count, true);
    return bits;
}

tl::unexpected<Error> GroupBitmaps::damage(uint32_t group, std::string why) {
    mark_damaged(group, Error{EUCLEAN, fmt::format("group {}: {}: the volume needs e2fsck", group,
                                                   std::move(why))});
    return fail(Error(damaged_.at(group)));
}

// The fixed blocks of any group that lie in this one.
void GroupBitmaps::mark_fixed(uint32_t group, Bits& bits) {
    fixed_.for_each_in(ext2fs_group_first_block2(fs_, group), ext2fs_group_last_block2(fs_, group),
                       [&](uint64_t block, uint64_t count) {
                           const uint32_t first = bit_of(block);
                           fill_bits(bits, first, bit_of(block + count - 1) + 1 - first, true);
                       });
}

Result<> GroupBitmaps::verify(uint32_t group, const Bits& bits) {
    const char* word = kind_ == Kind::Block ? "block" : "inode";
    auto* raw = reinterpret_cast<char*>(const_cast<uint8_t*>(bits.data()));
    const bool sum_ok =
        kind_ == Kind::Block
            ? ext2fs_block_bitmap_csum_verify(
                  fs_, group, raw, static_cast<int>(EXT2_CLUSTERS_PER_GROUP(fs_->super) / 8)) != 0
            : ext2fs_inode_bitmap_csum_verify(
                  fs_, group, raw, static_cast<int>(EXT2_INODES_PER_GROUP(fs_->super) / 8)) != 0;
    if (!sum_ok && !uninitialised(group)) {
        return fail(EUCLEAN, "the {} bitmap has a bad checksum", word);
    }
    const uint32_t count = bits_in(group);
    const uint32_t free = count - count_used(bits, count);
    const uint32_t said = kind_ == Kind::Block ? ext2fs_bg_free_blocks_count(fs_, group)
                                               : ext2fs_bg_free_inodes_count(fs_, group);
    if (free != said) {
        return fail(EUCLEAN, "the {} bitmap has {} free, the descriptor says {}", word, free, said);
    }
    if (kind_ == Kind::Block) {
        Bits with_fixed = bits;
        mark_fixed(group, with_fixed);
        if (with_fixed != bits)
            return fail(EUCLEAN, "the block bitmap calls blocks of the volume's own metadata free");
    }
    return {};
}

// What stands there, or would. EUCLEAN: nowhere.
Result<GroupBitmaps::Bits> GroupBitmaps::read(uint32_t group) const {
    if (uninitialised(group)) return computed(group);
    const uint64_t block = location(group);
    if (block < fs_->super->s_first_data_block || block >= ext2fs_blocks_count(fs_->super))
        return fail(EUCLEAN, "bitmap at impossible block {}", block);
    Bits bits(fs_->blocksize);
    A4_CHECK(
        device_.read(ByteOffset(block * fs_->blocksize), std::as_writable_bytes(std::span(bits)))
            .context(fmt::format("group {}: bitmap", group)));
    return bits;
}

Result<std::shared_ptr<GroupBitmaps::Bits>> GroupBitmaps::load(uint32_t group) {
    if (const auto found = cache_.find(group); found != cache_.end()) {
        by_age_.splice(by_age_.end(), by_age_, found->second.age);
        return found->second.bits;
    }
    if (const auto found = damaged_.find(group); found != damaged_.end())
        return fail(Error(found->second));
    auto read_bits = read(group);
    if (!read_bits && read_bits.error().code == EUCLEAN)
        return damage(group, read_bits.error().message);
    auto bits = std::make_shared<Bits>(A4_TRY(std::move(read_bits)));
    if (auto agrees = verify(group, *bits); !agrees) return damage(group, agrees.error().message);
    trim();
    by_age_.push_back(group);
    cache_[group] = Entry{bits, std::prev(by_age_.end())};
    return bits;
}

void GroupBitmaps::trim() {
    auto it = by_age_.begin();
    const size_t most = kCachedBytes / std::max<size_t>(fs_->blocksize, 4096);
    while (cache_.size() - dirty_.size() >= most && it != by_age_.end()) {
        const uint32_t group = *it;
        if (dirty_.contains(group)) {
            ++it;
            continue;
        }
        it = by_age_.erase(it);
        cache_.erase(group);
    }
}

Result<std::shared_ptr<const GroupBitmaps::Bits>> GroupBitmaps::get(uint32_t group) {
    return std::shared_ptr<const Bits>(A4_TRY(load(group)));
}

Result<> GroupBitmaps::set(uint32_t group, uint32_t first, uint32_t count, bool used,
                           bool count_free) {
    std::shared_ptr<Bits> bits;
    if (!count_free && !cache_.contains(group)) {
        // libext2fs has already counted this change: the bitmap on disk agrees with the count
        // before it.
        const uint32_t now = ext2fs_bg_free_blocks_count(fs_, group);
        const uint32_t was = used ? now + count : now - count;
        ext2fs_bg_free_blocks_count_set(fs_, group, was);
        auto loaded = load(group);
        ext2fs_bg_free_blocks_count_set(fs_, group, now);
        bits = A4_TRY(std::move(loaded));
    } else {
        bits = A4_TRY(load(group));
    }
    if (first + count > bits_in(group) || !all_bits(*bits, first, count, !used)) {
        return fail(EUCLEAN, "group {}: bits {}+{} are already {}: the volume needs e2fsck", group,
                    first, count, used ? "in use" : "free");
    }
    if (!before_.contains(group)) before_[group] = std::make_shared<Bits>(*bits);
    descriptors_.touch(group);
    fill_bits(*bits, first, count, used);
    dirty_.insert(group);
    if (kind_ == Kind::Block) {
        ext2fs_bg_flags_clear(fs_, group, EXT2_BG_BLOCK_UNINIT);
        if (count_free) {
            const uint32_t free = ext2fs_bg_free_blocks_count(fs_, group);
            ext2fs_bg_free_blocks_count_set(fs_, group, used ? free - count : free + count);
            const blk64_t blocks = blk64_t{count} << fs_->cluster_ratio_bits;
            ext2fs_free_blocks_count_add(fs_->super, used ? -blocks : blocks);
        }
    }
    return {};
}

Result<> GroupBitmaps::initialise(uint32_t group) {
    if (!uninitialised(group)) return {};
    const auto bits = A4_TRY(load(group));
    if (!before_.contains(group)) before_[group] = std::make_shared<Bits>(*bits);
    descriptors_.touch(group);
    dirty_.insert(group);
    ext2fs_bg_flags_clear(fs_, group,
                          kind_ == Kind::Block ? EXT2_BG_BLOCK_UNINIT : EXT2_BG_INODE_UNINIT);
    return {};
}

Result<GroupBitmaps::Bits> GroupBitmaps::read_unproved(uint32_t group) {
    if (descriptors_.is_frozen(group)) return fail(Error(damaged_.at(group)));
    Bits bits = A4_TRY(read(group));
    const Bits at_any_rate = computed(group);
    for (size_t i = 0; i < bits.size(); ++i) bits[i] |= at_any_rate[i];
    mark_fixed(group, bits);
    return bits;
}

Result<> GroupBitmaps::replace(uint32_t group, Bits bits) {
    auto raw = std::make_shared<Bits>(A4_TRY(read(group)));
    descriptors_.touch(group);
    const uint32_t count = bits_in(group);
    const uint32_t free = count - count_used(bits, count);
    ext2fs_free_blocks_count_add(fs_->super,
                                 (blk64_t{free} - blk64_t{ext2fs_bg_free_blocks_count(fs_, group)})
                                     << fs_->cluster_ratio_bits);
    ext2fs_bg_free_blocks_count_set(fs_, group, free);
    ext2fs_bg_flags_clear(fs_, group, EXT2_BG_BLOCK_UNINIT);
    before_[group] = std::move(raw);
    dirty_.insert(group);
    if (const auto kept = cache_.find(group); kept != cache_.end()) by_age_.erase(kept->second.age);
    by_age_.push_back(group);
    cache_[group] = Entry{std::make_shared<Bits>(std::move(bits)), std::prev(by_age_.end())};
    replaced_.insert(damaged_.extract(group));
    return {};
}

void GroupBitmaps::begin() {
    newly_mapped_.clear();
    before_.clear();
}

void GroupBitmaps::abort() {
    for (auto& [group, bits] : before_) {
        cache_[group].bits = bits;
        dirty_.erase(group);
    }
    newly_mapped_.clear();
    before_.clear();
    for (const auto& [group, why] : replaced_) {
        by_age_.erase(cache_.at(group).age);
        cache_.erase(group);
    }
    damaged_.merge(replaced_);
    replaced_.clear();
}

Result<std::map<uint64_t, std::shared_ptr<const GroupBitmaps::Bits>>> GroupBitmaps::prepare() {
    std::map<uint64_t, std::shared_ptr<const Bits>> blocks;
    for (const uint32_t group : dirty_) {
        const auto& bits = cache_[group].bits;
        auto* raw = reinterpret_cast<char*>(bits->data());
        const errcode_t code =
            kind_ == Kind::Block
                ? ext2fs_block_bitmap_csum_set(
                      fs_, group, raw, static_cast<int>(EXT2_CLUSTERS_PER_GROUP(fs_->super) / 8))
                : ext2fs_inode_bitmap_csum_set(
                      fs_, group, raw, static_cast<int>(EXT2_INODES_PER_GROUP(fs_->super) / 8));
        if (code != 0) return fail(EIO, "group {}: bitmap checksum", group);
        blocks[location(group)] = bits;
    }
    return blocks;
}

std::map<uint64_t, std::shared_ptr<const GroupBitmaps::Bits>> GroupBitmaps::before() const {
    std::map<uint64_t, std::shared_ptr<const Bits>> blocks;
    for (const auto& [group, bits] : before_) blocks[location(group)] = bits;
    return blocks;
}

bool GroupBitmaps::changed_to(uint64_t block, bool used) const {
    const uint32_t group = ext2fs_group_of_blk2(fs_, block);
    const auto before = before_.find(group);
    if (before == before_.end()) return false;
    const uint32_t bit = bit_of(block);
    return test_bit(*before->second, bit) != used && test_bit(*cache_.at(group).bits, bit) == used;
}

void GroupBitmaps::committed() {
    newly_mapped_.clear();
    replaced_.clear();
    dirty_.clear();
    before_.clear();
    trim();
}

Error damaged_groups_error(const std::string& what, const std::map<uint32_t, Error>& groups) {
    constexpr size_t kNamed = 8;
    std::string names;
    size_t n = 0;
    for (const auto& [group, why] : groups) {
        if (n++ == kNamed) break;
        names += fmt::format("{}{}", names.empty() ? "" : ", ", group);
    }
    if (groups.size() > kNamed) names += fmt::format(" and {} more", groups.size() - kNamed);
    return Error{EUCLEAN,
                 fmt::format("{} outside the damaged group{} {} ({})", what,
                             groups.size() == 1 ? "" : "s", names, groups.begin()->second.message)};
}

}  // namespace atomic4
