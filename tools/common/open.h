// How commands open volumes.
#pragma once

#include <string>
#include <vector>

#include "common/context.h"
#include "writer/open_volume.h"

namespace atomic4::tools {

// What opening a volume repaired (Volume::notices), as warnings.
void warn_of_repairs(const Context& context, const std::string& device,
                     const std::vector<std::string>& notices);

// For changing: replays a non-empty log first, and says so.
Result<OpenVolume> open_to_write(const Context& context, const std::string& device);
// For looking at metadata; live records are no obstacle.
Result<std::unique_ptr<Volume>> open_to_look(const Context& context, const std::string& device);
// For looking at any ext4, in whatever state and whoever else uses it.
Result<std::unique_ptr<Volume>> open_to_inspect(const Context& context, const std::string& device);
// For enable and disable: any ext4.
Result<std::unique_ptr<Volume>> open_any_to_write(const Context& context,
                                                  const std::string& device);

// An enable or disable that was interrupted has been completed.
void warn_of_interruption(const Context& context, const std::string& device);

}  // namespace atomic4::tools
