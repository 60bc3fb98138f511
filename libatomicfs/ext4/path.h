// Names inside an open volume.
#pragma once

#include <functional>
#include <map>
#include <set>
#include <string>

#include "ext4/volume.h"

namespace atomic4 {

// EUCLEAN: the directory's extent tree can't be opened. libext2fs takes such a directory for an
// empty one, so whoever looks a name up with it asks here first. (Anything but a directory is left
// to the lookup.)
Result<> check_directory(ext2_filsys fs, ext2_ino_t directory);

// Follows symbolic links inside the volume. ENOENT, ENOTDIR, ELOOP with the path. As for the
// kernel, repeated slashes are one, and what a slash follows is a directory; and in a casefolded
// directory a name is found by any spelling that folds to the same.
Result<ext2_ino_t> lookup(Volume& volume, const std::string& path);

// The same, calling search before each directory in which a name is looked up (".", ".." too),
// with its inode, from the root on, those that symbolic links lead through included; the kernel
// asks for search permission at the same places. Its error ends the walk.
using SearchVisitor = std::function<Result<>(ext2_ino_t directory)>;
Result<ext2_ino_t> lookup(Volume& volume, const std::string& path, const SearchVisitor& search);

struct NewName {
    ext2_ino_t directory = 0;
    std::string name;
};
// The directory and name that a path would create: EEXIST if it is there already, ENOENT if the
// directory isn't, EOPNOTSUPP if it is casefolded, EINVAL for "", "/", "." and "..", EISDIR if a
// slash follows, ENAMETOOLONG; EUCLEAN if the directory has entries that can't be: a new one would
// be put between them.
Result<NewName> lookup_new(Volume& volume, const std::string& path);

// EUCLEAN: as for lookup_new.
Result<> check_entries(Volume& volume, ext2_ino_t directory);

// Adds a directory entry and sets the directory's times; the operation is the caller's.
Result<> link_name(Volume& volume, const NewName& where, ext2_ino_t inode, int file_type);
Result<> unlink_name(Volume& volume, const NewName& where, ext2_ino_t inode);

// One path for each of these inodes, as far as they have one, by walking the tree. Damaged
// directories are passed over.
Result<std::map<ext2_ino_t, std::string>> paths_of(Volume& volume, std::set<ext2_ino_t> inodes);

}  // namespace atomic4
