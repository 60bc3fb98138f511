// A file's units and runs as a picture, and as a line of marks for a terminal: what is aligned and
// what isn't, at a glance.
#pragma once

#include <string>
#include <string_view>

#include "check/unit_map.h"

namespace atomic4 {

// The units as squares (a large file: a power of two of them each), and below how the file's runs
// lie on the device. has_unit: it is the file's own; otherwise it is looked at as if it had it.
std::string unit_map_svg(const UnitMap& map, std::string_view path, bool has_unit);

// "|####--!!..|", what a mark stands for, and how many units are how. Ends with a line end; empty
// for a file without units.
std::string unit_map_text(const UnitMap& map);

}  // namespace atomic4
