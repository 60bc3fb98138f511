#include "ext4/fixed_blocks.h"

#include <algorithm>

namespace atomic4 {

FixedBlocks::FixedBlocks(ext2_filsys fs) {
    std::vector<std::pair<uint64_t, uint64_t>> all;
    const auto add = [&](uint64_t first, uint64_t count) {
        if (count > 0) all.emplace_back(first, first + count);
    };
    for (dgrp_t group = 0; group < fs->group_desc_count; ++group)
        for_each_fixed_run(fs, group, add);
    std::ranges::sort(all);
    for (const auto& range : all) {
        if (!ranges_.empty() && range.first <= ranges_.back().second)
            ranges_.back().second = std::max(ranges_.back().second, range.second);
        else
            ranges_.push_back(range);
    }
}

bool FixedBlocks::overlap(uint64_t first, uint64_t count) const {
    const auto next =
        std::ranges::upper_bound(ranges_, first, {}, &std::pair<uint64_t, uint64_t>::second);
    return next != ranges_.end() && next->first < first + count;
}

}  // namespace atomic4
