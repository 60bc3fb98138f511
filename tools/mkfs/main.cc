// mkfs.atomic4: parses, calls, translates exit codes.
#include <CLI/CLI.hpp>
#include <iostream>

#include "base/program.h"
#include "base/size_parse.h"
#include "common/usage.h"
#include "mkfs/mkfs.h"

namespace atomic4::tools {
namespace {

constexpr const char* kName = "mkfs.atomic4";

int main_program(int argc, char** argv) {
    CLI::App app{"Formats a device or image as ext4 (stock mke2fs does it) and enables atomic4.",
                 kName};
    MkfsCommand command;
    bool version = false;
    const auto size_option = [&](const char* name, std::optional<Bytes>& into, const char* help) {
        app.add_option_function<std::string>(
               name,
               [&into](const std::string& text) {
                   const auto size = parse_size(text);
                   if (!size) throw CLI::ValidationError(size.error().message);
                   into = *size;
               },
               help)
            ->type_name("SIZE");
    };
    size_option("-u,--unit", command.unit, "default unit of atomic files (16K)");
    size_option("-l,--log-size", command.log_size,
                "size of the redo log (1/64 of the volume, 8M to 256M)");
    // mke2fs's own, passed on as they are.
    const auto pass = [&](const char* name, const char* type, const char* help) {
        app.add_option_function<std::vector<std::string>>(
               name,
               [&command, name](const std::vector<std::string>& values) {
                   for (const std::string& value : values) {
                       command.mke2fs_options.emplace_back(name);
                       command.mke2fs_options.push_back(value);
                       if (name[1] == 'O') command.features += value + ",";
                       if (name[1] == 'b') {
                           if (const auto size = parse_size(value))
                               command.block_size = size->value();
                       }
                   }
               },
               help)
            ->type_name(type)
            ->allow_extra_args(false)
            ->group("Passed on to mke2fs");
    };
    pass("-b", "BLOCK-SIZE", "block size: 1024, 2048, 4096; 65536: never mounted on x86");
    pass("-C", "CLUSTER-SIZE", "cluster size (with -O bigalloc)");
    pass("-E", "EXTENDED", "extended options");
    pass("-g", "BLOCKS", "blocks per group");
    pass("-G", "GROUPS", "groups per flex group");
    pass("-i", "RATIO", "bytes per inode");
    pass("-I", "INODE-SIZE", "inode size");
    pass("-J", "JOURNAL", "journal options");
    pass("-L", "LABEL", "volume label");
    pass("-m", "PERCENT", "reserved blocks");
    pass("-N", "INODES", "number of inodes");
    pass("-O", "FEATURES", "features");
    pass("-r", "REVISION", "filesystem revision");
    pass("-T", "TYPE", "usage type");
    pass("-U", "UUID", "volume UUID");
    app.add_flag("-F", command.force, "overwrite a known signature; also passed on to mke2fs");
    app.add_flag("-n", command.dry_run, "only say what would be done; change nothing");
    app.add_flag("-q", command.quiet, "say nothing unless something fails");
    bool verbose = false;
    app.add_flag("-v", verbose, "let mke2fs be verbose");
    app.add_flag("-V", version, "print the version, and mke2fs's");
    app.add_option("DEVICE", command.device, "a block device or an image file");
    app.add_option("SIZE", command.size, "the filesystem's size, as mke2fs takes it: 512M");
    try {
        app.parse(argc, argv);
        if (version) {
            std::cout << kName << " " << ATOMIC4_VERSION << "\n" << std::flush;
            return std::system("PATH=$PATH:/usr/sbin:/sbin mke2fs -V") == 0 ? 0 : 1;
        }
        if (command.device.empty()) throw CLI::RequiredError("DEVICE");
    } catch (const CLI::ParseError& error) {
        return report_usage(app, error);
    }
    for (const auto& [flag, given] :
         {std::pair{"-F", command.force}, std::pair{"-n", command.dry_run},
          std::pair{"-q", command.quiet}, std::pair{"-v", verbose}}) {
        if (given) command.mke2fs_options.emplace_back(flag);
    }
    const Context context = program_context(kName);
    const Result<int> status = run(context, command);
    std::cout.flush();
    if (!status) {
        report_error(kName, status.error());
        return 1;
    }
    return *status;
}

}  // namespace
}  // namespace atomic4::tools

int main(int argc, char** argv) {
    return atomic4::run_program("mkfs.atomic4", 1, atomic4::tools::main_program, argc, argv);
}
