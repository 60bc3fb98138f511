#include <algorithm>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

#include "atomic4ctl/commands.h"
#include "common/daemon.h"
#include "common/json_report.h"

namespace atomic4::tools {

namespace {

using Clock = std::chrono::steady_clock;

// Microseconds, as ping(8) tells them.
struct RoundTrips {
    double min = 0;
    double average = 0;
    double max = 0;
    double deviation = 0;
};

RoundTrips sum_up(const std::vector<double>& times) {
    RoundTrips result;
    const auto [min, max] = std::minmax_element(times.begin(), times.end());
    result.min = *min;
    result.max = *max;
    const auto n = static_cast<double>(times.size());
    for (const double time : times) result.average += time / n;
    double variance = 0;
    for (const double time : times) variance += (time - result.average) * (time - result.average);
    result.deviation = std::sqrt(variance / n);
    return result;
}

}  // namespace

Result<int> run(const Context& context, const PingCommand& command) {
    const DaemonConnection daemon =
        A4_TRY(connect_daemon({command.socket, command.path}, {.arena = Bytes(0)}));
    const char* target = to_text(daemon.client->daemon().target);
    if (!context.json) context.print(fmt::format("PING {} ({})\n", daemon.socket, target));
    std::vector<double> times;
    for (uint32_t i = 1; i <= command.count; ++i) {
        if (i > 1 && command.interval > 0)
            std::this_thread::sleep_for(std::chrono::duration<double>(command.interval));
        const auto since = Clock::now();
        A4_CHECK(daemon.client->ping().context(daemon.socket));
        times.push_back(std::chrono::duration<double, std::micro>(Clock::now() - since).count());
        if (context.json) continue;
        context.print(fmt::format("answer {}: time={:.1f} us\n", i, times.back()));
        context.out.flush();
    }
    const RoundTrips trips = sum_up(times);
    if (context.json) {
        const nlohmann::json json = {
            {"socket", daemon.socket},    {"target", target},        {"count", times.size()},
            {"min_us", trips.min},        {"avg_us", trips.average}, {"max_us", trips.max},
            {"mdev_us", trips.deviation},
        };
        print_json(context, json);
        return 0;
    }
    context.print(
        fmt::format("--- {} ping statistics ---\n{} requests, {} answers\n"
                    "rtt min/avg/max/mdev = {:.1f}/{:.1f}/{:.1f}/{:.1f} us\n",
                    daemon.socket, command.count, times.size(), trips.min, trips.average, trips.max,
                    trips.deviation));
    return 0;
}

}  // namespace atomic4::tools
