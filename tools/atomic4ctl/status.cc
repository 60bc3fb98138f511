#include <nlohmann/json.hpp>

#include "atomic4ctl/by_daemon.h"
#include "atomic4ctl/commands.h"
#include "base/size_parse.h"
#include "base/text.h"
#include "common/json_report.h"
#include "common/open.h"
#include "common/progress.h"
#include "ext4/layout.h"
#include "ext4/path.h"
#include "redo/redo_log.h"
#include "redo/volume_log.h"

namespace atomic4::tools {

Result<int> run(const Context& context, const StatusCommand& command) {
    if (command.device.empty()) return status_by_daemon(context, command);
    Progress progress(fmt::format("looking at {}", printable(command.path)));
    const auto volume = A4_TRY(open_to_look(context, command.device));
    const FileState file =
        A4_TRY(read_file(*volume, A4_TRY(lookup(*volume, command.path))).context(command.path));
    auto log = A4_TRY(open_log_device(*volume));
    const LogContents contents = A4_TRY(read_log(*log, volume->attr()->log_id));
    const WriteLimits limits = write_limits(*volume, log_unit_max(contents.superblock.capacity()));
    // What check_file needs to read is read here: below, an error of it is a rule.
    A4_TRY(volume->lock_inode());
    const auto takes = check_file(*volume, file);
    std::optional<LayoutReport> layout;
    if (file.atomic && file.unit && check_unit(*volume, *file.unit))
        layout = A4_TRY(check_layout(*volume, file, *file.unit));
    progress.finish();
    const std::string why_not = why_not_native(*volume, file, layout ? layout->problems : 0);
    const char* engine = !takes ? "none" : why_not.empty() ? "native" : "logged";
    // What auto would take: a native write longer than the log's limit needs the layout to hold.
    const Bytes unit_max = why_not.empty() ? limits.unit_max() : limits.unit_max_logged;

    nlohmann::json json = {
        {"path", command.path},
        {"inode", file.number},
        {"generation", file.generation},
        {"size", file.size.value()},
        {"atomic", file.atomic},
        {"unit", file.unit ? nlohmann::json(file.unit->value()) : nlohmann::json(nullptr)},
        {"unit_min", limits.unit_min.value()},
        {"unit_max", unit_max.value()},
        {"unit_max_native", limits.unit_max_native.value()},
        {"unit_max_logged", limits.unit_max_logged.value()},
        {"segments_max", limits.segments_max},
        {"engine", engine},
        {"why_not_native", why_not},
        {"live_records", contents.live.size()}};
    if (!takes) json["refused"] = takes.error().message;
    if (layout) {
        json["units"] = {{"mapped", layout->units_mapped},
                         {"holes", layout->units_hole},
                         {"problems", layout->problems}};
    }
    if (context.json) {
        print_json(context, json);
        return 0;
    }
    std::string text = fmt::format("{}\n", printable(command.path));
    const auto line = [&](const char* name, const std::string& value) {
        text += fmt::format("  {:<14} {}\n", name, value);
    };
    line("inode", fmt::format("{}, generation {}", file.number, file.generation));
    line("size", fmt::format("{}", file.size));
    line("atomic", file.atomic ? "yes" : "no");
    if (file.unit) line("unit", format_size(*file.unit));
    if (layout) {
        line("units", fmt::format("{} mapped, {} holes, {} with problems", layout->units_mapped,
                                  layout->units_hole, layout->problems));
    }
    line("unit_min", format_size(limits.unit_min));
    line("unit_max",
         fmt::format("{} (logged {}, native {})", format_size(unit_max),
                     format_size(limits.unit_max_logged),
                     limits.unit_max_native.value() == 0 ? std::string("none")
                                                         : format_size(limits.unit_max_native)));
    line("segments_max", fmt::format("{}", limits.segments_max));
    line("engine", !takes            ? fmt::format("none: {}", takes.error().message)
                   : why_not.empty() ? std::string("native")
                                     : fmt::format("logged (not native: {})", why_not));
    if (!contents.live.empty())
        line("redo log", fmt::format("{}: run atomic4ctl recover",
                                     counted(contents.live.size(), "live record")));
    context.print(text);
    return 0;
}

}  // namespace atomic4::tools
