// fsck.atomic4 in this process, on a device of the test's: e2fsck itself is a real one, on the real
// view.
#pragma once

#include <string>

#include "fsck/fsck.h"
#include "support/image.h"

namespace atomic4::test {

struct FsckRun {
    int status = -1;
    std::string output;  // ours and e2fsck's
};

// With -f. The device stays the caller's.
FsckRun run_fsck(Device& device, FsckMode mode);
// On an image that changes.
FsckRun run_fsck(Image& image, FsckMode mode);

// What every copy of the superblock must have at any moment: "" or which one lacks what.
std::string superblock_complaint(const Image& image);

// A volume that needs all of fsck at once: a live record of /db in its redo log and the
// needs-replay bit, /noted claims a block of /db, the bitmaps call blocks of /db free.
struct DirtyVolume {
    Image image;
    std::vector<Mapping> db;            // where /db lies
    std::vector<std::byte> db_content;  // with the record replayed
};
DirtyVolume make_dirty_volume(uint64_t block_size);

std::vector<Mapping> mapping_of_file(const Image& image, const std::string& path);
std::vector<std::byte> content_of_file(const Image& image, const std::string& path);

}  // namespace atomic4::test
