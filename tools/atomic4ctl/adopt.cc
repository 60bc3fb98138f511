#include "writer/adopt.h"

#include <nlohmann/json.hpp>

#include "atomic4ctl/commands.h"
#include "base/size_parse.h"
#include "base/text.h"
#include "common/json_report.h"
#include "common/open.h"
#include "common/progress.h"
#include "ext4/path.h"

namespace atomic4::tools {

Result<int> run(const Context& context, const AdoptCommand& command) {
    Progress progress(fmt::format("adopting {}", printable(command.path)));
    const OpenVolume opened = A4_TRY(open_to_write(context, command.device));
    Volume& volume = *opened.volume;
    const ext2_ino_t inode = A4_TRY(lookup(volume, command.path));
    const AdoptReport report =
        A4_TRY(adopt_file(volume, inode, command.unit).context(command.path));
    progress.finish();
    if (context.json) {
        const nlohmann::json json = {
            {"path", command.path},
            {"inode", report.inode},
            {"size", report.size.value()},
            {"unit", report.unit.value()},
            {"changed", report.changed},
            {"units", {{"mapped", report.units_mapped}, {"holes", report.units_hole}}},
            {"units_moved", report.units_moved},
            {"bytes_copied", report.copied.value()}};
        print_json(context, json);
        return 0;
    }
    const std::string unit = format_size(report.unit);
    if (!report.changed) {
        context.print(
            fmt::format("{}: is adopted already, with aligned units of {}: nothing to do\n",
                        printable(command.path), unit));
    } else {
        context.print(
            fmt::format("{}: adopted in {} of {}, {} of them moved ({} bytes copied), inode "
                        "{}\n",
                        printable(command.path), counted(report.units_mapped, "aligned unit"), unit,
                        report.units_moved, report.copied, report.inode));
    }
    return 0;
}

}  // namespace atomic4::tools
