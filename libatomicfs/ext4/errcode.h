// The one conversion from libext2fs's errcode_t to Error.
//
// Values below the com_err tables are errno values themselves. "No space" codes become ENOSPC, not
// found ENOENT, damage (checksums, impossible fields) EUCLEAN; what is left is EIO.
#pragma once

#include <ext2fs/ext2fs.h>

#include <string_view>

#include "base/result.h"

namespace atomic4 {

Error error_from_errcode(errcode_t code, std::string_view what);

// Success for 0.
Result<> check_errcode(errcode_t code, std::string_view what);

}  // namespace atomic4
