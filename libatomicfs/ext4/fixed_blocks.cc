#include "ext4/fixed_blocks.h"

#include <array>

namespace atomic4 {

void FixedBlocks::build() {
    // With flex_bg those of many groups lie side by side, kind by kind: what continues one of the
    // last few becomes one with it, and little is left to sort.
    std::array<Ranges, 6> kinds;
    size_t next = 0;
    for (dgrp_t group = 0; group < fs_->group_desc_count; ++group) {
        for_each_fixed_run(fs_, group, [&](uint64_t first, uint64_t count) {
            if (count == 0) return;
            for (Ranges& ranges : kinds) {
                if (ranges.empty() || ranges.back().second != first) continue;
                ranges.back().second += count;
                return;
            }
            kinds[next++ % kinds.size()].emplace_back(first, first + count);
        });
    }
    Ranges all;
    for (const Ranges& ranges : kinds) all.insert(all.end(), ranges.begin(), ranges.end());
    std::ranges::sort(all);
    for (const auto& range : all) {
        if (!ranges_.empty() && range.first <= ranges_.back().second)
            ranges_.back().second = std::max(ranges_.back().second, range.second);
        else
            ranges_.push_back(range);
    }
}

FixedBlocks::Ranges::const_iterator FixedBlocks::reaching(uint64_t block) {
    if (ranges_.empty()) build();
    return std::ranges::upper_bound(ranges_, block, {}, &Ranges::value_type::second);
}

bool FixedBlocks::overlap(uint64_t first, uint64_t count) {
    const auto next = reaching(first);
    return next != ranges_.end() && next->first < first + count;
}

}  // namespace atomic4
