#include "ext4/aligned_allocator.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace atomic4 {

namespace {

using Words = std::vector<uint64_t>;

// Bits at multiples of 2^(order+1) inside a word, for merging buddies of 2^order.
constexpr uint64_t kPairMask[] = {0x5555555555555555, 0x1111111111111111, 0x0101010101010101,
                                  0x0001000100010001, 0x0000000100000001, 0x0000000000000001};

// One buddy step: bits of free buddies of 2^order, at their first block, become those of
// 2^(order+1).
void merge_buddies(Words& words, int order) {
    if (order < 6) {
        const int shift = 1 << order;
        for (uint64_t& word : words) word = word & (word >> shift) & kPairMask[order];
        return;
    }
    const size_t step = size_t{1} << (order - 6);  // words a buddy
    for (size_t i = 0; i + step < words.size(); i += 2 * step) {
        words[i] &= words[i + step];
        words[i + step] = 0;
    }
}

bool any(const Words& words) {
    return std::any_of(words.begin(), words.end(), [](uint64_t word) { return word != 0; });
}

int largest_order(Words words, int max_order) {
    if (!any(words)) return ZoneIndex::kNone;
    int order = 0;
    while (order < max_order) {
        merge_buddies(words, order);
        if (!any(words)) break;
        ++order;
    }
    return order;
}

// The first set bit at or after from, else the first at all.
std::optional<uint64_t> first_bit(const Words& words, uint64_t from) {
    for (size_t i = from / 64; i < words.size(); ++i) {
        uint64_t word = words[i];
        if (i == from / 64) word &= ~uint64_t{0} << (from % 64);
        if (word != 0) return i * 64 + static_cast<uint64_t>(std::countr_zero(word));
    }
    for (size_t i = 0; i < words.size(); ++i) {
        if (words[i] != 0) return i * 64 + static_cast<uint64_t>(std::countr_zero(words[i]));
    }
    return std::nullopt;
}

void clear_bits(Words& words, uint64_t first, uint64_t count) {
    for (; count > 0; --count, ++first) words[first / 64] &= ~(uint64_t{1} << (first % 64));
}

Error no_space(int order, uint64_t blocksize) {
    return Error{ENOSPC, fmt::format("no aligned free run of {} bytes ({} blocks)",
                                     blocksize << order, uint64_t{1} << order)};
}

uint64_t free_blocks_of(ext2_filsys fs, dgrp_t group) {
    return uint64_t{ext2fs_bg_free_blocks_count(fs, group)} << fs->cluster_ratio_bits;
}

uint32_t zones_of(ext2_filsys fs, int max_order) {
    const uint64_t blocks = ext2fs_blocks_count(fs->super);
    return static_cast<uint32_t>(((blocks - 1) >> max_order) + 1);
}

}  // namespace

AlignedAllocator::AlignedAllocator(ext2_filsys fs, GroupBitmaps& bitmaps, bool may_use_reserved)
    : fs_(fs),
      bitmaps_(bitmaps),
      may_use_reserved_(may_use_reserved),
      max_order_(std::min(std::countr_zero(fs->blocksize * 8u), ZoneIndex::kOrders - 1)),
      index_(zones_of(fs, max_order_)) {
    for (uint32_t zone = 0; zone < zones_of(fs, max_order_); ++zone) forget_zone(zone);
}

// An upper bound of the free blocks in a zone: what its groups could have there.
uint64_t AlignedAllocator::free_bound(uint32_t zone, Damaged damaged) const {
    const uint64_t zone_first = uint64_t{zone} << max_order_;
    const uint64_t first = std::max<uint64_t>(zone_first, fs_->super->s_first_data_block);
    const uint64_t end =
        std::min<uint64_t>(zone_first + zone_size().value(), ext2fs_blocks_count(fs_->super));
    uint64_t bound = 0;
    for (uint64_t block = first; block < end;) {
        const dgrp_t group = ext2fs_group_of_blk2(fs_, block);
        const uint64_t group_end = ext2fs_group_last_block2(fs_, group) + 1;
        const uint64_t overlap = std::min(group_end, end) - block;
        if (damaged == Damaged::Counted || !bitmaps_.is_damaged(group))
            bound += std::min<uint64_t>(overlap, free_blocks_of(fs_, group));
        block += overlap;
    }
    return bound;
}

void AlignedAllocator::forget_zone(uint32_t zone) {
    const uint64_t bound = free_bound(zone, Damaged::Left);
    index_.put(zone, bound == 0
                         ? ZoneIndex::kNone
                         : std::min(max_order_, static_cast<int>(std::bit_width(bound)) - 1));
}

void AlignedAllocator::groups_changed(const std::vector<uint32_t>& groups) {
    for (const uint32_t group : groups) {
        const uint32_t last = zone_of(Pblk(ext2fs_group_last_block2(fs_, group)));
        for (uint32_t zone = zone_of(Pblk(ext2fs_group_first_block2(fs_, group))); zone <= last;
             ++zone)
            forget_zone(zone);
    }
}

Result<Words> AlignedAllocator::free_words(uint32_t zone) {
    const uint64_t zone_first = uint64_t{zone} << max_order_;
    const uint64_t zone_blocks = zone_size().value();
    const uint64_t first = std::max<uint64_t>(zone_first, fs_->super->s_first_data_block);
    const uint64_t end =
        std::min<uint64_t>(zone_first + zone_blocks, ext2fs_blocks_count(fs_->super));
    Words words(zone_blocks / 64, 0);
    for (uint64_t block = first; block < end;) {
        const dgrp_t group = ext2fs_group_of_blk2(fs_, block);
        const uint64_t group_first = ext2fs_group_first_block2(fs_, group);
        const uint64_t stop = std::min<uint64_t>(ext2fs_group_last_block2(fs_, group) + 1, end);
        const auto got = bitmaps_.get(group);
        if (!got && bitmaps_.is_damaged(group)) {
            block = stop;  // nothing is free there
            continue;
        }
        const auto bits = A4_TRY(got);
        if (cluster_order() == 0 && block == zone_first && block == group_first &&
            is_aligned(stop - block, 64)) {
            // Group and zone coincide (4 KiB blocks).
            std::memcpy(words.data(), bits->data(), (stop - block) / 8);
            for (size_t i = 0; i < (stop - block) / 64; ++i) words[i] = ~words[i];
            block = stop;
            continue;
        }
        for (; block < stop; ++block) {
            const uint64_t bit = (block - group_first) >> cluster_order();
            if (((*bits)[bit / 8] >> (bit % 8) & 1) == 0) {
                const uint64_t at = block - zone_first;
                words[at / 64] |= uint64_t{1} << (at % 64);
            }
        }
    }
    // Reserved runs are powers of two aligned to their length, or parts of one: never across zones.
    for (auto it = reserved_.lower_bound(Pblk(zone_first));
         it != reserved_.end() && it->first.value() < zone_first + zone_blocks; ++it)
        clear_bits(words, it->first.value() - zone_first, it->second.value());
    return words;
}

Result<std::optional<Pblk>> AlignedAllocator::find_in_zone(uint32_t zone, int order, Pblk goal) {
    Words words = A4_TRY(free_words(zone));
    index_.put(zone, largest_order(words, max_order_));
    for (int step = 0; step < order; ++step) merge_buddies(words, step);
    const uint64_t zone_first = uint64_t{zone} << max_order_;
    const uint64_t from = zone_of(goal) == zone ? goal.value() - zone_first : 0;
    const auto bit = first_bit(words, from);
    if (!bit) return std::optional<Pblk>{};
    return std::optional<Pblk>(Pblk(zone_first + *bit));
}

Result<Pblk> AlignedAllocator::find(int order, Pblk goal, bool tight) {
    if (order > max_order_) return fail(no_space(order, fs_->blocksize));
    if (goal.value() >= ext2fs_blocks_count(fs_->super)) goal = Pblk(0);
    for (;;) {
        const auto zone =
            tight ? index_.tightest(order, zone_of(goal)) : index_.nearest(order, zone_of(goal));
        if (!zone) return fail(no_run(order));
        // Either this finds one, or the zone moves to its true, lower order: the loop ends.
        if (const auto block = A4_TRY(find_in_zone(*zone, order, goal))) return *block;
    }
}

// Every zone that could serve has been read. ENOSPC is proved unless damaged groups could have.
Error AlignedAllocator::no_run(int order) const {
    Error error = no_space(order, fs_->blocksize);
    std::map<uint32_t, Error> could;
    for (const auto& [group, why] : bitmaps_.damaged()) {
        if (free_blocks_of(fs_, group) == 0) continue;
        const uint32_t last = zone_of(Pblk(ext2fs_group_last_block2(fs_, group)));
        for (uint32_t zone = zone_of(Pblk(ext2fs_group_first_block2(fs_, group))); zone <= last;
             ++zone) {
            if (free_bound(zone, Damaged::Counted) >= uint64_t{1} << order) could[group] = why;
        }
    }
    return could.empty() ? error : damaged_groups_error(error.message, could);
}

Result<> AlignedAllocator::mark(PblkRun run, bool used) {
    const uint64_t first = EXT2FS_B2C(fs_, run.start.value());
    const uint64_t end = EXT2FS_NUM_B2C(fs_, (run.start + run.length).value());
    for (uint64_t cluster = first; cluster < end;) {
        const uint64_t block = std::max<uint64_t>(EXT2FS_C2B(fs_, cluster), run.start.value());
        const dgrp_t group = ext2fs_group_of_blk2(fs_, block);
        const uint32_t bit = bitmaps_.bit_of(block);
        const uint64_t n = std::min<uint64_t>(end - cluster, bitmaps_.bits_in(group) - bit);
        auto done = bitmaps_.set(group, bit, static_cast<uint32_t>(n), used);
        if (!done && (used || !bitmaps_.is_damaged(group))) return done;
        cluster += n;
    }
    // The orders kept stay upper bounds after a take; a free may raise them.
    if (!used) {
        const uint32_t last = zone_of(run.start + run.length - Blocks(1));
        for (uint32_t zone = zone_of(run.start); zone <= last; ++zone) forget_zone(zone);
    }
    return {};
}

uint64_t AlignedAllocator::available() const {
    const uint64_t free = ext2fs_free_blocks_count(fs_->super);
    const uint64_t reserved = may_use_reserved_ ? 0 : ext2fs_r_blocks_count(fs_->super);
    return free > reserved ? free - reserved : 0;
}

Result<> AlignedAllocator::check_share(uint64_t blocks) const {
    if (blocks <= available()) return {};
    const uint64_t free = ext2fs_free_blocks_count(fs_->super);
    if (blocks <= free) {
        return fail(ENOSPC, "{} blocks wanted, {} free, of which {} are reserved for root", blocks,
                    free, free - available());
    }
    return fail(ENOSPC, "{} blocks wanted, {} free", blocks, free);
}

Result<PblkRun> AlignedAllocator::allocate(int order, Pblk goal) {
    order = at_least_a_cluster(order);
    A4_CHECK(check_share(uint64_t{1} << order));
    const PblkRun run{A4_TRY(find(order, goal, false)), Blocks(uint64_t{1} << order)};
    A4_CHECK(mark(run, true));
    return run;
}

Result<Pblk> AlignedAllocator::choose_block(Pblk goal) {
    A4_CHECK(check_share(uint64_t{1} << cluster_order()));
    return find(cluster_order(), goal, true);
}

Result<bool> AlignedAllocator::is_free(Pblk block) {
    if (block.value() < fs_->super->s_first_data_block ||
        block.value() >= ext2fs_blocks_count(fs_->super))
        return false;
    const dgrp_t group = ext2fs_group_of_blk2(fs_, block.value());
    const uint32_t bit = bitmaps_.bit_of(block.value());
    const auto got = bitmaps_.get(group);
    if (!got && bitmaps_.is_damaged(group)) return false;
    const auto bits = A4_TRY(got);
    if (((*bits)[bit / 8] >> (bit % 8) & 1) != 0) return false;
    const auto above = reserved_.upper_bound(block);
    if (above == reserved_.begin()) return true;
    const auto& [start, length] = *std::prev(above);
    return block >= start + length;
}

Result<std::vector<PblkRun>> AlignedAllocator::allocate_units(int order, uint64_t count,
                                                              Pblk goal) {
    std::vector<PblkRun> runs;
    if (count == 0) return runs;
    order = at_least_a_cluster(order);
    const uint64_t unit = uint64_t{1} << order;
    if (count > available() / unit)
        A4_CHECK(check_share(count > ~uint64_t{0} / unit ? ~uint64_t{0} : count * unit));
    const auto give_back = [&](Error error) -> Result<std::vector<PblkRun>> {
        for (const PblkRun& run : runs) A4_CHECK(mark(run, false));
        return fail(std::move(error));
    };
    while (count > 0) {
        const auto first = find(order, goal, false);
        if (!first) return give_back(first.error());
        // Whatever follows in this zone, unit by unit, until something is in the way.
        const uint32_t zone = zone_of(*first);
        Words words = A4_TRY(free_words(zone));
        for (int step = 0; step < order; ++step) merge_buddies(words, step);
        const uint64_t zone_first = uint64_t{zone} << max_order_;
        uint64_t at = first->value() - zone_first;
        uint64_t units = 0;
        while (units < count && at < zone_size().value() &&
               (words[at / 64] >> (at % 64) & 1) != 0) {
            at += unit;
            ++units;
        }
        const PblkRun run{*first, Blocks(units * unit)};
        if (const auto done = mark(run, true); !done) return give_back(done.error());
        if (!runs.empty() && runs.back().start + runs.back().length == run.start)
            runs.back().length += run.length;
        else
            runs.push_back(run);
        count -= units;
        goal = run.start + run.length;
    }
    return runs;
}

Result<> AlignedAllocator::free(PblkRun run) {
    return mark(run, false);
}

Result<PblkRun> AlignedAllocator::reserve(int order, Pblk goal) {
    order = at_least_a_cluster(order);
    const PblkRun run{A4_TRY(find(order, goal, false)), Blocks(uint64_t{1} << order)};
    reserved_[run.start] = run.length;
    return run;
}

void AlignedAllocator::release_reserved(PblkRun run) {
    const auto above = reserved_.upper_bound(run.start);
    if (above == reserved_.begin()) return;
    const auto it = std::prev(above);
    const Pblk start = it->first;
    const Pblk end = start + it->second;
    if (end < run.start + run.length) return;
    reserved_.erase(it);
    if (start < run.start) reserved_[start] = run.start - start;
    if (run.start + run.length < end)
        reserved_[run.start + run.length] = end - (run.start + run.length);
    forget_zone(zone_of(run.start));
}

void AlignedAllocator::release_all_reserved() {
    const auto all = std::exchange(reserved_, {});
    for (const auto& [start, length] : all) forget_zone(zone_of(start));
}

Result<> AlignedAllocator::take_reserved(PblkRun part) {
    A4_CHECK(check_share(part.length.value()));
    release_reserved(part);
    return mark(part, true);
}

}  // namespace atomic4
