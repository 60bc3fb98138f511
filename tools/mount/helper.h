// What mount.atomic4 and umount.atomic4 share as programs: mount(8) and umount(8) call both alike,
// and read the same exit codes of them.
#pragma once

#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "common/context.h"
#include "mount/options.h"
#include "mount/run_program.h"

namespace atomic4::tools {

enum HelperExit : int { kDone = 0, kUsageError = 1, kSystemError = 2, kFailure = 32 };

template <class Request>
struct Helper {
    const char* name;
    const char* usage;
    Result<Request> (*parse)(const std::vector<std::string>& arguments);
    Result<> (*carry_out)(const Context& context, const Request& request);
};

template <class Request>
int run_helper(const Helper<Request>& helper, const std::vector<std::string>& arguments) {
    for (const std::string& word : arguments) {
        if (word == "-h" || word == "--help") return std::fputs(helper.usage, stdout) < 0;
        if (word == "-V" || word == "--version")
            return std::printf("%s %s\n", helper.name, ATOMIC4_VERSION) < 0;
    }
    const auto request = helper.parse(arguments);
    if (!request) {
        report_error(helper.name, Error{EINVAL, fmt::format("{} (see {}(8))",
                                                            request.error().message, helper.name)});
        return kUsageError;
    }
    const HeldSignals held;
    if (const auto entered = enter_namespace(request->mount_namespace); !entered) {
        report_error(helper.name, entered.error());
        return kSystemError;
    }
    const auto done = helper.carry_out(program_context(helper.name), *request);
    if (done) return kDone;
    report_error(helper.name, done.error());
    return done.error().code == ENOMEM ? kSystemError : kFailure;
}

// The whole of main().
template <class Request>
int helper_main(const Helper<Request>& helper, int argc, char** argv) {
    // What throws here is the allocator: nothing of ours does.
    try {
        return run_helper(helper, {argv + 1, argv + argc});
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s: %s\n", helper.name, error.what());
        return kSystemError;
    }
}

}  // namespace atomic4::tools
