#include "bench/daemon.h"

#include <filesystem>
#include <stdexcept>

namespace atomic4::bench {

std::optional<std::string> why_no_daemon() {
    const std::string program = our_program("atomic4d");
    if (std::filesystem::exists(program)) return std::nullopt;
    return "there is no " + program;
}

void stop(test::DaemonProcess& daemon) {
    if (const int status = daemon.stop(); status != 0)
        throw std::runtime_error(fmt::format("atomic4d: status {}: {}", status, daemon.said()));
}

}  // namespace atomic4::bench
