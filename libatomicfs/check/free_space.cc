#include "check/free_space.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>

namespace atomic4 {

namespace {

constexpr Bytes kLargestUnit{4 << 20};

// Collects pieces of free space, in order.
class Survey {
  public:
    explicit Survey(Bytes block_size) {
        space_.block_size = block_size;
        for (Bytes unit = block_size; unit <= kLargestUnit; unit = unit * 2)
            space_.units.push_back({unit, 0});
    }

    // The next free blocks; they may go on where the last ones end.
    void add(Pblk start, Blocks length) {
        if (piece_.length.value() != 0 && piece_.start + piece_.length == start) {
            piece_.length += length;
            return;
        }
        close();
        piece_ = {start, length};
    }

    FreeSpace finish() {
        close();
        return std::move(space_);
    }

  private:
    static uint64_t aligned_runs(PblkRun piece, uint64_t unit) {
        const uint64_t first = round_up(piece.start.value(), unit);
        const uint64_t end = round_down((piece.start + piece.length).value(), unit);
        return end > first ? (end - first) / unit : 0;
    }

    void close() {
        if (piece_.length.value() == 0) return;
        space_.free += piece_.length;
        for (size_t order = 0; order < space_.units.size(); ++order)
            space_.units[order].runs += aligned_runs(piece_, uint64_t{1} << order);
        const auto size = static_cast<size_t>(std::bit_width(piece_.length.value()) - 1);
        while (space_.pieces.size() <= size)
            space_.pieces.push_back(
                {space_.block_size * (uint64_t{1} << space_.pieces.size()), 0, Blocks(0)});
        ++space_.pieces[size].count;
        space_.pieces[size].blocks += piece_.length;
        if (piece_.length > space_.longest.length) space_.longest = piece_;
        // The largest power of two is the piece's own or half of it at most twice.
        for (uint64_t run = uint64_t{1} << size; run > space_.largest_aligned.length.value();
             run /= 2) {
            if (aligned_runs(piece_, run) == 0) continue;
            space_.largest_aligned = {Pblk(round_up(piece_.start.value(), run)), Blocks(run)};
            break;
        }
        piece_ = {};
    }

    FreeSpace space_;
    PblkRun piece_{};
};

// The 64 bits that bit is one of; a bitmap is a block long.
uint64_t word_of(const GroupBitmaps::Bits& bits, uint32_t bit) {
    uint64_t word = 0;
    std::memcpy(&word, bits.data() + size_t{bit / 64} * 8, sizeof word);
    return word;
}

// From bit on, the first one below count that isn't used (or, used false, isn't free), else count.
// A word at a time.
uint32_t skip(const GroupBitmaps::Bits& bits, uint32_t bit, uint32_t count, bool used) {
    while (bit < count) {
        const uint64_t word = used ? word_of(bits, bit) : ~word_of(bits, bit);
        const uint32_t left = 64 - bit % 64;
        const auto same =
            std::min(static_cast<uint32_t>(std::countr_one(word >> (bit % 64))), left);
        bit += same;
        if (same < left) break;
    }
    return std::min(bit, count);
}

// Calls found(first, count) for each run of free bits among the first count, in order.
template <class Found>
void free_runs(const GroupBitmaps::Bits& bits, uint32_t count, Found found) {
    for (uint32_t end = 0; end < count;) {
        const uint32_t first = skip(bits, end, count, true);
        end = skip(bits, first, count, false);
        if (end > first) found(first, end - first);
    }
}

}  // namespace

uint64_t FreeSpace::piece_count() const {
    return std::accumulate(pieces.begin(), pieces.end(), uint64_t{0},
                           [](uint64_t sum, const Piece& piece) { return sum + piece.count; });
}

double FreeSpace::share_percent(Blocks part) const {
    return free.value() == 0
               ? 0
               : 100.0 * static_cast<double>(part.value()) / static_cast<double>(free.value());
}

double FreeSpace::usable_percent(const Unit& unit) const {
    return share_percent(Blocks(unit.runs * (unit.unit.value() / block_size.value())));
}

Result<FreeSpace> measure_free_space(Volume& volume) {
    ext2_filsys fs = volume.fs();
    GroupBitmaps& bitmaps = volume.block_bitmaps();
    Survey survey(volume.block_size());
    std::map<uint32_t, Error> damaged;
    const uint64_t end = ext2fs_blocks_count(fs->super);
    // A bit stands for a cluster, which is a block but on bigalloc volumes.
    const auto ratio = static_cast<uint64_t>(EXT2FS_CLUSTER_RATIO(fs));
    for (dgrp_t group = 0; group < fs->group_desc_count; ++group) {
        // Opening for inspection lets these pass, and what they say of the bitmap is void.
        if (ext2fs_has_group_desc_csum(fs) && ext2fs_group_desc_csum_verify(fs, group) == 0) {
            damaged.emplace(group, Error{EUCLEAN, fmt::format("group {}: the descriptor has a bad "
                                                              "checksum: the volume needs e2fsck",
                                                              group)});
            continue;
        }
        const auto got = bitmaps.get(group);
        if (!got && bitmaps.is_damaged(group)) {
            damaged.emplace(group, got.error());
            continue;
        }
        const auto bits = A4_TRY(got);
        const uint64_t first = ext2fs_group_first_block2(fs, group);
        free_runs(*bits, bitmaps.bits_in(group), [&](uint32_t bit, uint32_t count) {
            const uint64_t start = first + bit * ratio;
            const uint64_t stop = std::min(start + count * ratio, end);
            if (stop > start) survey.add(Pblk(start), Blocks(stop - start));
        });
    }
    FreeSpace space = survey.finish();
    space.blocks = Blocks(end);
    space.damaged = std::move(damaged);
    return space;
}

}  // namespace atomic4
