#include "ext4/handle_files.h"

#include <unistd.h>

namespace atomic4 {

namespace {

// One transfer done to its end, whatever pieces the kernel makes of it.
template <class Span, class Transfer>
Result<> transfer_all(Span bytes, ByteOffset at, const char* what, Transfer transfer) {
    while (!bytes.empty()) {
        const ssize_t n = transfer(bytes, static_cast<off_t>(at.value()));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            return fail(Error::from_errno(
                errno, fmt::format("{} of {} bytes at {}", what, bytes.size(), at)));
        }
        if (n == 0) return fail(EIO, "{} of {} bytes at {}: the file ends", what, bytes.size(), at);
        bytes = bytes.subspan(static_cast<size_t>(n));
        at += Bytes(static_cast<uint64_t>(n));
    }
    return {};
}

}  // namespace

Result<int> HandleFiles::get(FileKey key) {
    if (const auto found = files_.find(key); found != files_.end()) return found->second.get();
    if (files_.size() >= kMost) {
        files_.clear();
        kept_all_ = false;
    }
    UniqueFd fd = A4_TRY(volume_.open_by_handle(key.first, key.second, flags_));
    return files_.emplace(key, std::move(fd)).first->second.get();
}

Result<> read_all(int fd, std::span<std::byte> into, ByteOffset at) {
    return transfer_all(into, at, "read", [fd](std::span<std::byte> part, off_t where) {
        return ::pread(fd, part.data(), part.size(), where);
    });
}

Result<> write_all(int fd, std::span<const std::byte> from, ByteOffset at) {
    return transfer_all(from, at, "write", [fd](std::span<const std::byte> part, off_t where) {
        return ::pwrite(fd, part.data(), part.size(), where);
    });
}

}  // namespace atomic4
