// The commands on a file, carried out by a daemon instead of on an unmounted volume.
#pragma once

#include "atomic4ctl/commands.h"

namespace atomic4::tools {

Result<int> write_by_daemon(const Context& context, const WriteCommand& command);
Result<int> read_by_daemon(const Context& context, const ReadCommand& command);
Result<int> status_by_daemon(const Context& context, const StatusCommand& command);

}  // namespace atomic4::tools
