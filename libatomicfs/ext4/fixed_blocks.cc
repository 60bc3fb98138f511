#include "ext4/fixed_blocks.h"

namespace atomic4 {

void FixedBlocks::build() {
    Ranges all;
    const auto add = [&](uint64_t first, uint64_t count) {
        if (count > 0) all.emplace_back(first, first + count);
    };
    for (dgrp_t group = 0; group < fs_->group_desc_count; ++group)
        for_each_fixed_run(fs_, group, add);
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
