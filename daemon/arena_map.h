// A client's shared memory, mapped here: where it puts payloads and gets what it reads.
//
// Only a memfd that can't shrink (F_SEAL_SHRINK) is taken, in ordinary memory: touching it never
// faults. The client can change the bytes at any time, which is why nothing is decided from them.
// Threads: any.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "base/result.h"
#include "base/unique_fd.h"
#include "base/units.h"

namespace atomic4 {

class ArenaMap {
  public:
    // EINVAL: not such a memfd, or smaller than size; ENOMEM and others of mmap(2).
    static Result<std::shared_ptr<ArenaMap>> map(const UniqueFd& memfd, Bytes size);
    ~ArenaMap();
    ArenaMap(const ArenaMap&) = delete;
    ArenaMap& operator=(const ArenaMap&) = delete;

    // The caller has checked that the range lies inside.
    std::span<std::byte> at(uint64_t offset, Bytes length) const {
        return {memory_ + offset, static_cast<size_t>(length.value())};
    }

  private:
    ArenaMap(std::byte* memory, Bytes size) : memory_(memory), size_(size) {}
    std::byte* memory_;
    Bytes size_;
};

}  // namespace atomic4
