#include "ext4/inode_prealloc.h"

#include <algorithm>
#include <bit>

namespace atomic4 {

int InodePreallocations::predict_order(Bytes file_size, Lblk lblk, int order, Bytes block_size) {
    constexpr uint64_t kKiB = 1024;
    constexpr uint64_t kMiB = kKiB * kKiB;
    const uint64_t request = block_size.value() << order;
    // The size the file is about to have.
    const uint64_t size = std::max(file_size.value(), lblk.value() * block_size.value() + request);
    uint64_t window = 8 * kMiB;
    if (size <= 16 * kKiB)
        window = 16 * kKiB;
    else if (size <= kMiB)
        window = std::bit_ceil(size);
    else if (size <= 4 * kMiB)
        window = 2 * kMiB;
    else if (size <= 8 * kMiB)
        window = 4 * kMiB;
    window = std::max(window, request);
    return std::countr_zero(window / block_size.value());
}

Result<PblkRun> InodePreallocations::take(std::vector<Window>& windows, size_t index, Lblk lblk,
                                          Blocks length) {
    const Window window = windows[index];
    const Blocks before = lblk - window.lblk;
    const PblkRun part{window.run.start + before, length};
    A4_CHECK(allocator_.take_reserved(part));
    windows.erase(windows.begin() + static_cast<std::ptrdiff_t>(index));
    if (before.value() > 0) windows.push_back({window.lblk, {window.run.start, before}});
    const Blocks after = window.run.length - before - length;
    if (after.value() > 0) windows.push_back({lblk + length, {part.start + length, after}});
    return part;
}

Result<PblkRun> InodePreallocations::allocate(uint32_t inode, Lblk lblk, int order, Bytes file_size,
                                              Pblk goal) {
    const Blocks length(uint64_t{1} << order);
    auto& windows = windows_[inode];
    for (size_t i = 0; i < windows.size(); ++i) {
        const Window& window = windows[i];
        if (lblk < window.lblk || lblk + length > window.lblk + window.run.length) continue;
        const Pblk block = window.run.start + (lblk - window.lblk);
        if (is_aligned(block.value(), length.value())) return take(windows, i, lblk, length);
    }
    const int wanted =
        std::min(predict_order(file_size, lblk, order, block_size_), allocator_.max_order());
    if (wanted > order) {
        if (const auto run = allocator_.reserve(wanted, goal)) {
            windows.push_back({Lblk(round_down(lblk.value(), run->length.value())), *run});
            return take(windows, windows.size() - 1, lblk, length);
        } else if (!nothing_to_be_had(run.error())) {
            return fail(run.error());
        }
    }
    auto run = allocator_.allocate(order, goal);
    if (run || !nothing_to_be_had(run.error())) return run;
    release_all();
    return allocator_.allocate(order, goal);
}

void InodePreallocations::release(uint32_t inode) {
    const auto found = windows_.find(inode);
    if (found == windows_.end()) return;
    for (const Window& window : found->second) allocator_.release_reserved(window.run);
    windows_.erase(found);
}

void InodePreallocations::release_all() {
    windows_.clear();
    allocator_.release_all_reserved();
}

}  // namespace atomic4
