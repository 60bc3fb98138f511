// The ground that all peers are measured on: one image, wholly written, one loop device with direct
// I/O, one mount point; and the files that they write.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "bench/bench.h"
#include "support/loop.h"

namespace atomic4::bench {

class Site {
  public:
    // Throws if the loop device can't be made.
    Site(const std::string& directory, uint64_t device_size, uint64_t file_size);

    const std::string& device() const { return loop_.path(); }
    const std::string& mount_point() const { return mount_point_; }
    std::string path(const std::string& name) const { return mount_point_ + "/" + name; }
    uint64_t file_size() const { return file_size_; }
    uint64_t log_size() const { return std::clamp(file_size_ / 8, 8 * kMiB, 64 * kMiB); }

  private:
    std::string mount_point_;
    uint64_t file_size_;
    test::LoopDevice loop_;
};

// Why this file system can't be made or mounted here: its mkfs is missing, or the kernel's part.
std::optional<std::string> why_no_filesystem(const std::string& type, const std::string& mkfs);

// mke2fs on the site's device, with everything done at once that ext4 would otherwise do in the
// background, while others are measured.
void make_ext4(Site& site);

UniqueFd open_file(const std::string& path, int flags);  // throws
// Writes every block of [0, size), with fsync. Made if it isn't there.
void fill(const std::string& path, uint64_t size);

// Page-aligned memory, zeroed.
class Buffer {
  public:
    explicit Buffer(size_t size);
    std::byte* data() const { return memory_.get(); }
    std::span<std::byte> bytes() const { return {memory_.get(), size_}; }

  private:
    struct Free {
        void operator()(std::byte* memory) const;
    };
    std::unique_ptr<std::byte, Free> memory_;
    size_t size_;
};

// Says in each sector of a unit where it belongs, and which write it is from.
void stamp(std::span<std::byte> unit, uint64_t offset, uint64_t serial);
// Throws unless every sector of a sample of units holds zeros or what stamp() wrote for that place;
// and, Whole, each unit is from one write, though writers raced.
enum class Expect { RightPlace, Whole };
void verify(const std::string& path, uint64_t size, uint64_t unit, Expect expect);

}  // namespace atomic4::bench
