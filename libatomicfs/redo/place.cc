#include "redo/place.h"

namespace atomic4 {

Result<> place(Volume& volume, const FileState& file, ByteOffset offset,
               std::span<const std::byte> data) {
    for (const DeviceRun& run : A4_TRY(locate_range(volume, file, offset, Bytes(data.size())))) {
        A4_CHECK(volume.device().write(run.device_offset, data.first(run.length.value())));
        data = data.subspan(run.length.value());
    }
    return {};
}

}  // namespace atomic4
