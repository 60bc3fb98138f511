#include <nlohmann/json.hpp>

#include "atomic4ctl/by_daemon.h"
#include "base/size_parse.h"
#include "base/text.h"
#include "common/daemon.h"
#include "common/json_report.h"

namespace atomic4::tools {

Result<int> status_by_daemon(const Context& context, const StatusCommand& command) {
    const DaemonConnection daemon =
        A4_TRY(connect_daemon({command.socket, command.path}, {.arena = Bytes(0)}));
    Client& client = *daemon.client;
    auto opened = open_at_daemon(client, command.path, wire::kOpenRead);
    // Who may only write may ask as well.
    if (!opened && opened.error().code == EACCES)
        if (auto other = open_at_daemon(client, command.path, wire::kOpenWrite)) opened = other;
    const File file = A4_TRY(std::move(opened));
    const FileStatus status = A4_TRY(client.statx(file.handle).context(command.path));

    if (context.json) {
        const nlohmann::json json = {
            {"path", command.path},
            {"inode", status.inode},
            {"generation", status.generation},
            {"size", status.size.value()},
            {"atomic", status.atomic},
            {"unit",
             status.unit != Bytes(0) ? nlohmann::json(status.unit.value()) : nlohmann::json()},
            {"unit_min", status.unit_min.value()},
            {"unit_max", status.unit_max.value()},
            {"unit_max_native", status.unit_max_native.value()},
            {"unit_max_logged", status.unit_max_logged.value()},
            {"segments_max", status.segments_max},
            {"engine", to_text(status.engine)},
            {"why_not_native", status.why_not_native},
            {"ack", to_text(status.ack_mode)},
            {"why_strict", status.why_strict},
            {"writes_native", status.writes_native},
            {"writes_logged", status.writes_logged}};
        print_json(context, json);
        return 0;
    }
    std::string text = fmt::format("{}\n", printable(command.path));
    const auto line = [&](const char* name, const std::string& value) {
        text += fmt::format("  {:<14} {}\n", name, value);
    };
    const auto with_reason = [](const char* what, const char* prefix, const std::string& why) {
        return why.empty() ? std::string(what) : fmt::format("{} ({}{})", what, prefix, why);
    };
    line("inode", fmt::format("{}, generation {}", status.inode, status.generation));
    line("size", fmt::format("{}", status.size));
    line("atomic", status.atomic ? "yes" : "no");
    if (status.unit != Bytes(0)) line("unit", format_size(status.unit));
    line("unit_min", format_size(status.unit_min));
    line("unit_max",
         fmt::format("{} (logged {}, native {})", format_size(status.unit_max),
                     format_size(status.unit_max_logged),
                     status.unit_max_native == Bytes(0) ? std::string("none")
                                                        : format_size(status.unit_max_native)));
    line("segments_max", fmt::format("{}", status.segments_max));
    line("engine", with_reason(to_text(status.engine), "not native: ", status.why_not_native));
    line("acknowledged", with_reason(to_text(status.ack_mode), "", status.why_strict));
    line("writes", fmt::format("{} logged, {} native", status.writes_logged, status.writes_native));
    context.print(text);
    return 0;
}

}  // namespace atomic4::tools
