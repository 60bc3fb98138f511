// What can be told of a volume by its superblocks and descriptors, before anything is followed.
#pragma once

#include <array>
#include <optional>

#include "ext4/volume.h"
#include "fsck/fsck.h"

namespace atomic4::tools {

// fsck opens whatever can be opened.
VolumeOptions options_for(OpenFor purpose);

// By -b and -B. What they don't say, or can't, is e2fsck's to find out, or to complain of.
std::optional<SuperblockPlace> told_copy(const FsckCommand& command);

// By the primary superblock and the copies, of a volume that can't be opened.
bool has_gate_somewhere(Device& device, const FsckCommand& command);

// e2fsck's reasons for a check that nobody has asked for.
bool is_due(const ext2_super_block& super);

// What e2fsck looks at before it calls a volume clean.
bool looks_sound(Volume& volume);

// The root directory is where it is to be.
bool has_root(Volume& volume);

// With a right checksum, and places within the volume.
bool descriptor_is_right(ext2_filsys fs, dgrp_t group);
bool descriptors_are_right(Volume& volume);

// The flag says that no inode of the group was ever used, though some are in use, and e2fsck
// doesn't find it out by the counts.
bool hides_group(ext2_filsys fs, dgrp_t group);

// Block bitmap, inode bitmap, inode table.
using TablePlaces = std::array<uint64_t, 3>;
TablePlaces table_places(ext2_filsys fs, dgrp_t group);

}  // namespace atomic4::tools
