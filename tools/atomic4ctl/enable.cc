#include "writer/enable.h"

#include <nlohmann/json.hpp>

#include "atomic4ctl/commands.h"
#include "base/size_parse.h"
#include "common/fstab_note.h"
#include "common/json_report.h"
#include "common/open.h"
#include "common/progress.h"

namespace atomic4::tools {

Result<int> run(const Context& context, const EnableCommand& command) {
    Progress progress("enabling atomic4");
    const auto volume = A4_TRY(open_any_to_write(context, command.device));
    const EnablePlan plan = A4_TRY(enable(*volume, {command.unit, command.log_size}));
    progress.finish();
    warn_about_device(context, volume->device(), plan.unit);
    warn_about_fstab(context, *volume);
    if (plan.after_interruption) warn_of_interruption(context, command.device);
    if (context.json) {
        const nlohmann::json report = {{"device", command.device},
                                       {"unit", plan.unit.value()},
                                       {"log_size", plan.log_size.value()},
                                       {"completed", plan.completed}};
        print_json(context, report);
    } else {
        context.print(
            fmt::format("{}: atomic4 enabled, unit {}, redo log {}{}\n", command.device,
                        format_size(plan.unit), format_size(plan.log_size),
                        plan.completed ? " (completed: only the gate bit was missing)" : ""));
    }
    return 0;
}

}  // namespace atomic4::tools
