// What a benchmark wants to know of an unmounted image.
#pragma once

#include <string>
#include <vector>

#include "ext4/layout.h"

namespace atomic4::bench {

// Where a file's bytes lie on the device, in order. Throws.
std::vector<DeviceRun> runs_of_file(const std::string& image, const std::string& path);

}  // namespace atomic4::bench
