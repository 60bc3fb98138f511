#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "atomic4ctl/commands.h"
#include "base/text.h"
#include "check/repair.h"
#include "common/json_report.h"
#include "common/open.h"
#include "device/forwarding_device.h"
#include "device/read_only_device.h"
#include "guard/atomic_files.h"
#include "guard/guarded_run.h"
#include "guard/rehearsal_device.h"

namespace atomic4::tools {

namespace {

// What env(1), timeout(1) and their like exit with when it is they who failed.
constexpr int kGuardFailed = 125;
constexpr int kSignalled = 128;

struct Ran {
    GuardedExit exit;
    uint64_t writes = 0;
    uint64_t superblocks = 0;
    std::vector<std::string> refused;
    std::vector<std::string> changed;  // atomic files

    bool kept() const { return refused.empty() && !exit.refused && changed.empty(); }
};

Result<Ran> run_and_compare(Device& device, const ProtectedSet& set, const std::string& path,
                            const std::vector<std::string>& words) {
    Ran ran;
    const auto masked = A4_TRY(SuperblockMask::make(device));
    GuardedDevice guarded(*masked, set);
    ran.exit = A4_TRY(run_guarded(guarded, path, words));
    if (guarded.failure())
        return fail(Error(*guarded.failure()).with_context("under " + words.front()));
    A4_CHECK(device.read_only() ? Result<>{} : device.flush());
    ran.writes = guarded.writes();
    ran.superblocks = masked->writes_masked();
    for (const Refusal& refusal : guarded.refusals()) ran.refused.push_back(refusal.to_text());
    VolumeOptions options;
    options.purpose = OpenFor::Inspect;
    ReadOnlyDevice looking(device);
    const auto volume = A4_TRY(Volume::open(lent(looking), options).context("afterwards"));
    for (const FileChange& change : A4_TRY(changes_in(*volume, set).context("afterwards")))
        ran.changed.push_back(change.text);
    if (ran.writes == 0) return ran;
    for (const Finding& finding : A4_TRY(check_volume(*volume).context("afterwards")).findings) {
        if (severity_of(finding.id) == Severity::Problem) ran.changed.push_back(text_of(finding));
    }
    return ran;
}

// `resize2fs DEVICE SIZE`: its own kinds of number are blocks, or s, K, M, G, T.
std::optional<uint64_t> resize_to(const std::vector<std::string>& words, uint64_t block_size) {
    const std::string& last = words.back();
    if (words.size() < 3 || last.empty() || std::isdigit(static_cast<unsigned char>(last[0])) == 0)
        return std::nullopt;
    uint64_t value = 0;
    size_t at = 0;
    while (at < last.size() && std::isdigit(static_cast<unsigned char>(last[at])) != 0 &&
           value < (uint64_t{1} << 50))
        value = value * 10 + static_cast<uint64_t>(last[at++] - '0');
    const std::string unit = last.substr(at);
    if (unit.empty()) return value;
    if (unit == "s") return value * 512 / block_size;
    const std::string units = "KMGT";
    const size_t power = units.find(static_cast<char>(std::toupper(unit[0])));
    if (unit.size() != 1 || power == units.npos) return std::nullopt;
    return (value << (10 * (power + 1))) / block_size;
}

// What can be told without running it.
Result<> check_resize(const ProtectedSet& set, const std::vector<std::string>& words) {
    const auto end = resize_to(words, set.block_size().value());
    if (!end) return {};
    for (const ProtectedFile& file : set.files()) {
        uint64_t last = 0;
        for (const Mapping& mapping : file.mappings)
            last = std::max(last, (mapping.pblk + mapping.length).value() - 1);
        for (const ProtectedFile::Node& node : file.nodes)
            last = std::max(last, node.block.value());
        if (last >= *end) {
            return fail(EPERM,
                        "refused, nothing is changed: block {} of {} lies beyond the new end, {}",
                        last, name_of_file(file.path, file.number), *end);
        }
    }
    return {};
}

nlohmann::json json_report(const GuardCommand& command, const ProtectedSet& set, const Ran& ran) {
    return {{"device", command.device},  {"files", set.files().size()},
            {"status", ran.exit.status}, {"signal", ran.exit.signal},
            {"writes", ran.writes},      {"superblock_writes", ran.superblocks},
            {"refused", ran.refused},    {"changed", ran.changed}};
}

std::string list(const std::vector<std::string>& lines) {
    std::string text;
    for (const std::string& line : lines) text += "  " + printable(line) + "\n";
    return text;
}

std::string text_report(const GuardCommand& command, const ProtectedSet& set, const Ran& ran) {
    std::string text;
    if (!ran.refused.empty() || ran.exit.refused) {
        text += fmt::format(
            "{}: {} was ended, since it wrote where it must not:\n{}", command.device,
            printable(command.command.front()),
            list(ran.refused.empty() ? std::vector<std::string>{"the superblock"} : ran.refused));
    }
    if (!ran.changed.empty()) {
        text += fmt::format("{}: atomic files are not as they were:\n{}", command.device,
                            list(ran.changed));
    }
    if (!text.empty()) return text;
    return fmt::format("{}: {} as before; {}, {} of them of superblocks\n", command.device,
                       counted(set.files().size(), "atomic file"), counted(ran.writes, "write"),
                       ran.superblocks);
}

}  // namespace

Result<int> run(const Context& context, const GuardCommand& command) {
    const auto device = A4_TRY(context.open_device(
        command.device, command.read_only ? Access::ReadOnly : Access::ReadWrite,
        Sharing::Exclusive));
    std::optional<ReadOnlyDevice> looking(*device);
    ProtectedSet set;
    {
        const auto volume = A4_TRY(Volume::open(lent(*looking), VolumeOptions{}));
        warn_of_repairs(context, command.device, volume->notices());
        // What records say is for the files as they are, and some tool may write where they will.
        if (volume->needs_replay() && !command.read_only) {
            return fail(EBUSY,
                        "{}: its redo log has to be replayed first: run fsck.atomic4 -p, or "
                        "atomic4ctl recover",
                        command.device);
        }
        set = A4_TRY(protect_atomic_files(*volume));
    }
    std::vector<std::string> words = command.command;
    for (std::string& word : words) {
        for (size_t at = 0; (at = word.find("{}", at)) != word.npos; at += command.device.size())
            word.replace(at, 2, command.device);
    }
    const bool rehearsed =
        !command.read_only && std::filesystem::path(words.front()).filename() == "resize2fs";
    if (rehearsed) {
        A4_CHECK(check_resize(set, words));
        const auto rehearsal = A4_TRY(RehearsalDevice::make(*device));
        if (!context.json) context.print_beside(command.device + ": a rehearsal, on a copy:\n");
        const Ran ran =
            A4_TRY(run_and_compare(*rehearsal, set, command.device, words).context("rehearsal"));
        if (!ran.kept()) {
            const std::string& why = !ran.refused.empty()  ? ran.refused.front()
                                     : ran.changed.empty() ? std::string("a write was refused")
                                                           : ran.changed.front();
            return fail(EPERM, "refused, nothing is changed: in a rehearsal {}", why);
        }
        if (ran.exit.signal != 0 || ran.exit.status != 0) {
            context.warn(fmt::format("{}: it was a rehearsal that failed: nothing is changed",
                                     command.device));
            return ran.exit.signal != 0 ? kSignalled + ran.exit.signal : ran.exit.status;
        }
    }
    if (rehearsed && !context.json)
        context.print_beside(command.device + ": and now on the device itself:\n");
    Device& used = command.read_only ? static_cast<Device&>(*looking) : *device;
    const Ran ran = A4_TRY(run_and_compare(used, set, command.device, words));
    context.print_beside(context.json ? json_text(json_report(command, set, ran))
                                      : text_report(command, set, ran));
    if (!ran.kept()) return kGuardFailed;
    if (ran.exit.signal != 0) return kSignalled + ran.exit.signal;
    return ran.exit.status;
}

}  // namespace atomic4::tools
