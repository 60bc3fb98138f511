#include "bench/volume.h"

#include "bench/bench.h"
#include "device/file_device.h"
#include "ext4/path.h"
#include "writer/open_volume.h"

namespace atomic4::bench {

std::vector<DeviceRun> runs_of_file(const std::string& image, const std::string& path) {
    const auto opened =
        must(open_for_reading(must(FileDevice::open(image, {.access = Access::ReadOnly}))));
    const FileState file = must(read_file(*opened.volume, must(lookup(*opened.volume, path))));
    return must(locate_range(*opened.volume, file, ByteOffset(0), file.size));
}

}  // namespace atomic4::bench
