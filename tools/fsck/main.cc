// fsck.atomic4: parses, calls, translates exit codes.
#include <fcntl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <iostream>

#include "base/program.h"
#include "common/usage.h"
#include "fsck/e2fsck.h"
#include "fsck/fsck.h"

namespace atomic4::tools {
namespace {

constexpr const char* kName = "fsck.atomic4";

int main_program(int argc, char** argv) {
    CLI::App app{
        "Checks and repairs an atomic4 volume: replays its journal and redo log, and runs e2fsck "
        "so that atomic files stay where they are.",
        kName};
    FsckCommand command;
    bool preen = false;
    bool no = false;
    bool yes = false;
    bool version = false;
    app.add_flag("-p,-a", preen,
                 "repair what can be repaired without losing anything; ask nothing");
    app.add_flag("-n", no, "change nothing, answer no to all questions");
    app.add_flag("-y", yes, "answer yes to all questions");
    app.add_flag("-f", command.force, "check even if it seems clean");
    app.add_flag("-v", command.verbose, "be verbose");
    app.add_option("-C", command.progress, "write progress to this file descriptor; 0: show it")
        ->type_name("FD");
    bool ignored = false;
    app.add_flag("-r", ignored, "does nothing, as in e2fsck");
    app.add_flag("-V", version, "print the version, and e2fsck's");
    app.add_option("-b", command.superblock, "use this superblock copy")
        ->type_name("SUPERBLOCK")
        ->group("Passed on to e2fsck");
    app.add_option("-B", command.block_size, "block size at which to look for it")
        ->type_name("BLOCKSIZE")
        ->group("Passed on to e2fsck");
    app.add_option("-j", command.journal, "device of the external journal")
        ->type_name("JOURNAL")
        ->group("Passed on to e2fsck");
    std::vector<std::string> extended;
    app.add_option("-E", extended, "extended options")
        ->type_name("EXTENDED")
        ->allow_extra_args(false)
        ->group("Passed on to e2fsck");
    app.add_option("DEVICE", command.device, "a block device or an image file");
    try {
        app.parse(argc, argv);
        if (version) {
            std::cout << kName << " " << ATOMIC4_VERSION << "\n" << std::flush;
            return std::system("PATH=$PATH:/usr/sbin:/sbin e2fsck -V") == 0 ? 0 : kFsckOperational;
        }
        if (command.device.empty()) throw CLI::RequiredError("DEVICE");
        if (int{preen} + int{no} + int{yes} > 1)
            throw CLI::ValidationError("only one of -p (-a), -n and -y may be given");
    } catch (const CLI::ParseError& error) {
        return report_usage(app, error) == 0 ? 0 : kFsckUsage;
    }
    // To e2fsck it is no option either.
    if (command.device.starts_with("-")) command.device = "./" + command.device;
    for (const std::string& one : extended) {
        if (!command.extended.empty()) command.extended += ",";
        command.extended += one;
    }
    command.mode = preen ? FsckMode::Preen
                   : no  ? FsckMode::No
                   : yes ? FsckMode::Yes
                         : FsckMode::Ask;
    // Before anything is opened that could get its number.
    if (command.progress.value_or(0) > 0 && ::fcntl(*command.progress, F_GETFD) < 0) {
        report_error(kName, Error::from_errno(errno, fmt::format("-C {}", *command.progress)));
        return kFsckOperational;
    }
    Context context = program_context(kName);
    // Our passes and e2fsck read the same.
    context.open_device = open_real_device_buffered;
    if (command.mode == FsckMode::Ask && (::isatty(0) == 0 || ::isatty(1) == 0)) {
        report_error(kName, Error{ENOTTY, "needs a terminal to ask questions: -p, -n or -y"});
        return kFsckOperational;
    }
    const Result<int> status = run(context, command, become_e2fsck);
    std::cout.flush();
    if (!status) {
        report_error(kName, status.error());
        return kFsckOperational;
    }
    return *status;
}

}  // namespace
}  // namespace atomic4::tools

int main(int argc, char** argv) {
    return atomic4::run_program("fsck.atomic4", atomic4::tools::kFsckOperational,
                                atomic4::tools::main_program, argc, argv);
}
