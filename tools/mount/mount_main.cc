// mount.atomic4: parses, calls, translates exit codes (mount(8)'s).
#include <cstdio>
#include <exception>

#include "mount/mount.h"
#include "mount/run_program.h"

namespace atomic4::tools {
namespace {

constexpr const char* kName = "mount.atomic4";
constexpr const char* kUsage =
    "usage: mount.atomic4 DEVICE DIRECTORY [-sfnv] [-N NAMESPACE] [-o OPTIONS]\n";
enum Exit : int { kDone = 0, kUsageError = 1, kSystemError = 2, kFailure = 32 };

int main_program(const std::vector<std::string>& arguments) {
    for (const std::string& word : arguments) {
        if (word == "-h" || word == "--help") return std::fputs(kUsage, stdout) < 0;
        if (word == "-V" || word == "--version")
            return std::printf("%s %s\n", kName, ATOMIC4_VERSION) < 0;
    }
    const auto request = parse_mount(arguments);
    if (!request) {
        report_error(kName, Error{EINVAL, request.error().message + " (see mount.atomic4(8))"});
        return kUsageError;
    }
    const HeldSignals held;
    if (const auto entered = enter_namespace(request->mount_namespace); !entered) {
        report_error(kName, entered.error());
        return kSystemError;
    }
    const auto done = mount_volume(program_context(kName), *request);
    if (done) return kDone;
    report_error(kName, done.error());
    return done.error().code == ENOMEM ? kSystemError : kFailure;
}

}  // namespace
}  // namespace atomic4::tools

int main(int argc, char** argv) {
    // What throws here is the allocator: nothing of ours does.
    try {
        return atomic4::tools::main_program({argv + 1, argv + argc});
    } catch (const std::exception& error) {
        std::fprintf(stderr, "mount.atomic4: %s\n", error.what());
        return 2;
    }
}
