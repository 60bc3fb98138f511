// What benchmarks say about the atomic4d that they measure.
#pragma once

#include <optional>
#include <string>

#include "bench/bench.h"
#include "support/daemon_process.h"

namespace atomic4::bench {

// Why there is no daemon to measure.
std::optional<std::string> why_no_daemon();

// SIGTERM; throws unless it exits 0.
void stop(test::DaemonProcess& daemon);

}  // namespace atomic4::bench
