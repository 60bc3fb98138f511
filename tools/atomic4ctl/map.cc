#include <nlohmann/json.hpp>

#include "atomic4ctl/commands.h"
#include "base/size_parse.h"
#include "base/text.h"
#include "check/unit_map_picture.h"
#include "common/json_report.h"
#include "common/open.h"
#include "common/picture_file.h"
#include "common/progress.h"
#include "ext4/layout.h"
#include "ext4/path.h"

namespace atomic4::tools {

namespace {

const char* state_text(MapState state) {
    switch (state) {
        case MapState::Hole:
            return "hole";
        case MapState::Unwritten:
            return "unwritten";
        case MapState::Written:
            return "written";
    }
    return "?";
}

// By how many blocks a run lies beyond where it would be aligned. One that starts inside a unit
// continues one that does (or the file is broken there).
uint64_t shift_of(const Mapping& mapping, uint64_t unit_blocks) {
    return (mapping.pblk.value() % unit_blocks + unit_blocks - mapping.lblk.value() % unit_blocks) %
           unit_blocks;
}

nlohmann::json report(const MapCommand& command, const UnitMap& map, bool in_units) {
    const uint64_t block = map.block_size.value();
    const uint64_t unit_blocks = map.unit_blocks().value();
    nlohmann::json runs = nlohmann::json::array();
    for (const Mapping& mapping : map.runs) {
        nlohmann::json run = {{"offset", mapping.lblk.value() * block},
                              {"length", mapping.length.value() * block},
                              {"state", state_text(mapping.state)}};
        if (mapping.state != MapState::Hole) {
            run["device_offset"] = mapping.pblk.value() * block;
            run["aligned"] = shift_of(mapping, unit_blocks) == 0;
        }
        runs.push_back(run);
    }
    const auto counts = map.counts();
    const auto count = [&](UnitState state) { return counts[static_cast<size_t>(state)]; };
    return {{"path", command.path},
            {"size", map.file_size.value()},
            {"unit", in_units ? nlohmann::json(map.unit.value()) : nlohmann::json(nullptr)},
            {"block_size", block},
            {"units",
             {{"aligned", count(UnitState::Written) + count(UnitState::Unwritten)},
              {"misaligned", count(UnitState::Misaligned)},
              {"in_pieces", count(UnitState::Broken)},
              {"holes", count(UnitState::Hole)}}},
            {"runs", runs}};
}

std::string text_report(const MapCommand& command, const UnitMap& map, bool in_units) {
    const uint64_t block = map.block_size.value();
    const uint64_t unit_blocks = map.unit_blocks().value();
    std::string text =
        fmt::format("{}: {} bytes, {}, blocks of {}\n", printable(command.path), map.file_size,
                    command.unit ? "seen in units of " + format_size(map.unit)
                    : in_units   ? "unit " + format_size(map.unit)
                                 : "no unit",
                    block);
    text += fmt::format("  {:>13} {:>21} {:>23}  {}\n", "units", "file bytes", "device blocks",
                        "state");
    for (const Mapping& mapping : map.runs) {
        const bool hole = mapping.state == MapState::Hole;
        const std::string device =
            hole ? "-"
                 : fmt::format("{}-{}", mapping.pblk,
                               mapping.pblk.value() + mapping.length.value() - 1);
        const uint64_t shift = shift_of(mapping, unit_blocks);
        text += fmt::format(
            "  {:>13} {:>21} {:>23}  {}{}\n",
            fmt::format("{}-{}", mapping.lblk.value() / unit_blocks,
                        (mapping.end().value() - 1) / unit_blocks),
            fmt::format("{}-{}", mapping.lblk.value() * block, mapping.end().value() * block - 1),
            device, state_text(mapping.state),
            hole || !in_units ? ""
            : shift == 0      ? ", aligned"
                              : ", misaligned by " + counted(shift, "block"));
        if (!hole && mapping.lblk.value() * block >= map.file_size.value())
            text.insert(text.size() - 1, ", beyond EOF");
    }
    return text + unit_map_text(map);
}

}  // namespace

Result<int> run(const Context& context, const MapCommand& command) {
    Progress progress(fmt::format("mapping {}", printable(command.path)));
    const auto volume = A4_TRY(open_to_look(context, command.device));
    const FileState file =
        A4_TRY(read_file(*volume, A4_TRY(lookup(*volume, command.path))).context(command.path));
    if (!LINUX_S_ISREG(file.inode.i_mode))
        return fail(EINVAL, "{}: not a regular file", command.path);
    if (command.unit) A4_CHECK(check_unit(*volume, *command.unit));
    const bool has_unit = file.unit && check_unit(*volume, *file.unit).has_value();
    const bool in_units = command.unit || has_unit;
    const Bytes unit = command.unit.value_or(has_unit ? *file.unit : volume->block_size());
    const Blocks unit_blocks(unit.value() / volume->block_size().value());
    const UnitMap map = make_unit_map(A4_TRY(whole_mapping(*volume, file, unit_blocks)), file.size,
                                      unit, volume->block_size());
    progress.finish();
    if (!command.svg.empty())
        A4_CHECK(store_picture(command.svg, unit_map_svg(map, command.path, has_unit)));
    if (context.json)
        print_json(context, report(command, map, in_units));
    else
        context.print(text_report(command, map, in_units));
    return 0;
}

}  // namespace atomic4::tools
