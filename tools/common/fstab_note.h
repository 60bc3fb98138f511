// The gate bit stops stock e2fsck, so an fstab line of type ext4 with a pass number stops the boot.
#pragma once

#include <string>

#include "common/context.h"
#include "ext4/volume.h"

namespace atomic4::tools {

// Warns, names the line in /etc/fstab if there is one, and shows the right one.
void warn_about_fstab(const Context& context, const Volume& volume,
                      const std::string& fstab_path = "/etc/fstab");

// The partition's start and the device's atomic support, as far as they matter.
void warn_about_device(const Context& context, const Device& device, Bytes unit);

}  // namespace atomic4::tools
