// Where a volume's daemon listens unless it was told otherwise: /run/atomic4/<uuid>.sock.
//
// Threads: any; no state.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "base/result.h"

namespace atomic4 {

inline constexpr const char* kRunDirectory = "/run/atomic4";

// "/run/atomic4/<uuid>.sock"
std::string default_socket_path(const std::array<uint8_t, 16>& uuid);

// That of the mounted volume that a file or directory lies on. Needs no privilege, only a path that
// the caller can open for reading.
//   EOPNOTSUPP  it lies on no ext4, or the kernel doesn't tell the uuid (Linux 6.0 does)
Result<std::string> default_socket_of(const std::string& path);

}  // namespace atomic4
