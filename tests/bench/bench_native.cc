// Native atomic writes at queue depth 16, through the daemon, against pwritev2(RWF_ATOMIC) called
// directly: on an image on XFS, which does atomic writes without hardware. Both write the same
// units of the same image.
//
// The two alternate in short rounds, A B B A, and the ratio is the median of the rounds' ratios.

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <stdexcept>

#include "bench/daemon.h"
#include "bench/site.h"
#include "bench/volume.h"
#include "bench/writers.h"
#include "client/client.h"
#include "device/file_device.h"
#include "support/command.h"

#ifndef RWF_ATOMIC
#define RWF_ATOMIC 0x00000040
#endif

namespace atomic4::bench {
namespace {

constexpr uint64_t kUnit = 16 * kKiB;
constexpr unsigned kDepth = 16;
constexpr double kTarget = 0.9;
constexpr const char* kName = "native 16K, queue depth 16, image on XFS";

struct Scale {
    uint64_t file;
    int rounds;
    double seconds;
};

// Of the file's units, in the image.
std::vector<uint64_t> positions_of(const std::string& image) {
    std::vector<uint64_t> positions;
    for (const DeviceRun& run : runs_of_file(image, "/data"))
        for (uint64_t at = 0; at < run.length.value(); at += kUnit)
            positions.push_back(run.device_offset.value() + at);
    return positions;
}

Figures run_peer(const std::string& image, const std::vector<uint64_t>& positions,
                 const Load& load) {
    return run_writers(load, [&](unsigned index) -> WriteOnce {
        struct State {
            UniqueFd fd;
            Buffer buffer;
            Offsets offsets;
            uint64_t serial;
        };
        auto state = std::make_shared<State>(open_file(image, O_WRONLY | O_DIRECT), Buffer(kUnit),
                                             Offsets(index + 1, positions.size() * kUnit, kUnit),
                                             uint64_t{index} << 32);
        return [&, state] {
            const uint64_t offset = state->offsets.next();
            stamp(state->buffer.bytes(), offset, ++state->serial);
            const iovec vector{state->buffer.data(), kUnit};
            must(
                pwritev2(state->fd.get(), &vector, 1, static_cast<off_t>(positions[offset / kUnit]),
                         RWF_ATOMIC | RWF_DSYNC) == static_cast<ssize_t>(kUnit),
                "atomic write");
            return 1;
        };
    });
}

// So many connections with one write each in flight: the device's queue is as deep.
Figures run_ours(const std::string& socket, uint64_t file_size, const Load& load) {
    return run_writers(load, [&](unsigned index) -> WriteOnce {
        struct State {
            std::unique_ptr<Client> client;
            File file;
            Buffer buffer;
            Offsets offsets;
            uint64_t serial;
        };
        auto state =
            std::make_shared<State>(must(Client::connect(socket)), File{}, Buffer(kUnit),
                                    Offsets(index + 1, file_size, kUnit), uint64_t{index} << 32);
        state->file = must(
            state->client->open("/data", wire::kOpenRead | wire::kOpenWrite | wire::kOpenAtomic,
                                wire::WireEngine::Native));
        return [state] {
            const uint64_t offset = state->offsets.next();
            stamp(state->buffer.bytes(), offset, ++state->serial);
            if (must(state->client->write(state->file.handle, ByteOffset(offset),
                                          state->buffer.bytes()))
                    .engine != wire::WireEngine::Native)
                throw std::runtime_error("a write was not native");
            return 1;
        };
    });
}

void rounds(const std::string& image, const Scale& scale) {
    const auto positions = positions_of(image);
    std::optional<test::DaemonProcess> daemon;
    if (!why_no_daemon()) daemon.emplace(image);
    const Load load{kDepth, kUnit, scale.seconds};
    std::vector<double> ours;
    std::vector<double> peer;
    std::vector<double> ratios;
    const auto run_ours_once = [&] {
        if (daemon) ours.push_back(run_ours(daemon->socket(), scale.file, load).writes_per_second);
    };
    const auto run_peer_once = [&] {
        peer.push_back(run_peer(image, positions, load).writes_per_second);
    };
    for (int round = 0; round < scale.rounds; ++round) {
        run_ours_once();
        run_peer_once();
        run_peer_once();
        run_ours_once();
        const size_t n = peer.size();
        if (daemon) ratios.push_back((ours[n - 1] + ours[n - 2]) / (peer[n - 1] + peer[n - 2]));
    }
    const std::string note = "peer: pwritev2(RWF_ATOMIC|RWF_DSYNC) by 16 threads";
    if (!daemon) {
        print_row({kName, "-", as_rate(median(peer)), "-", "-", std::nullopt,
                   note + "; " + *why_no_daemon()});
        return;
    }
    stop(*daemon);
    print_row({kName, as_rate(median(ours)), as_rate(median(peer)), as_ratio(median(ratios)),
               fmt::format(">= {}", kTarget), median(ratios) >= kTarget, note});
}

void measure(const Scale& scale) {
    if (const auto reason = why_no_mounts()) return print_skipped(kName, *reason);
    if (const auto reason = why_no_filesystem("xfs", "mkfs.xfs"))
        return print_skipped(kName, *reason);
    const test::TempDir directory;
    Site site(directory.path(), 320 * kMiB + 8 * scale.file, scale.file);
    run_program({"mkfs.xfs", "-q", "-f", "-K", site.device()});
    const test::Mount mount(site.device(), site.mount_point(), {"-t", "xfs"});
    const std::string image = site.path("native.img");
    fill(image, 64 * kMiB + 2 * scale.file);
    const auto limits =
        must(FileDevice::open(image, {.access = Access::ReadOnly}))->atomic_limits();
    if (!limits.supported()) return print_skipped(kName, limits.why_not);
    run_program({our_program("mkfs.atomic4"), "-q", "-F", "-E", "nodiscard", image});
    run_program({our_program("atomic4ctl"), "-d", image, "prealloc", "/data", "--size",
                 std::to_string(scale.file), "--unit", std::to_string(kUnit)});
    rounds(image, scale);
}

}  // namespace
}  // namespace atomic4::bench

int main(int argc, char** argv) {
    using namespace atomic4::bench;
    return run_benchmark(argc, argv, [](Form form) {
        measure(form == Form::Smoke     ? Scale{16 * kMiB, 1, 0.03}
                : form == Form::Bounded ? Scale{128 * kMiB, 4, 0.7}
                                        : Scale{512 * kMiB, 15, 2.0});
    });
}
