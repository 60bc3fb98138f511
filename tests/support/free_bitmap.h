// Which blocks of an image are free, as stock libext2fs has it, and what aligned runs that makes:
// the judge of whatever of ours allocates, or counts free space.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace atomic4::test {

// One element a block of the volume; throws if the image can't be read.
std::vector<bool> free_blocks_of(const std::string& image_path);

// Runs of unit free blocks that start at multiples of unit, one looked at after the other.
uint64_t aligned_runs(const std::vector<bool>& is_free, uint64_t unit);

}  // namespace atomic4::test
