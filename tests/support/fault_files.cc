#include "support/fault_files.h"

#include <stdexcept>

#include "ext4/path.h"
#include "support/bytes.h"
#include "support/results.h"

namespace atomic4::test {

namespace {

const std::vector<std::string> kArguments{"-b", "1024", "-g", "1024", "-N", "64"};

}  // namespace

FaultFiles make_fault_files(bool enabled) {
    std::mt19937_64 random(42);
    FaultFiles files;
    files.image =
        enabled ? make_atomic4(kFaultSize, kArguments) : make_ext4(kFaultSize, kArguments);
    ImageDevice device(files.image);
    const auto volume = must(open_any(device, OpenFor::Write));
    const auto atomic = [&](const std::string& path, uint64_t size) {
        const ext2_ino_t inode =
            must(create_atomic_file(*volume, path, {Bytes(size), Bytes(kFaultUnit)}));
        FileModel model{path, inode, must(read_file(*volume, inode)).generation, {}, {}};
        model.bytes.resize(size);
        model.unsure.resize(size / kSector);
        files.models.push_back(model);
    };
    if (enabled) {
        atomic("/atomic", 4 * kFaultUnit);
        atomic("/sparse", 0);
    }
    files.models.push_back(make_file(*volume, "/mixed", 24 * kFaultBlock,
                                     {{0, 8}, {8, 8, MapState::Unwritten}}, random));
    files.models.push_back(make_file(*volume, "/tree", 24 * kFaultBlock,
                                     {{0, 2}, {4, 2}, {8, 2}, {12, 2}, {16, 2}, {20, 2}}, random));
    return files;
}

void log_three_writes(Scenario& scenario, std::mt19937_64& random) {
    scenario.write(kAtomic, 0, random_bytes(kFaultUnit, random));
    scenario.write(kMixed, 8192, random_bytes(8192, random));
    scenario.write(kSparse, 2 * kFaultUnit, random_bytes(kFaultUnit, random));
}

std::string files_hold(Image& image, const std::vector<FileModel>& models) {
    ImageDevice device(image);
    const auto volume = open_any(device, OpenFor::Read);
    if (!volume) return volume.error().message;
    for (const FileModel& model : models) {
        if (auto wrong = same_bytes(**volume, model); !wrong.empty()) return wrong;
    }
    return {};
}

std::string is_plain(Image& image) {
    ImageDevice device(image);
    const auto volume = open_any(device, OpenFor::Inspect);
    if (!volume) return volume.error().message;
    if ((*volume)->gate()) return "a gate bit is set";
    if ((*volume)->attr() || (*volume)->attr_error()) return "the volume attribute is there";
    if (lookup(**volume, "/.atomic4")) return "/.atomic4 is there";
    return {};
}

std::string is_enabled(Image& image) {
    ImageDevice device(image);
    const auto opened = open_for_writing(borrowed(device));
    if (!opened) return opened.error().message;
    if (!opened->volume->gate_in_primary()) return "the primary has no gate";
    for (const BackupSuperblock& backup : opened->volume->backups()) {
        if (!backup.gate) return "a backup has no gate";
    }
    return {};
}

}  // namespace atomic4::test
