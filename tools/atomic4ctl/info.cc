#include <nlohmann/json.hpp>

#include "atomic4ctl/commands.h"
#include "base/size_parse.h"
#include "base/text.h"
#include "common/json_report.h"
#include "common/open.h"
#include "common/progress.h"
#include "device/ownership.h"
#include "ext4/format.h"
#include "ext4/layout.h"
#include "redo/log_reader.h"
#include "redo/volume_log.h"

namespace atomic4::tools {

namespace {

Result<size_t> log_runs(Volume& volume) {
    const FileState file = A4_TRY(read_file(volume, volume.attr()->log_inode));
    return A4_TRY(locate_range(volume, file, ByteOffset(0), file.size)).size();
}

nlohmann::json log_report(Volume& volume) {
    nlohmann::json json;
    if (!volume.attr()) {
        json["error"] = volume.attr_error() ? volume.attr_error()->message : "no volume attribute";
        return json;
    }
    const VolumeAttr& attr = *volume.attr();
    json["inode"] = attr.log_inode;
    json["id"] = id_to_text(attr.log_id);
    auto log = open_log_device(volume);
    if (!log) {
        json["error"] = log.error().message;
        return json;
    }
    json["size"] = (*log)->size().value();
    const auto runs = log_runs(volume);
    if (!runs) {
        json["error"] = runs.error().message;
        return json;
    }
    json["runs"] = *runs;
    const auto contents = read_log(**log, attr.log_id);
    if (!contents) {
        json["error"] = contents.error().message;
        return json;
    }
    json["live_records"] = contents->live.size();
    json["end"] = to_text(contents->end);
    if (!contents->superblock_damage.empty()) json["error"] = contents->superblock_damage;
    if (contents->end == LogEnd::Corrupt) json["error"] = contents->end_detail;
    return json;
}

std::string size_text(const nlohmann::json& value) {
    return format_size(Bytes(value.get<uint64_t>()));
}

}  // namespace

Result<int> run(const Context& context, const InfoCommand& command) {
    Progress progress("reading the volume");
    const auto volume = A4_TRY(open_to_inspect(context, command.device));
    ext2_super_block& super = *volume->fs()->super;
    const AtomicLimits& limits = volume->device().atomic_limits();
    uint64_t copies = 0;
    for (const BackupSuperblock& backup : volume->backups()) copies += backup.gate ? 1 : 0;

    nlohmann::json json = {{"device", command.device},
                           {"atomic4", volume->gate()},
                           {"gate",
                            {{"primary", volume->gate_in_primary()},
                             {"backups", volume->backups().size()},
                             {"backups_with_gate", copies}}},
                           {"needs_replay", volume->needs_replay()},
                           {"block_size", volume->block_size().value()},
                           {"blocks", ext2fs_blocks_count(&super)},
                           {"free_blocks", ext2fs_free_blocks_count(&super)},
                           {"native",
                            {{"unit_min", limits.unit_min.value()},
                             {"unit_max", limits.unit_max.value()},
                             {"boundary", limits.boundary.value()},
                             {"why_not", limits.why_not}}}};
    const auto mounted = mounted_on(command.device);
    json["mounted_on"] = mounted ? nlohmann::json(*mounted) : nlohmann::json(nullptr);
    if (volume->gate()) {
        if (volume->attr()) {
            json["version"] = kVolumeVersion;
            json["unit"] = volume->attr()->unit.value();
        }
        json["log"] = log_report(*volume);
    }
    progress.finish();
    if (context.json) {
        print_json(context, json);
        return 0;
    }
    std::string text = fmt::format("{}\n", command.device);
    const auto line = [&](const char* name, const std::string& value) {
        text += fmt::format("  {:<14} {}\n", name, value);
    };
    line("atomic4", !volume->gate()        ? "no: a plain ext4"
                    : volume->attr()       ? fmt::format("yes, version {}", kVolumeVersion)
                    : volume->attr_error() ? "yes, but not readable (see redo log)"
                                           : "interrupted: run atomic4ctl enable or disable again");
    if (mounted) line("mounted on", fmt::format("{} (what follows may be out of date)", *mounted));
    line("blocks", fmt::format("{} of {} bytes, {} free", ext2fs_blocks_count(&super),
                               volume->block_size(), ext2fs_free_blocks_count(&super)));
    if (volume->gate()) {
        line("gate bit",
             fmt::format("primary {}, {} of {} copies", volume->gate_in_primary() ? "yes" : "no",
                         copies, volume->backups().size()));
        line("needs replay", volume->needs_replay() ? "yes: run atomic4ctl recover" : "no");
        if (volume->attr()) line("unit", format_size(volume->attr()->unit));
        const nlohmann::json& log = json["log"];
        if (log.contains("live_records")) {
            line("redo log",
                 fmt::format("inode {}, {} in {}, {}, end {}", log["inode"].get<uint32_t>(),
                             size_text(log["size"]), counted(log["runs"].get<uint64_t>(), "run"),
                             counted(log["live_records"].get<uint64_t>(), "live record"),
                             log["end"].get<std::string>()));
        }
        if (log.contains("error")) line("redo log", log["error"].get<std::string>());
    }
    line("native writes", limits.supported() ? fmt::format("{} to {}", format_size(limits.unit_min),
                                                           format_size(limits.unit_max))
                                             : fmt::format("no: {}", limits.why_not));
    context.print(text);
    return 0;
}

}  // namespace atomic4::tools
