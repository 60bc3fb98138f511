#include <algorithm>
#include <nlohmann/json.hpp>

#include "atomic4ctl/commands.h"
#include "base/size_parse.h"
#include "common/open.h"
#include "common/progress.h"
#include "ext4/layout.h"
#include "ext4/path.h"

namespace atomic4::tools {

namespace {

constexpr uint64_t kMaxCells = 64;

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

bool aligned(const Mapping& mapping, uint64_t unit_blocks) {
    // A run that starts inside a unit continues one that does (or the file is broken there).
    return mapping.pblk.value() % unit_blocks == mapping.lblk.value() % unit_blocks;
}

// One character for each stretch of the file: what is aligned and what isn't, at a glance.
std::string picture(const std::vector<Mapping>& mappings, uint64_t blocks, uint64_t unit_blocks) {
    const uint64_t units = (blocks + unit_blocks - 1) / unit_blocks;
    const uint64_t cells = std::min(units, kMaxCells);
    if (cells == 0) return {};
    std::string cells_text(cells, '.');
    for (const Mapping& mapping : mappings) {
        if (mapping.state == MapState::Hole) continue;
        const uint64_t first = mapping.lblk.value() / unit_blocks * cells / units;
        const uint64_t last =
            std::min((mapping.end().value() - 1) / unit_blocks * cells / units, cells - 1);
        for (uint64_t cell = first; cell <= last; ++cell) {
            char& mark = cells_text[cell];
            if (!aligned(mapping, unit_blocks))
                mark = '!';
            else if (mark == '.')
                mark = mapping.state == MapState::Written ? '#' : '-';
        }
    }
    return fmt::format(
        "  |{}|\n  one mark is {} unit{}: # aligned, - unwritten, ! misaligned, . hole\n",
        cells_text, (units + cells - 1) / cells, units > cells ? "s" : "");
}

}  // namespace

Result<int> run(const Context& context, const MapCommand& command) {
    Progress progress(fmt::format("mapping {}", command.path));
    const auto volume = A4_TRY(open_to_look(context, command.device));
    const FileState file =
        A4_TRY(read_file(*volume, A4_TRY(lookup(*volume, command.path))).context(command.path));
    if (!LINUX_S_ISREG(file.inode.i_mode))
        return fail(EINVAL, "{}: not a regular file", command.path);
    const uint64_t block = volume->block_size().value();
    const bool has_unit = file.unit && check_unit(*volume, *file.unit).has_value();
    const Bytes unit = has_unit ? *file.unit : volume->block_size();
    const uint64_t unit_blocks = unit.value() / block;
    const uint64_t blocks = round_up((file.size.value() + block - 1) / block, unit_blocks);
    const auto mappings =
        A4_TRY(map_range(*volume, file.number, file.inode, Lblk(0), Blocks(blocks)));
    progress.finish();
    if (context.json) {
        nlohmann::json runs = nlohmann::json::array();
        for (const Mapping& mapping : mappings) {
            nlohmann::json run = {{"offset", mapping.lblk.value() * block},
                                  {"length", mapping.length.value() * block},
                                  {"state", state_text(mapping.state)}};
            if (mapping.state != MapState::Hole) {
                run["device_offset"] = mapping.pblk.value() * block;
                run["aligned"] = aligned(mapping, unit_blocks);
            }
            runs.push_back(run);
        }
        const nlohmann::json json = {
            {"path", command.path},
            {"size", file.size.value()},
            {"unit", has_unit ? nlohmann::json(unit.value()) : nlohmann::json(nullptr)},
            {"block_size", block},
            {"runs", runs}};
        context.print(json.dump(2) + "\n");
        return 0;
    }
    std::string text = fmt::format("{}: {} bytes, {}, blocks of {}\n", command.path, file.size,
                                   has_unit ? "unit " + format_size(unit) : "no unit", block);
    text += fmt::format("  {:>13} {:>21} {:>23}  {}\n", "units", "file bytes", "device blocks",
                        "state");
    for (const Mapping& mapping : mappings) {
        const std::string device =
            mapping.state == MapState::Hole
                ? "-"
                : fmt::format("{}-{}", mapping.pblk,
                              mapping.pblk.value() + mapping.length.value() - 1);
        text += fmt::format(
            "  {:>13} {:>21} {:>23}  {}{}\n",
            fmt::format("{}-{}", mapping.lblk.value() / unit_blocks,
                        (mapping.end().value() - 1) / unit_blocks),
            fmt::format("{}-{}", mapping.lblk.value() * block, mapping.end().value() * block - 1),
            device, state_text(mapping.state),
            mapping.state == MapState::Hole || !has_unit ? ""
            : aligned(mapping, unit_blocks)              ? ", aligned"
                                                         : ", misaligned");
    }
    context.print(text + picture(mappings, blocks, unit_blocks));
    return 0;
}

}  // namespace atomic4::tools
