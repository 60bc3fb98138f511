#include <nlohmann/json.hpp>

#include "atomic4ctl/commands.h"
#include "base/text.h"
#include "check/volume_check.h"
#include "common/json_report.h"
#include "common/open.h"
#include "common/progress.h"

namespace atomic4::tools {

Result<int> run(const Context& context, const CheckCommand& command) {
    Progress progress("checking");
    const auto volume = A4_TRY(open_to_look(context, command.device));
    const CheckReport report =
        A4_TRY(command.path ? check_one_file(*volume, *command.path) : check_volume(*volume));
    progress.finish();
    if (context.json) {
        nlohmann::json findings = nlohmann::json::array();
        for (const Finding& finding : report.findings) {
            findings.push_back(
                {{"number", number_of(finding.id)},
                 {"severity",
                  severity_of(finding.id) == Severity::Problem ? "problem" : "information"},
                 {"where", finding.where},
                 {"meaning", meaning_of(finding.id)},
                 {"detail", finding.detail}});
        }
        const nlohmann::json json = {{"device", command.device},
                                     {"files", report.files},
                                     {"units", report.units},
                                     {"clean", report.clean()},
                                     {"findings", findings}};
        print_json(context, json);
        return report.clean() ? 0 : 1;
    }
    std::string text;
    for (const Finding& finding : report.findings) {
        text += fmt::format("{} #{} {}: {}: {}\n",
                            severity_of(finding.id) == Severity::Problem ? "problem" : "note",
                            number_of(finding.id), printable(finding.where), meaning_of(finding.id),
                            finding.detail);
    }
    const std::string what = command.path && report.clean() && report.files == 0
                                 ? "no atomic file"
                                 : fmt::format("{}, {}", counted(report.files, "atomic file"),
                                               counted(report.units, "unit"));
    text += fmt::format("{}: {}: {}\n", printable(command.path.value_or(command.device)), what,
                        report.clean() ? "clean" : "has problems: run fsck.atomic4");
    context.print(text);
    return report.clean() ? 0 : 1;
}

}  // namespace atomic4::tools
