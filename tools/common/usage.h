// What a program says when its command line is off: one line, and where to look. Only mains include
// this, since it includes CLI11.
#pragma once

#include <CLI/CLI.hpp>
#include <iostream>

namespace atomic4::tools {

// 0 for --help and --version (printed to stdout), 2 for a usage error (one line on stderr).
inline int report_usage(const CLI::App& app, const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error, std::cout, std::cerr);
    std::cerr << app.get_name() << ": " << error.what() << " (see " << app.get_name()
              << " --help)\n";
    return 2;
}

}  // namespace atomic4::tools
