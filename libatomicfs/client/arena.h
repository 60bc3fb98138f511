// The client's side of the shared memory arena: a memfd that can't shrink, mapped here and by the
// daemon, and who has which part of it.
//
// First fit over page-sized granules: the parts that come back first are used again first, and
// memory that was never needed is never touched. Parts start on page boundaries, so that the daemon
// may read and write them without a copy.
//
// Errors: those of memfd_create, ftruncate, fcntl and mmap. Threads: one.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>

#include "base/result.h"
#include "base/unique_fd.h"
#include "base/units.h"

namespace atomic4 {

class ClientArena {
  public:
    // size is rounded up to whole pages.
    static Result<std::unique_ptr<ClientArena>> create(Bytes size);
    ~ClientArena();
    ClientArena(const ClientArena&) = delete;
    ClientArena& operator=(const ClientArena&) = delete;

    int fd() const { return fd_.get(); }
    Bytes size() const { return Bytes(memory_.size()); }

    // The offset of a free part; nothing if there is none of this length.
    std::optional<uint64_t> allocate(uint64_t length);
    // Gives back what allocate gave; any other offset is ignored.
    void release(uint64_t offset);

    // offset and length are inside.
    std::span<std::byte> at(uint64_t offset, uint64_t length) const {
        return memory_.subspan(offset, length);
    }
    // Where memory lies in the arena; nothing if it isn't wholly inside.
    std::optional<uint64_t> offset_of(std::span<const std::byte> memory) const;

  private:
    ClientArena(UniqueFd fd, std::span<std::byte> memory);

    UniqueFd fd_;
    std::span<std::byte> memory_;
    std::map<uint64_t, uint64_t> free_;  // offset to length; neighbours are merged
    std::map<uint64_t, uint64_t> used_;
};

}  // namespace atomic4
