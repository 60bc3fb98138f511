#include "common/fstab_note.h"

#include <fstream>
#include <sstream>

#include "base/size_parse.h"
#include "device/atomic_limits.h"

namespace atomic4::tools {

namespace {

std::string uuid_of(const Volume& volume) {
    std::string text;
    const uint8_t* uuid = volume.fs()->super->s_uuid;
    for (int i = 0; i < 16; ++i) {
        if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
        text += fmt::format("{:02x}", uuid[i]);
    }
    return text;
}

}  // namespace

void warn_about_fstab(const Context& context, const Volume& volume, const std::string& fstab_path) {
    const std::string uuid = "UUID=" + uuid_of(volume);
    const char* raw = reinterpret_cast<const char*>(volume.fs()->super->s_volume_name);
    const std::string label =
        "LABEL=" + std::string(raw, strnlen(raw, sizeof volume.fs()->super->s_volume_name));
    std::ifstream fstab(fstab_path);
    for (std::string line; std::getline(fstab, line);) {
        std::istringstream words(line);
        std::string device;
        std::string directory;
        std::string type;
        std::string options;
        int dump = 0;
        int pass = 0;
        words >> device >> directory >> type >> options >> dump >> pass;
        const bool ours =
            device == volume.name() || device == uuid || (label != "LABEL=" && device == label);
        if (!ours || !type.starts_with("ext") || pass == 0) continue;
        context.warn(fmt::format(
            "{} has a line for this volume with pass number {}: stock e2fsck refuses an atomic4 "
            "volume, so the boot would stop. Change it to: {} {} atomic4 {} {} {}",
            fstab_path, pass, device, directory, options, dump, pass));
        return;
    }
    context.warn(
        fmt::format("stock e2fsck refuses an atomic4 volume: a line in {} needs type atomic4 (or "
                    "pass number 0), "
                    "such as: {} /MOUNTPOINT atomic4 defaults 0 2",
                    fstab_path, uuid));
}

void warn_about_device(const Context& context, const Device& device, Bytes unit) {
    const auto* file = dynamic_cast<const FileDevice*>(&device);
    if (file != nullptr) {
        const auto start = partition_start(file->fd());
        if (start && start->value() % unit.value() != 0) {
            context.warn(fmt::format(
                "{} starts at byte {} of its disk, which is not a multiple of the unit {}: native "
                "atomic writes will not work; realign the partition to use them",
                device.name(), *start, format_size(unit)));
        }
    }
    const AtomicLimits& limits = device.atomic_limits();
    if (!limits.supported()) {
        context.warn(fmt::format("{}: no hardware atomic writes ({}): the logged engine will serve",
                                 device.name(), limits.why_not));
    } else if (limits.unit_max < unit) {
        context.warn(fmt::format(
            "{}: hardware atomic writes go up to {}, less than the unit {}: the logged engine will "
            "serve larger ones",
            device.name(), format_size(limits.unit_max), format_size(unit)));
    }
}

}  // namespace atomic4::tools
