#include <nlohmann/json.hpp>

#include "atomic4ctl/commands.h"
#include "base/text.h"
#include "common/json_report.h"
#include "common/open.h"
#include "common/progress.h"

namespace atomic4::tools {

Result<int> run(const Context& context, const RecoverCommand& command) {
    Progress progress("recovering");
    const ReplayReport report = A4_TRY(
        recover(A4_TRY(context.open_device(command.device, Access::ReadWrite, Sharing::Exclusive)),
                command.policy, command.clear_mmp));
    progress.finish();
    warn_of_repairs(context, command.device, report.notices);
    if (context.json) {
        const nlohmann::json json = {{"device", command.device},
                                     {"records_replayed", report.records},
                                     {"bytes_replayed", report.bytes.value()},
                                     {"skipped", report.skipped},
                                     {"conflicts", report.conflicts},
                                     {"failed", report.failed},
                                     {"bitmaps_rebuilt", report.rebuilt},
                                     {"records_discarded", report.discarded},
                                     {"log_end", to_text(report.end)},
                                     {"log_end_detail", report.end_detail},
                                     {"log_emptied", report.log_emptied}};
        print_json(context, json);
        return report.log_emptied ? 0 : 1;
    }
    std::string text = fmt::format("{}: {} replayed ({} bytes)", command.device,
                                   counted(report.records, "record"), report.bytes);
    if (report.discarded > 0) text += fmt::format(", {} discarded", report.discarded);
    text += "\n";
    for (const std::string& line : report.skipped) text += fmt::format("  skipped: {}\n", line);
    for (const std::string& line : report.rebuilt) text += fmt::format("  rebuilt: {}\n", line);
    for (const std::string& line : report.failed) text += fmt::format("  not replayed: {}\n", line);
    for (const std::string& line : report.conflicts) {
        text += fmt::format("  conflict{}: {}\n",
                            command.policy == OnConflict::Force ? ", forced" : "", line);
    }
    if (report.end == LogEnd::TornTail)
        text += "  the last record was torn: it was never acknowledged\n";
    if (report.end == LogEnd::Corrupt)
        text += fmt::format("  the log is corrupt: {}\n", report.end_detail);
    if (!report.log_emptied && !report.failed.empty()) {
        text +=
            "  the log is kept: if what the image lies on is full, free space there, then run "
            "recover again; --discard drops what is left\n";
    } else if (!report.log_emptied) {
        text +=
            "  the log is kept: --force replays over newer bytes and accepts the loss of what "
            "can't be read, --discard drops what is left\n";
    }
    context.print(text);
    return report.log_emptied ? 0 : 1;
}

}  // namespace atomic4::tools
