#include <nlohmann/json.hpp>

#include "atomic4ctl/commands.h"
#include "check/free_space_picture.h"
#include "common/json_report.h"
#include "common/open.h"
#include "common/picture_file.h"
#include "common/progress.h"
#include "device/ownership.h"

namespace atomic4::tools {

namespace {

nlohmann::json report(const FreeSpace& space) {
    const auto run = [&](const PblkRun& blocks) {
        return nlohmann::json{{"device_offset", blocks.start.value() * space.block_size.value()},
                              {"length", blocks.length.value() * space.block_size.value()}};
    };
    nlohmann::json units = nlohmann::json::array();
    for (const FreeSpace::Unit& unit : space.units)
        units.push_back({{"unit", unit.unit.value()},
                         {"runs", unit.runs},
                         {"usable_percent", space.usable_percent(unit)}});
    nlohmann::json pieces = nlohmann::json::array();
    for (const FreeSpace::Piece& piece : space.pieces)
        pieces.push_back({{"from", piece.length.value()},
                          {"below", piece.length.value() * 2},
                          {"count", piece.count},
                          {"blocks", piece.blocks.value()}});
    nlohmann::json damaged = nlohmann::json::array();
    for (const auto& [group, why] : space.damaged)
        damaged.push_back({{"group", group}, {"why", why.message}});
    return {{"block_size", space.block_size.value()},
            {"blocks", space.blocks.value()},
            {"free_blocks", space.free.value()},
            {"units", units},
            {"pieces", pieces},
            {"longest", run(space.longest)},
            {"largest_aligned", run(space.largest_aligned)},
            {"damaged", damaged}};
}

}  // namespace

Result<int> run(const Context& context, const FragCommand& command) {
    Progress progress("reading the bitmaps");
    const auto volume = A4_TRY(open_to_inspect(context, command.device));
    const FreeSpace space = A4_TRY(measure_free_space(*volume).context(command.device));
    progress.finish();
    const auto mounted = mounted_on(command.device);
    if (mounted)
        context.warn(fmt::format("{} is mounted on {}: the figures may be out of date",
                                 command.device, *mounted));
    else if (ext2fs_has_feature_journal_needs_recovery(volume->fs()->super))
        context.warn(fmt::format("{}: its journal needs recovery: the figures are from before",
                                 command.device));
    if (!command.svg.empty())
        A4_CHECK(store_picture(command.svg, free_space_svg(space, command.device)));
    if (context.json) {
        nlohmann::json json = report(space);
        json["device"] = command.device;
        print_json(context, json);
    } else {
        context.print(free_space_text(space, command.device));
    }
    return space.damaged.empty() ? 0 : 1;
}

}  // namespace atomic4::tools
