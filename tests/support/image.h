// ext4 images in memory: made by the real mke2fs, judged by the real e2fsck.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "device/memory_device.h"
#include "writer/atomic_writer.h"
#include "writer/enable.h"

namespace atomic4::test {

using Image = std::vector<std::byte>;

// mke2fs -t ext4 ARGUMENTS on an image of size bytes. Throws if mke2fs fails. Made once per
// argument list; later calls return copies.
Image make_ext4(uint64_t size, const std::vector<std::string>& arguments);

// The same, with atomic4 enabled.
Image make_atomic4(uint64_t size, const std::vector<std::string>& arguments,
                   const EnableOptions& options = {});

// What a stock tool sees after the gate and needs-replay bits are cleared in the primary.
Image without_our_bits(Image image);

struct Fsck {
    int status = -1;
    std::string output;
};
// e2fsck on a copy without our bits; the repaired copy (gate restored) replaces *repaired.
Fsck e2fsck(const Image& image, const std::vector<std::string>& arguments,
            Image* repaired = nullptr);
// Empty if e2fsck -fn finds nothing, else what it says.
std::string fsck_complaints(const Image& image);

// A Device that passes everything on to another that the test owns.
std::unique_ptr<Device> borrowed(Device& device);

}  // namespace atomic4::test
