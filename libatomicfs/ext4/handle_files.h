// Files of a mounted volume by handle, opened when first needed, as many at a time as a process may
// easily have open; and whole transfers. Threads: one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <utility>

#include "ext4/mounted_volume.h"

namespace atomic4 {

using FileKey = std::pair<uint32_t, uint32_t>;  // inode, generation

class HandleFiles {
  public:
    // flags: open(2)'s. The volume outlives this.
    HandleFiles(const MountedVolume& volume, int flags) : volume_(volume), flags_(flags) {}

    // Stays ours; valid until the next call. ESTALE: gone.
    Result<int> get(FileKey key);
    bool has(FileKey key) const { return files_.contains(key); }
    // None was closed meanwhile: each descriptor still hears of every error since its first write.
    bool kept_all() const { return kept_all_; }

  private:
    static constexpr size_t kMost = 256;
    const MountedVolume& volume_;
    int flags_;
    std::map<FileKey, UniqueFd> files_;
    bool kept_all_ = true;
};

// EIO where the file ends before the range does.
Result<> read_all(int fd, std::span<std::byte> into, ByteOffset at);
Result<> write_all(int fd, std::span<const std::byte> from, ByteOffset at);

}  // namespace atomic4
