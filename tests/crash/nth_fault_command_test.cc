// Every command of the programs, with a fault at each of its I/Os (fault_driver.h): what the
// library's own fault tests promise, and in addition that a command says what happened.
//
//   - A command that fails has printed no report; one that succeeds prints the report that it
//     prints without a fault. Exit status 1 with a report ("has problems") counts as an error that
//     is reported.
//   - Commands that only look leave every byte of the image as it is.
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "atomic4ctl/commands.h"
#include "device/read_only_device.h"
#include "ext4/path.h"
#include "mkfs/mkfs.h"
#include "support/bytes.h"
#include "support/command.h"
#include "support/fault_driver.h"
#include "support/fault_files.h"
#include "unit/volume_fixture.h"

namespace atomic4::test {
namespace {

using namespace tools;

constexpr uint64_t kUnit = kFaultUnit;

using Program = std::function<Result<int>(const Context&)>;

// What a run of a command said.
struct Said {
    Result<int> status{0};
    std::string out;
};

// The command on this device, as its program runs it. A device that is opened for reading can't be
// written.
Said run_command_on(Device& device, const Program& program, bool json) {
    ReadOnlyDevice read_only(device);
    std::ostringstream out;
    const Context context{
        [&](const std::string&, Access access, Sharing) -> Result<std::unique_ptr<Device>> {
            if (access == Access::ReadOnly) return borrowed(read_only);
            return borrowed(device);
        },
        out, [](const std::string&) {}, json};
    Said said;
    said.status = program(context);
    said.out = out.str();
    return said;
}

struct CommandCase {
    std::string name;
    Image image;
    Program program = nullptr;
    std::function<std::string(Image&)> right = nullptr;  // null: the image is as it was
    std::function<std::string(Image&)> intact = nullptr;
    std::function<std::string(Image&)> unchanged = nullptr;
    AtomicLimits atomic_limits = AtomicLimits::none("not in this test");
    bool json = false;
    // What a success may print, if that is more than what it prints without a fault.
    std::function<bool(const std::string&)> says_so = nullptr;
    // Its output is data, of which an error leaves the beginning.
    bool streams = false;
};

FaultOperation operation_of(const CommandCase& it) {
    FaultOperation operation;
    operation.name = it.name;
    operation.image = it.image;
    operation.atomic_limits = it.atomic_limits;

    Image scratch = it.image;
    ImageDevice device(scratch);
    device.set_atomic_limits(it.atomic_limits);
    const Said expected = run_command_on(device, it.program, it.json);
    if (!expected.status)
        throw std::runtime_error(it.name + ": " + expected.status.error().message);

    // The driver's run is followed by its conditions, which look at what the run said.
    struct Last {
        Said said;
        bool first = true;  // not the run that repeats the command after an error
    };
    const auto last = std::make_shared<Last>();
    operation.run = [=, program = it.program, json = it.json](Device& device) -> Result<> {
        last->said = run_command_on(device, program, json);
        const Result<int>& status = last->said.status;
        if (!status) return fail(Error(status.error()));
        if (*status != 0) return fail(EIO, "exit status {}: {}", *status, last->said.out);
        return {};
    };
    operation.right = [=](Image& image) -> std::string {
        const Said& said = last->said;
        const bool first = std::exchange(last->first, true);
        if (said.status && first && said.out != expected.out &&
            (!it.says_so || !it.says_so(said.out)))
            return "a success that reports: " + said.out;
        if (said.status && !first && said.out.empty() && !expected.out.empty())
            return "a success without a report";
        if (it.right) return it.right(image);
        // A command that only looks. After an error the driver has recovered the volume.
        return first && image != it.image ? "looking changed something" : "";
    };
    operation.intact = [=](Image& image) -> std::string {
        const Said& said = last->said;
        last->first = false;
        if (!said.status && it.streams && !expected.out.starts_with(said.out))
            return "an error after wrong output";
        if (!said.status && !it.streams && !said.out.empty())
            return "an error, and yet it prints: " + said.out;
        return it.intact ? it.intact(image) : std::string();
    };
    operation.unchanged = it.unchanged;
    return operation;
}

void run_with_every_fault(const CommandCase& it) {
    run_with_every_fault(operation_of(it));
}

// Right and intact: these files hold what they did.
void keeps(CommandCase& it, const std::vector<FileModel>& models,
           const std::function<std::string(Image&)>& state) {
    it.intact = [models](Image& image) { return files_hold(image, models); };
    it.right = [models, state](Image& image) {
        const auto wrong = state(image);
        return wrong.empty() ? files_hold(image, models) : wrong;
    };
}

std::string is_recovered(Image& image) {
    if (raw_super(image).needs_replay) return "needs-replay is set";
    ImageDevice device(image);
    return message_of(open_for_reading(borrowed(device)));
}

// A volume that lost power in the middle of its last logged write, and what its files must hold
// after recovery.
FaultFiles make_interrupted() {
    std::mt19937_64 random(45);
    FaultFiles files = make_fault_files(true);
    Scenario scenario(files.image, files.models);
    log_three_writes(scenario, random);
    return {scenario.device().image_after(scenario.device().events(), 0), scenario.files()};
}

// The same, mounted by somebody since and changed: every record is a conflict.
FaultFiles make_conflict() {
    FaultFiles files = make_interrupted();
    edit_super(files.image, [](ext2_super_block& super) {
        super.s_mtime = 1;
        ++super.s_mnt_count;
    });
    return files;
}

// --- The volume -------------------------------------------------------------------------------

TEST(NthFaultCommand, Enable) {
    const FaultFiles files = make_fault_files(false);
    CommandCase it{.name = "atomic4ctl enable", .image = files.image};
    it.program = [](const Context& context) {
        return run(context, EnableCommand{"image", Bytes(0), std::nullopt});
    };
    keeps(it, files.models, is_enabled);
    it.unchanged = is_plain;
    run_with_every_fault(it);
}

TEST(NthFaultCommand, MkfsEnables) {
    const FaultFiles files = make_fault_files(false);
    const auto half_done = std::make_shared<bool>();
    CommandCase it{.name = "mkfs.atomic4, after mke2fs", .image = files.image};
    it.program = [=](const Context& context) -> Result<int> {
        *half_done = false;
        MkfsCommand command;
        command.device = "image";
        A4_TRY(enable_new(context, command, {}, *half_done));
        return 0;
    };
    keeps(it, files.models, is_enabled);
    it.unchanged = is_plain;
    // Whatever is not as it was, mkfs must format again.
    it.intact = [=, before = files.image](Image& image) {
        return *half_done || is_plain(image).empty() ? "" : "half-done, and mkfs doesn't know";
    };
    run_with_every_fault(it);
}

TEST(NthFaultCommand, Disable) {
    for (const bool force : {false, true}) {
        FaultFiles files = make_fault_files(true);
        if (!force) {
            ImageDevice device(files.image);
            const auto volume = open_volume(device);
            for (const size_t i : {kAtomic, kSparse})
                must(release_file(*volume, files.models[i].inode));
        }
        CommandCase it{.name = force ? "atomic4ctl disable --force" : "atomic4ctl disable",
                       .image = files.image};
        it.program = [force](const Context& context) {
            return run(context, DisableCommand{"image", force});
        };
        keeps(it, files.models, is_plain);
        run_with_every_fault(it);
    }
}

// Acknowledged writes that are only in the log are not lost with it.
TEST(NthFaultCommand, DisableReplays) {
    const FaultFiles files = make_interrupted();
    CommandCase it{.name = "atomic4ctl disable --force after a crash", .image = files.image};
    it.program = [](const Context& context) { return run(context, DisableCommand{"image", true}); };
    keeps(it, files.models, is_plain);
    // The files hold it only when the log has been replayed; the driver's recovery does that, but
    // where disable went on, there is nothing left to recover.
    run_with_every_fault(it);
}

TEST(NthFaultCommand, Recover) {
    const FaultFiles files = make_interrupted();
    CommandCase it{.name = "atomic4ctl recover", .image = files.image};
    it.program = [](const Context& context) { return run(context, RecoverCommand{"image"}); };
    keeps(it, files.models, is_recovered);
    run_with_every_fault(it);
}

TEST(NthFaultCommand, RecoverForce) {
    const FaultFiles files = make_conflict();
    CommandCase it{.name = "atomic4ctl recover --force", .image = files.image};
    it.program = [](const Context& context) {
        return run(context, RecoverCommand{"image", OnConflict::Force});
    };
    keeps(it, files.models, is_recovered);
    it.intact = nullptr;  // what an error leaves is still in the log, and so not yet in the files
    run_with_every_fault(it);
}

TEST(NthFaultCommand, RecoverDiscard) {
    const FaultFiles files = make_conflict();
    CommandCase it{.name = "atomic4ctl recover --discard", .image = files.image};
    it.program = [](const Context& context) {
        return run(context, RecoverCommand{"image", OnConflict::Discard});
    };
    it.right = is_recovered;
    run_with_every_fault(it);
}

// --- Files ------------------------------------------------------------------------------------

TEST(NthFaultCommand, Prealloc) {
    for (const uint64_t units : {3, 0}) {
        const FaultFiles files = make_fault_files(true);
        CommandCase it{.name = fmt::format("atomic4ctl prealloc of {} units", units),
                       .image = files.image};
        it.program = [units](const Context& context) {
            PreallocCommand command;
            command.device = "image";
            command.path = "/new";
            command.size = Bytes(units * kUnit);
            if (units == 0) command.unit = Bytes(4096);
            return run(context, command);
        };
        const Bytes unit(units == 0 ? 4096 : kUnit);
        keeps(it, files.models, [=](Image& image) -> std::string {
            ImageDevice device(image);
            const auto volume = open_volume(device, OpenFor::Read, true);
            const auto inode = lookup(*volume, "/new");
            if (!inode) return inode.error().message;
            const auto file = read_file(*volume, *inode);
            if (!file) return file.error().message;
            const auto layout = check_layout(*volume, *file, unit);
            if (!layout) return layout.error().message;
            const bool right = file->atomic && file->unit == unit && layout->problems == 0 &&
                               layout->units_mapped == units;
            return right ? "" : "the file is not what was asked for";
        });
        it.unchanged = [](Image& image) -> std::string {
            ImageDevice device(image);
            const auto volume = open_volume(device, OpenFor::Read);
            return lookup(*volume, "/new") ? "/new is there" : "";
        };
        run_with_every_fault(it);
    }
}

// Whether a file has flag and unit, and the layout that goes with them.
Result<bool> is_adopted(Image& image, const std::string& path) {
    ImageDevice device(image);
    const auto volume = open_volume(device, OpenFor::Read, true);
    const FileState file = A4_TRY(read_file(*volume, A4_TRY(lookup(*volume, path))));
    const LayoutReport layout = A4_TRY(check_layout(*volume, file, Bytes(kUnit)));
    return file.atomic && file.unit == Bytes(kUnit) && layout.problems == 0;
}

TEST(NthFaultCommand, Adopt) {
    for (const size_t i : {kMixed, kTree}) {
        const FaultFiles files = make_fault_files(true);
        const std::string path = files.models[i].path;
        CommandCase it{.name = "atomic4ctl adopt " + path, .image = files.image};
        it.program = [path](const Context& context) {
            return run(context, AdoptCommand{"image", path, Bytes(kUnit)});
        };
        keeps(it, files.models, [path](Image& image) -> std::string {
            const auto adopted = is_adopted(image, path);
            if (!adopted) return adopted.error().message;
            return *adopted ? "" : "the file is not adopted";
        });
        it.unchanged = [path](Image& image) -> std::string {
            const auto adopted = is_adopted(image, path);
            if (!adopted) return adopted.error().message;
            return *adopted ? "the file is adopted" : "";
        };
        run_with_every_fault(it);
    }
}

TEST(NthFaultCommand, Release) {
    const FaultFiles files = make_fault_files(true);
    const std::string path = files.models[kAtomic].path;
    CommandCase it{.name = "atomic4ctl release", .image = files.image};
    it.program = [path](const Context& context) {
        return run(context, ReleaseCommand{"image", path});
    };
    keeps(it, files.models, [path](Image& image) -> std::string {
        ImageDevice device(image);
        const auto volume = open_volume(device, OpenFor::Read, true);
        const FileState file = must(read_file(*volume, must(lookup(*volume, path))));
        return file.atomic || file.unit ? "the file is not released" : "";
    });
    run_with_every_fault(it);
}

struct WriteCase {
    const char* name;
    size_t file;
    uint64_t offset;
    uint64_t length;
    bool plain = false;
    Engine engine = Engine::Auto;
};

TEST(NthFaultCommand, Write) {
    const WriteCase cases[] = {
        {"over mapped blocks", kAtomic, kUnit, kUnit},
        {"into a hole", kTree, 2048, 2048},
        {"over unwritten blocks", kMixed, 8192, 8192},
        {"beyond EOF", kSparse, kUnit, kUnit},
        {"natively", kAtomic, kUnit, kUnit, false, Engine::Native},
        {"plainly", kAtomic, 100, 5000, true},
        {"plainly beyond EOF", kSparse, 20000, 3000, true},
    };
    const TempDir dir;
    std::mt19937_64 random(47);
    const FaultFiles files = make_fault_files(true);
    for (const WriteCase& write : cases) {
        const auto data = random_bytes(write.length, random);
        store_image(data, dir.file("data"));
        CommandCase it{.name = fmt::format("atomic4ctl write {}", write.name),
                       .image = files.image};
        it.program = [&](const Context& context) {
            WriteCommand command;
            command.device = "image";
            command.path = files.models[write.file].path;
            command.offset = ByteOffset(write.offset);
            command.from = dir.file("data");
            command.plain = write.plain;
            command.engine = write.engine;
            return run(context, command);
        };
        if (write.engine == Engine::Native) {
            it.atomic_limits.unit_min = Bytes(1024);
            it.atomic_limits.unit_max = Bytes(65536);
        }
        auto before = files.models;
        auto after = files.models;
        after[write.file].write(write.offset, data);
        if (write.plain) before[write.file].mark_unsure(write.offset, write.length);
        it.right = [after](Image& image) { return files_hold(image, after); };
        it.intact = [before, after](Image& image) {
            return compare_files(image, {nullptr, before, after});
        };
        run_with_every_fault(it);
    }
}

// --- Looking ----------------------------------------------------------------------------------

// Nothing is changed, whatever happens; a success says what it says without a fault.
CommandCase looking(const std::string& name, const Image& image, Program program) {
    CommandCase it{.name = "atomic4ctl " + name, .image = image, .program = std::move(program)};
    it.unchanged = [image](Image& now) { return now == image ? "" : "looking changed something"; };
    return it;
}

void look_with_every_fault(CommandCase it) {
    run_with_every_fault(it);
    it.json = true;
    it.name += " --json";
    run_with_every_fault(it);
}

TEST(NthFaultCommand, Ls) {
    look_with_every_fault(looking("ls", make_fault_files(true).image, [](const Context& context) {
        return run(context, LsCommand{"image"});
    }));
}

TEST(NthFaultCommand, Map) {
    const Image image = make_fault_files(true).image;
    for (const char* path : {"/atomic", "/tree"}) {
        look_with_every_fault(
            looking(std::string("map ") + path, image, [=](const Context& context) {
                return run(context, MapCommand{"image", path, {}, {}});
            }));
    }
}

TEST(NthFaultCommand, Status) {
    look_with_every_fault(looking(
        "status", make_fault_files(true).image,
        [](const Context& context) { return run(context, StatusCommand{"image", "/atomic"}); }));
}

TEST(NthFaultCommand, Check) {
    const Image image = make_fault_files(true).image;
    // What can't be read is a problem that is reported, or an error; never clean.
    look_with_every_fault(looking("check", image, [](const Context& context) {
        return run(context, CheckCommand{"image", std::nullopt});
    }));
    look_with_every_fault(looking("check /atomic", image, [](const Context& context) {
        return run(context, CheckCommand{"image", "/atomic"});
    }));
}

// A volume whose log has so many runs that they need a tree block.
Image make_log_in_pieces() {
    constexpr uint64_t kPiece = 64 << 10;
    FaultFiles files = make_fault_files(false);
    ImageDevice device(files.image);
    {
        const auto volume = open_volume(device);
        std::vector<ext2_ino_t> holes;
        while (const auto made = create_atomic_file(*volume, fmt::format("/piece{}", holes.size()),
                                                    {Bytes(kPiece), Bytes(kPiece)}))
            holes.push_back(*made);
        fill_up(*volume, 24);
        for (size_t i = 0; i < 14; i += 2) {
            Transaction transaction(*volume);
            must(unlink_name(*volume, {EXT2_ROOT_INO, fmt::format("piece{}", i)}, holes.at(i)));
            must(stage_delete(*volume, holes[i]));
            must(transaction.commit(Transaction::Order::Freeing));
        }
        EnableOptions options;
        options.log_size = Bytes(6 * kPiece);
        must(enable(*volume, options));
    }
    return files.image;
}

// It looks at volumes in whatever state, and so goes on after an error; but says so, and doesn't
// take what it could not read for what is missing.
TEST(NthFaultCommand, Info) {
    for (const Image& image :
         {make_fault_files(true).image, make_interrupted().image, make_log_in_pieces()}) {
        CommandCase it = looking("info", image, [](const Context& context) {
            return run(context, InfoCommand{"image"});
        });
        it.says_so = [](const std::string& out) {
            return out.find("interrupted") == out.npos &&
                   (out.find("error") != out.npos || out.find("No space left") != out.npos);
        };
        look_with_every_fault(it);
    }
}

TEST(NthFaultCommand, Read) {
    const FaultFiles files = make_fault_files(true);
    for (const size_t i : {kAtomic, kMixed, kTree}) {
        const FileModel& model = files.models[i];
        CommandCase it = looking("read " + model.path, files.image, [&](const Context& context) {
            return run(context,
                       ReadCommand{"image", model.path, ByteOffset(0), Bytes(model.bytes.size())});
        });
        it.streams = true;
        it.says_so = [&](const std::string& out) {
            return out == std::string(reinterpret_cast<const char*>(model.bytes.data()),
                                      model.bytes.size());
        };
        run_with_every_fault(it);
    }
}

}  // namespace
}  // namespace atomic4::test
