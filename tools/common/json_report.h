// Reports as JSON. Names in them may be any bytes: what is no UTF-8 shows as U+FFFD; a report that
// failed would come after the change that it tells of.
#pragma once

#include <nlohmann/json.hpp>

#include "common/context.h"

namespace atomic4::tools {

inline std::string json_text(const nlohmann::json& report) {
    return report.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}
inline void print_json(const Context& context, const nlohmann::json& report) {
    context.print(json_text(report));
}

}  // namespace atomic4::tools
