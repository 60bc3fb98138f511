// atomic4ctl: parses, calls, translates exit codes.
#include <CLI/CLI.hpp>
#include <iostream>

#include "atomic4ctl/commands.h"
#include "base/program.h"
#include "base/size_parse.h"
#include "common/usage.h"

namespace atomic4::tools {
namespace {

constexpr const char* kName = "atomic4ctl";

// Sizes by our own parser: the library's turns -1 into 2^64-1.
template <class Store>
std::function<bool(const std::vector<std::string>&)> size_into(Store store) {
    return [store](const std::vector<std::string>& words) {
        const auto size = parse_size(words.at(0));
        if (!size) throw CLI::ValidationError(size.error().message);
        store(*size);
        return true;
    };
}

template <class Store>
CLI::Option* add_size(CLI::App* app, const char* name, Store store, const char* help) {
    return app->add_option(name, size_into(store), help)->type_name("SIZE");
}

void parse_owner(const std::string& text, uint32_t* uid, uint32_t* gid) {
    const size_t colon = text.find(':');
    const auto number = [&](const std::string& word) -> uint32_t {
        size_t used = 0;
        unsigned long value = 0;
        try {
            if (word.empty() || word[0] == '-' || word[0] == '+') throw std::invalid_argument(word);
            value = std::stoul(word, &used);
        } catch (const std::logic_error&) {
            used = std::string::npos;
        }
        if (used != word.size() || value > 0xfffffffe)
            throw CLI::ValidationError("--owner '" + text + "': want UID:GID as numbers");
        return static_cast<uint32_t>(value);
    };
    if (colon == std::string::npos)
        throw CLI::ValidationError("--owner '" + text + "': want UID:GID as numbers");
    *uid = number(text.substr(0, colon));
    *gid = number(text.substr(colon + 1));
}

uint16_t parse_mode(const std::string& text) {
    if (text.empty() || text.size() > 4 || text.find_first_not_of("01234567") != std::string::npos)
        throw CLI::ValidationError("--mode '" + text + "': want an octal mode such as 0640");
    return static_cast<uint16_t>(std::stoul(text, nullptr, 8));
}

int main_program(int argc, char** argv) {
    CLI::App app{
        "Works on the atomic files of an ext4 volume: itself if nobody has mounted it (-d DEVICE), "
        "or through the volume's daemon.",
        kName};
    app.set_version_flag("-V,--version", std::string("atomic4ctl ") + ATOMIC4_VERSION);
    app.require_subcommand(1);
    app.fallthrough();
    Context context = program_context(kName);
    std::string device;
    std::string socket;
    CLI::Option* device_option =
        app.add_option("-d,--device", device, "the volume: an image file or a block device")
            ->type_name("IMAGE|DEVICE");
    app.add_option("--socket", socket,
                   "the socket of the daemon (the default one of the volume that PATH is on)")
        ->type_name("SOCKET")
        ->excludes(device_option);
    app.add_flag("--json", context.json, "report as JSON");

    std::function<Result<int>()> action;
    const auto add = [&](const char* name, const char* help) {
        CLI::App* command = app.add_subcommand(name, help);
        return command;
    };
    const auto no_daemon = [&](const char* name) {
        if (!socket.empty())
            throw CLI::ValidationError(
                fmt::format("{} works on an unmounted volume, not through a --socket", name));
    };
    const auto named = [](const std::string& name) {
        return name.empty() ? std::string("an empty file name") : std::string();
    };
    const auto no_device = [&](const char* name) {
        if (!device.empty())
            throw CLI::ValidationError(fmt::format(
                "{} names its DEVICE itself: -d is for commands on the files of a volume", name));
    };
    // Commands on a whole volume name it themselves; those on its files need -d.
    const auto on_device = [&](CLI::App* command, auto& options) {
        command->add_option("DEVICE", options.device, "an image file or a block device")
            ->required();
        command->callback([&, command] {
            no_daemon(command->get_name().c_str());
            no_device(command->get_name().c_str());
            action = [&] { return naming_volume(options, run(context, options)); };
        });
    };
    const auto in_device = [&](CLI::App* command, auto& options) {
        command->callback([&, command] {
            no_daemon(command->get_name().c_str());
            if (device.empty()) throw CLI::RequiredError("-d IMAGE|DEVICE");
            options.device = device;
            action = [&] { return naming_volume(options, run(context, options)); };
        });
    };
    // On a file of an unmounted volume, or through a daemon.
    const auto on_file = [&](CLI::App* command, auto& options) {
        command
            ->add_option("PATH", options.path,
                         "the file: inside the volume with -d, else as this system names it")
            ->required();
        command->callback([&] {
            options.device = device;
            options.socket = socket;
            action = [&] { return naming_volume(options, run(context, options)); };
        });
    };
    const auto on_daemon = [&](CLI::App* command, auto& options) {
        command->add_option("PATH", options.path,
                            "the mount point, or any file on the volume, instead of --socket");
        command->callback([&] {
            if (!device.empty())
                throw CLI::ValidationError("a daemon is found by its --socket or a PATH, not -d");
            if (socket.empty() == options.path.empty())
                throw CLI::RequiredError("either --socket or a PATH on the volume");
            options.socket = socket;
            action = [&] { return run(context, options); };
        });
    };

    EnableCommand enable_options;
    CLI::App* enable = add("enable", "make an existing ext4 an atomic4 volume, in place");
    add_size(
        enable, "-u,--unit", [&](Bytes size) { enable_options.unit = size; },
        "default unit of new files (16K)");
    add_size(
        enable, "-l,--log-size", [&](Bytes size) { enable_options.log_size = size; },
        "size of the redo log (1/64 of the volume, 8M to 256M)");
    on_device(enable, enable_options);

    DisableCommand disable_options;
    CLI::App* disable = add("disable", "make it a plain ext4 again");
    disable->add_flag("--force", disable_options.force, "release the atomic files that exist");
    on_device(disable, disable_options);

    InfoCommand info_options;
    on_device(add("info", "what the volume is, and the state of its log"), info_options);

    RecoverCommand recover_options;
    CLI::App* recover = add("recover", "replay the redo log after a crash");
    bool force = false;
    bool discard = false;
    CLI::Option* force_flag = recover->add_flag(
        "--force", force, "replay conflicting records too, and empty a corrupt log");
    recover->add_flag("--discard", discard, "drop the records without replaying them")
        ->excludes(force_flag);
    recover->add_flag("--clear-mmp", recover_options.clear_mmp,
                      "take away the mark that a crash left in the MMP block");
    recover->add_option("DEVICE", recover_options.device, "an image file or a block device")
        ->required();
    recover->callback([&] {
        no_daemon("recover");
        no_device("recover");
        recover_options.policy = force     ? OnConflict::Force
                                 : discard ? OnConflict::Discard
                                           : OnConflict::Keep;
        action = [&] { return naming_volume(recover_options, run(context, recover_options)); };
    });

    LsCommand ls_options;
    CLI::App* ls = add("ls", "list the volume's atomic files");
    in_device(ls, ls_options);

    PreallocCommand prealloc_options;
    CLI::App* prealloc = add("prealloc", "create an atomic file with aligned extents");
    add_size(
        prealloc, "--size", [&](Bytes size) { prealloc_options.size = size; },
        "the file's size; 0 makes an empty atomic file")
        ->required();
    add_size(
        prealloc, "--unit", [&](Bytes size) { prealloc_options.unit = size; },
        "the file's unit (the volume's default)");
    prealloc
        ->add_option_function<std::string>(
            "--mode", [&](const std::string& text) { prealloc_options.mode = parse_mode(text); },
            "permissions in octal (0644)")
        ->type_name("MODE");
    prealloc
        ->add_option_function<std::string>(
            "--owner",
            [&](const std::string& text) {
                parse_owner(text, &prealloc_options.uid, &prealloc_options.gid);
            },
            "owner and group as numbers (0:0)")
        ->type_name("UID:GID");
    prealloc->add_option("PATH", prealloc_options.path, "the file, inside the volume")->required();
    in_device(prealloc, prealloc_options);

    AdoptCommand adopt_options;
    CLI::App* adopt = add("adopt", "give an existing file aligned units");
    add_size(
        adopt, "--unit", [&](Bytes size) { adopt_options.unit = size; },
        "the file's unit (the one it has, else the volume's default)");
    adopt->add_option("PATH", adopt_options.path, "the file, inside the volume")->required();
    in_device(adopt, adopt_options);

    ReleaseCommand release_options;
    CLI::App* release = add("release", "make an atomic file an ordinary one again");
    release->add_option("PATH", release_options.path, "the file, inside the volume")->required();
    in_device(release, release_options);

    StatusCommand status_options;
    on_file(add("status", "a file's limits, layout and engine"), status_options);

    CheckCommand check_options;
    CLI::App* check = add("check", "check the gate, the log and the layout of atomic files");
    check->add_option("PATH", check_options.path, "one file, inside the volume");
    in_device(check, check_options);

    MapCommand map_options;
    CLI::App* map = add("map", "a file's units and where they lie on the device");
    map->add_option("PATH", map_options.path, "the file, inside the volume")->required();
    add_size(
        map, "-u,--unit", [&](Bytes size) { map_options.unit = size; },
        "seen in such units (the file's own)");
    map->add_option("--svg", map_options.svg, "a picture of it, into that file")
        ->type_name("FILE")
        ->check(named);
    in_device(map, map_options);

    FragCommand frag_options;
    CLI::App* frag = add("frag", "how much of the free space aligned units can use");
    frag->add_option("--svg", frag_options.svg, "a picture of it, into that file")
        ->type_name("FILE")
        ->check(named);
    on_device(frag, frag_options);

    GuardCommand guard_options;
    CLI::App* guard = add("guard", "run a stock tool, which can't touch atomic files");
    guard->add_flag("-n,--read-only", guard_options.read_only, "the tool can only read");
    on_device(guard, guard_options);
    guard
        ->add_option("COMMAND", guard_options.command,
                     "after DEVICE and --: the tool and its arguments, {} for DEVICE")
        ->required();

    WriteCommand write_options;
    CLI::App* write = add("write", "write atomically");
    add_size(
        write, "--offset", [&](Bytes size) { write_options.offset = ByteOffset(size.value()); },
        "where in the file")
        ->required();
    add_size(
        write, "--length", [&](Bytes size) { write_options.length = size; },
        "how much (all of the input)");
    write->add_option("--from", write_options.from, "a file, or - for standard input (-)")
        ->type_name("FILE|-");
    CLI::Option* plain = write->add_flag("--plain", write_options.plain, "not atomically");
    write
        ->add_option_function<std::string>(
            "--engine",
            [&](const std::string& text) {
                const auto engine = parse_engine(text);
                if (!engine) throw CLI::ValidationError(engine.error().message);
                write_options.engine = *engine;
            },
            "auto, native or logged (auto)")
        ->type_name("ENGINE")
        ->excludes(plain);
    on_file(write, write_options);

    ReadCommand read_options;
    CLI::App* read = add("read", "read to standard output");
    add_size(
        read, "--offset", [&](Bytes size) { read_options.offset = ByteOffset(size.value()); },
        "where in the file")
        ->required();
    add_size(
        read, "--length", [&](Bytes size) { read_options.length = size; }, "how much")
        ->required();
    on_file(read, read_options);

    StatsCommand stats_options;
    CLI::App* stats = add("stats", "what a daemon has counted, as JSON");
    stats->add_flag("--prometheus", stats_options.prometheus, "as Prometheus text instead");
    on_daemon(stats, stats_options);

    PingCommand ping_options;
    CLI::App* ping = add("ping", "how long a daemon takes to answer");
    ping->add_option("-c,--count", ping_options.count, "how many requests (10)")
        ->type_name("COUNT")
        ->check(CLI::Range(1, 1000000));
    ping->add_option("-i,--interval", ping_options.interval,
                     "seconds between an answer and the next request (0.1)")
        ->type_name("SECONDS")
        ->check(CLI::Range(0.0, 3600.0));
    on_daemon(ping, ping_options);

    FreezeCommand freeze_options;
    on_daemon(add("freeze", "let a daemon finish everything, and hold new writes"), freeze_options);
    FreezeCommand thaw_options;
    thaw_options.freeze = false;
    on_daemon(add("thaw", "let writes go on"), thaw_options);

    try {
        app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
        // Otherwise it is only said that a command is missing.
        const auto words = app.remaining();
        if (error.get_exit_code() != 0 && app.get_subcommands().empty() && !words.empty() &&
            !words.front().starts_with('-')) {
            std::cerr << kName << ": '" << words.front() << "' is no command (see " << kName
                      << " --help)\n";
            return 2;
        }
        return report_usage(app, error);
    }
    const Result<int> status = action();
    if (!status) {
        std::cout.flush();
        report_error(kName, status.error());
        return 1;
    }
    std::cout.flush();
    if (!std::cout) {
        report_error(kName, Error{EIO, "standard output: write failed"});
        return 1;
    }
    return *status;
}

}  // namespace
}  // namespace atomic4::tools

int main(int argc, char** argv) {
    return atomic4::run_program("atomic4ctl", 1, atomic4::tools::main_program, argc, argv);
}
