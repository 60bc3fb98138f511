// BouncePool: aligned memory for direct I/O from memory that isn't. Buffers are used again; a few
// MiB are kept.
//
// Threads: one.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

#include "base/result.h"
#include "base/units.h"

namespace atomic4 {

class BouncePool {
  public:
    struct Free {
        void operator()(std::byte* memory) const { std::free(memory); }
    };
    struct Buffer {
        std::unique_ptr<std::byte, Free> memory;
        size_t size = 0;
    };

    explicit BouncePool(Bytes alignment) : alignment_(std::max<size_t>(alignment.value(), kPage)) {}

    // At least `size` bytes.
    Result<Buffer> get(size_t size) {
        for (size_t i = free_.size(); i-- > 0;) {
            if (free_[i].size < size) continue;
            std::swap(free_[i], free_.back());
            Buffer found = std::move(free_.back());
            free_.pop_back();
            kept_ -= found.size;
            return found;
        }
        const size_t rounded = round_up(size, alignment_);
        Buffer made{{static_cast<std::byte*>(std::aligned_alloc(alignment_, rounded)), {}},
                    rounded};
        if (!made.memory) return fail(ENOMEM, "no memory for a copy of {} bytes", size);
        return made;
    }
    void put(Buffer buffer) {
        if (buffer.size == 0 || kept_ + buffer.size > kKeep) return;
        kept_ += buffer.size;
        free_.push_back(std::move(buffer));
    }

  private:
    static constexpr size_t kPage = 4096;
    static constexpr size_t kKeep = size_t{8} << 20;

    size_t alignment_;
    size_t kept_ = 0;
    std::vector<Buffer> free_;
};

}  // namespace atomic4
