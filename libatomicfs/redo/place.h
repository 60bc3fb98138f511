// Placing logged bytes where they belong: the same steps for a writer and for replay.
#pragma once

#include <span>

#include "ext4/layout.h"

namespace atomic4 {

// Writes data to the blocks under [offset, offset + data.size()), which are allocated. Not durable.
Result<> place(Volume& volume, const FileState& file, ByteOffset offset,
               std::span<const std::byte> data);

}  // namespace atomic4
