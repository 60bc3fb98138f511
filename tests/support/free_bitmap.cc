#include "support/free_bitmap.h"

#include <ext2fs/ext2fs.h>

#include <algorithm>
#include <functional>
#include <stdexcept>

namespace atomic4::test {

std::vector<bool> free_blocks_of(const std::string& image_path) {
    ext2_filsys fs = nullptr;
    if (ext2fs_open(image_path.c_str(), EXT2_FLAG_64BITS, 0, 0, unix_io_manager, &fs) != 0 ||
        ext2fs_read_block_bitmap(fs) != 0)
        throw std::runtime_error("libext2fs can't read " + image_path);
    std::vector<bool> is_free(ext2fs_blocks_count(fs->super), false);
    for (uint64_t block = fs->super->s_first_data_block; block < is_free.size(); ++block)
        is_free[block] = ext2fs_test_block_bitmap2(fs->block_map, block) == 0;
    ext2fs_free(fs);
    return is_free;
}

uint64_t aligned_runs(const std::vector<bool>& is_free, uint64_t unit) {
    uint64_t runs = 0;
    for (uint64_t first = 0; first + unit <= is_free.size(); first += unit) {
        const auto begin = is_free.begin() + static_cast<std::ptrdiff_t>(first);
        runs += std::all_of(begin, begin + static_cast<std::ptrdiff_t>(unit), std::identity{});
    }
    return runs;
}

}  // namespace atomic4::test
