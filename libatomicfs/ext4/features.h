// Which ext4 volumes atomic4 works on: one table, one function.
//
// Unknown features are refused, never guessed (FORMAT.md). Each refusal names the feature and says
// what to do. Our own two bits are known.
#pragma once

#include <ext2fs/ext2fs.h>

#include "base/result.h"

namespace atomic4 {

// EOPNOTSUPP for a feature that atomic4 does not support; EUCLEAN for a superblock that contradicts
// itself. The state of the journal and of the checks is not looked at here (see volume.h).
Result<> check_features(const ext2_super_block& super);

// Whether check_features refuses a volume because of a feature that it has, by the feature's name
// (mke2fs -O).
bool is_refused_feature(std::string_view name);

}  // namespace atomic4
