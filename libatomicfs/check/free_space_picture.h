// A volume's free space as a picture and as text: a row for each unit, with the part of the free
// space that it can use, and a row for each length of pieces.
#pragma once

#include <string>
#include <string_view>

#include "check/free_space.h"

namespace atomic4 {

// volume: its name, for the title.
std::string free_space_svg(const FreeSpace& space, std::string_view volume);
std::string free_space_text(const FreeSpace& space, std::string_view volume);

}  // namespace atomic4
