// The bytes that `write` writes: a file's, or standard input's.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "base/units.h"

namespace atomic4::tools {

class Input {
  public:
    // "-" is standard input.
    static Result<Input> open(const std::string& from);

    // What one atomic write takes: as many bytes as asked for, or all there are. EINVAL: the input
    // has fewer, or more than any atomic write may have.
    Result<std::vector<std::byte>> read_atomic(const std::optional<Bytes>& length);
    // The same in pieces of at most 4 MiB, each with its distance from the first. The number of
    // bytes is the result.
    Result<Bytes> for_each_piece(
        const std::optional<Bytes>& length,
        const std::function<Result<>(Bytes done, std::span<const std::byte> piece)>& take);

  private:
    Result<std::vector<std::byte>> read(size_t limit);  // fewer only at the end
    Error too_short(uint64_t have, Bytes want) const;

    UniqueFd fd_;
    std::string name_;
};

}  // namespace atomic4::tools
