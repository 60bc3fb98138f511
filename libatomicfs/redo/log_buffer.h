// Memory for the log's transfers: aligned to a log block, so that O_DIRECT takes it as it is, and
// grown but never shrunk.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>

#include "base/result.h"
#include "redo/log_format.h"

namespace atomic4 {

class LogBuffer {
  public:
    // At least `length` bytes; what was in it is gone if it had to grow.
    Result<std::span<std::byte>> get(Bytes length) {
        if (length.value() > size_) {
            uint64_t size = 16 * kLogBlock;
            while (size < length.value()) size *= 2;
            memory_.reset();
            size_ = 0;
            memory_.reset(static_cast<std::byte*>(std::aligned_alloc(kLogBlock, size)));
            if (!memory_) return fail(ENOMEM, "redo log: no memory for {} bytes", size);
            size_ = size;
        }
        return std::span(memory_.get(), length.value());
    }

    Bytes size() const { return Bytes(size_); }

  private:
    struct Free {
        void operator()(std::byte* memory) const { std::free(memory); }
    };
    std::unique_ptr<std::byte, Free> memory_;
    uint64_t size_ = 0;
};

}  // namespace atomic4
