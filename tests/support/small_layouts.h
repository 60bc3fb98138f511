// Volumes of the layouts that people have, as small as they get: crash tests copy them thousands of
// times.
#pragma once

#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

namespace atomic4::test {

struct SmallLayout {
    const char* name;
    uint64_t block;
    uint64_t size;
    std::vector<std::string> arguments;    // mke2fs's
    std::vector<std::string> groups = {};  // these too: several groups
    uint64_t cluster = 1;                  // blocks

    std::vector<std::string> in_groups() const {
        auto all = arguments;
        all.insert(all.end(), groups.begin(), groups.end());
        return all;
    }
};

inline void PrintTo(const SmallLayout& layout, std::ostream* out) {
    *out << layout.name;
}

inline const SmallLayout kBlocks1k{
    "block1024", 1024, 4 << 20, {"-b", "1024", "-N", "64"}, {"-g", "1024"}};
// With these blocks a journal would be the whole volume.
inline const SmallLayout kBlocks4k{
    "block4096", 4096, 4 << 20, {"-b", "4096", "-N", "64", "-O", "^has_journal"}, {"-g", "256"}};
// Two groups.
inline const SmallLayout kBigalloc{
    "bigalloc", 1024,
    8 << 20,    {"-b", "1024", "-N", "64", "-O", "bigalloc", "-C", "16384", "-g", "256"},
    {},         16};
inline const SmallLayout kInlineData{
    "inline_data", 1024, 4 << 20, {"-b", "1024", "-N", "64", "-O", "inline_data"}, {"-g", "1024"}};
inline const SmallLayout kInlineBigalloc{
    "inline_data_bigalloc",
    4096,
    4 << 20,
    {"-b", "4096", "-N", "64", "-O", "inline_data,bigalloc,^has_journal", "-C", "16384"},
    {},
    4};
// One group: two would be more than 16 MiB.
inline const SmallLayout kBlocks64k{
    "block65536", 65536, 8 << 20, {"-b", "65536", "-N", "64", "-O", "^has_journal,^resize_inode"}};

}  // namespace atomic4::test
