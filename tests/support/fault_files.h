// The volume that the fault tests start from, and what its state is judged by.
#pragma once

#include <string>
#include <vector>

#include "support/crash_scenario.h"

namespace atomic4::test {

// The geometry of the volume: several groups with a superblock copy each, in 4 MiB.
inline constexpr uint64_t kFaultBlock = 1024;
inline constexpr uint64_t kFaultUnit = 16384;
inline constexpr uint64_t kFaultSize = 4 << 20;

// A volume with a few files whose bytes are known. Atomic ones are there only if it is enabled.
struct FaultFiles {
    Image image;
    std::vector<FileModel> models;
};
enum : size_t { kAtomic, kSparse, kMixed, kTree };
FaultFiles make_fault_files(bool enabled);

// Over mapped blocks, over holes and unwritten ones, and one that makes a file longer.
void log_three_writes(Scenario& scenario, std::mt19937_64& random);

// Every file whole, read through the library. Empty, or what is wrong.
std::string files_hold(Image& image, const std::vector<FileModel>& models);
// No trace of atomic4. Empty, or what there is.
std::string is_plain(Image& image);
// The gate in every copy, and it opens. Empty, or what is wrong.
std::string is_enabled(Image& image);

}  // namespace atomic4::test
