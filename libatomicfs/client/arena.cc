#include "client/arena.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <iterator>

namespace atomic4 {
namespace {

constexpr uint64_t kGranule = 4096;

}  // namespace

Result<std::unique_ptr<ClientArena>> ClientArena::create(Bytes size) {
    const uint64_t length = round_up(size.value(), kGranule);
    UniqueFd fd(memfd_create("atomic4-arena", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (!fd) return fail(Error::from_errno(errno, "arena: memfd_create"));
    if (ftruncate(fd.get(), static_cast<off_t>(length)) != 0)
        return fail(Error::from_errno(errno, fmt::format("arena: growing it to {} bytes", length)));
    // The daemon maps it: shrunk, its accesses would be SIGBUS.
    if (fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
        return fail(Error::from_errno(errno, "arena: sealing it against shrinking"));
    void* memory = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
    if (memory == MAP_FAILED)
        return fail(Error::from_errno(errno, fmt::format("arena: mapping {} bytes", length)));
    return std::unique_ptr<ClientArena>(
        new ClientArena(std::move(fd), {static_cast<std::byte*>(memory), length}));
}

ClientArena::ClientArena(UniqueFd fd, std::span<std::byte> memory)
    : fd_(std::move(fd)), memory_(memory), free_{{0, memory.size()}} {}

ClientArena::~ClientArena() {
    munmap(memory_.data(), memory_.size());
}

std::optional<uint64_t> ClientArena::allocate(uint64_t length) {
    if (length == 0 || length > memory_.size()) return std::nullopt;
    const uint64_t rounded = round_up(length, kGranule);
    for (auto part = free_.begin(); part != free_.end(); ++part) {
        const auto [offset, free_length] = *part;
        if (free_length < rounded) continue;
        free_.erase(part);
        if (free_length > rounded) free_.emplace(offset + rounded, free_length - rounded);
        used_.emplace(offset, rounded);
        return offset;
    }
    return std::nullopt;
}

void ClientArena::release(uint64_t offset) {
    const auto used = used_.find(offset);
    if (used == used_.end()) return;
    uint64_t length = used->second;
    used_.erase(used);
    auto next = free_.lower_bound(offset);
    if (next != free_.end() && next->first == offset + length) {
        length += next->second;
        next = free_.erase(next);
    }
    if (next != free_.begin()) {
        const auto previous = std::prev(next);
        if (previous->first + previous->second == offset) {
            previous->second += length;
            return;
        }
    }
    free_.emplace(offset, length);
}

std::optional<uint64_t> ClientArena::offset_of(std::span<const std::byte> memory) const {
    const auto first = reinterpret_cast<uintptr_t>(memory.data());
    const auto base = reinterpret_cast<uintptr_t>(memory_.data());
    if (first < base || first - base > memory_.size()) return std::nullopt;
    if (memory.size() > memory_.size() - (first - base)) return std::nullopt;
    return first - base;
}

}  // namespace atomic4
