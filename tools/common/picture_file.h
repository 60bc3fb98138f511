// Where commands put pictures.
#pragma once

#include <string>

#include "base/result.h"

namespace atomic4::tools {

// Makes a file, or replaces one that holds an SVG picture or nothing; whole, or with an error and
// the old one kept. Anything else that bears the name (the image itself, say) is left alone:
// EEXIST. Not durable.
Result<> store_picture(const std::string& path, const std::string& svg);

}  // namespace atomic4::tools
