// Extended attributes of inodes, through libext2fs.
#pragma once

#include <ext2fs/ext2fs.h>

#include <optional>
#include <string>

#include "base/result.h"

namespace atomic4 {

// The value, or nothing if the inode has no such attribute.
Result<std::optional<std::string>> read_xattr(ext2_filsys fs, ext2_ino_t inode, const char* name);

// Sets the attribute, or removes it if value is empty.
Result<> write_xattr(ext2_filsys fs, ext2_ino_t inode, const char* name,
                     const std::optional<std::string>& value);

}  // namespace atomic4
