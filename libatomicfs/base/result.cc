#include "base/result.h"

#include <cstring>

namespace atomic4 {

Error Error::from_errno(int code, std::string_view what) {
    char buffer[128];
    return Error{code, fmt::format("{}: {}", what, strerror_r(code, buffer, sizeof buffer))};
}

}  // namespace atomic4
