#include "atomic4ctl/input.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "ext4/format.h"

namespace atomic4::tools {

namespace {
constexpr size_t kPiece = size_t{4} << 20;
}

Result<Input> Input::open(const std::string& from) {
    Input input;
    input.name_ = from == "-" ? "standard input" : from;
    input.fd_ = UniqueFd(from == "-" ? fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 3)
                                     : ::open(from.c_str(), O_RDONLY | O_CLOEXEC));
    if (!input.fd_) return fail(Error::from_errno(errno, input.name_));
    return input;
}

Result<std::vector<std::byte>> Input::read(size_t limit) {
    std::vector<std::byte> bytes(limit);
    size_t have = 0;
    while (have < limit) {
        const ssize_t n = ::read(fd_.get(), bytes.data() + have, limit - have);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return fail(Error::from_errno(errno, name_));
        if (n == 0) break;
        have += static_cast<size_t>(n);
    }
    bytes.resize(have);
    return bytes;
}

Error Input::too_short(uint64_t have, Bytes want) const {
    return Error{EINVAL, fmt::format("{}: has only {} of {} bytes", name_, have, want)};
}

Result<std::vector<std::byte>> Input::read_atomic(const std::optional<Bytes>& length) {
    if (length && length->value() > kUnitMax)
        return fail(EINVAL, "an atomic write of {} bytes is longer than the limit {}", *length,
                    kUnitMax);
    // One byte more than any atomic write may have, to notice a longer input.
    auto bytes = A4_TRY(read(length ? length->value() : kUnitMax + 1));
    if (length && bytes.size() < length->value()) return fail(too_short(bytes.size(), *length));
    if (bytes.size() > kUnitMax)
        return fail(EINVAL, "{}: has more than {} bytes, the limit of an atomic write", name_,
                    kUnitMax);
    return bytes;
}

Result<Bytes> Input::for_each_piece(
    const std::optional<Bytes>& length,
    const std::function<Result<>(Bytes done, std::span<const std::byte> piece)>& take) {
    // A file tells beforehand; of a pipe only what came before its end is known.
    struct stat status = {};
    if (length && ::fstat(fd_.get(), &status) == 0 && S_ISREG(status.st_mode)) {
        const off_t at = ::lseek(fd_.get(), 0, SEEK_CUR);
        const auto left = static_cast<uint64_t>(std::max<off_t>(0, status.st_size - at));
        if (left < length->value()) return fail(too_short(left, *length));
    }
    uint64_t done = 0;
    while (!length || done < length->value()) {
        const size_t want =
            length ? std::min<uint64_t>(kPiece, length->value() - done) : size_t{kPiece};
        const auto bytes = A4_TRY(read(want));
        if (!bytes.empty()) A4_CHECK(take(Bytes(done), bytes));
        done += bytes.size();
        if (bytes.size() < want) break;
    }
    if (length && done < length->value()) {
        Error error = too_short(done, *length);
        if (done > 0) error.message += ", which are written";
        return fail(std::move(error));
    }
    return Bytes(done);
}

}  // namespace atomic4::tools
