#include <nlohmann/json.hpp>

#include "atomic4ctl/commands.h"
#include "base/text.h"
#include "common/json_report.h"
#include "common/open.h"
#include "common/progress.h"
#include "writer/enable.h"

namespace atomic4::tools {

Result<int> run(const Context& context, const DisableCommand& command) {
    Progress progress("disabling atomic4");
    auto volume = A4_TRY(open_any_to_write(context, command.device));
    if (volume->attr()) {
        // Acknowledged writes first: what is in the log belongs into the files.
        volume.reset();
        volume = std::move(A4_TRY(open_to_write(context, command.device)).volume);
    }
    const DisableReport report = A4_TRY(disable(*volume, command.force));
    progress.finish();
    if (report.after_interruption) warn_of_interruption(context, command.device);
    if (context.json) {
        const nlohmann::json json = {{"device", command.device},
                                     {"released_inodes", report.released}};
        print_json(context, json);
    } else {
        context.print(fmt::format("{}: atomic4 disabled, {} released; it is a plain ext4 now\n",
                                  command.device, counted(report.released.size(), "file")));
    }
    return 0;
}

}  // namespace atomic4::tools
