// The daemon's round trip without I/O: STATX, back to back, against two processes that pass packets
// of the same sizes over a bare SEQPACKET socket. With both sides spinning for up to 50 us before
// they sleep, and with neither.
//
// The client has a processor to itself, the daemon and the other process another one. Left alone,
// the scheduler may put both on one, where sleeping is fast and spinning is hopeless, and it may do
// so with one of the contestants only.

#include <sched.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/unique_fd.h"
#include "bench/daemon.h"
#include "client/client.h"
#include "support/command.h"
#include "support/loop.h"

namespace atomic4::bench {
namespace {

constexpr double kSpinSeconds = 50e-6;
constexpr double kMedianLimit = 12e-6;
constexpr double kTailLimit = 60e-6;
constexpr double kRatioLimit = 1.2;
constexpr size_t kRequest = sizeof(wire::RequestHeader) + sizeof(wire::HandleRequest);
constexpr size_t kReply = sizeof(wire::ReplyHeader) + sizeof(wire::StatxReply);

enum class Waiting { Sleep, Spin };

double spin_seconds(Waiting waiting) {
    return waiting == Waiting::Spin ? kSpinSeconds : 0;
}

// While it lives, this thread and what it starts run on one processor: the allowed ones counted
// from 0, or any where there are too few.
class OnProcessor {
  public:
    explicit OnProcessor(int number) {
        must(sched_getaffinity(0, sizeof before_, &before_) == 0, "sched_getaffinity");
        for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
            if (!CPU_ISSET(cpu, &before_) || number-- > 0) continue;
            cpu_set_t one;
            CPU_ZERO(&one);
            CPU_SET(cpu, &one);
            must(sched_setaffinity(0, sizeof one, &one) == 0, "sched_setaffinity");
            return;
        }
    }
    ~OnProcessor() { sched_setaffinity(0, sizeof before_, &before_); }
    OnProcessor(const OnProcessor&) = delete;
    OnProcessor& operator=(const OnProcessor&) = delete;

  private:
    cpu_set_t before_;
};
constexpr int kClient = 0;
constexpr int kServer = 1;

// The next packet. Spins for so long before it sleeps. Throws at the end of the connection.
size_t receive_packet(int socket, std::span<std::byte> into, double spin_seconds) {
    const double end = spin_seconds > 0 ? seconds() + spin_seconds : 0;
    for (bool sleep = spin_seconds <= 0;;) {
        const ssize_t n = recv(socket, into.data(), into.size(), sleep ? 0 : MSG_DONTWAIT);
        if (n > 0) return static_cast<size_t>(n);
        if (n == 0) throw std::runtime_error("the other side closed the connection");
        must(errno == EAGAIN || errno == EINTR, "recv");
        sleep = sleep || seconds() >= end;
    }
}

struct Latency {
    double median = 0;
    double tail = 0;  // p99
};

template <class RoundTrip>
Latency measure(size_t count, const RoundTrip& round_trip) {
    std::vector<double> latencies;
    latencies.reserve(count);
    for (size_t i = 0; i < count / 10 + 1; ++i) round_trip();
    for (size_t i = 0; i < count; ++i) {
        const double begin = seconds();
        round_trip();
        latencies.push_back(seconds() - begin);
    }
    return {quantile(latencies, 0.5), quantile(latencies, 0.99)};
}

// Another process that answers each packet at once.
class Echo {
  public:
    explicit Echo(Waiting waiting) : waiting_(waiting) {
        int ends[2];
        must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0, "socketpair");
        ours_.reset(ends[0]);
        const UniqueFd theirs(ends[1]);
        const OnProcessor server(kServer);
        pid_ = fork();
        must(pid_ >= 0, "fork");
        if (pid_ == 0) {
            ours_.reset();
            answer(theirs.get());
        }
    }
    ~Echo() {
        kill(pid_, SIGKILL);
        waitpid(pid_, nullptr, 0);
    }
    Echo(const Echo&) = delete;
    Echo& operator=(const Echo&) = delete;

    void round_trip() {
        std::array<std::byte, kRequest> request{};
        std::array<std::byte, kReply> reply{};
        must(send(ours_.get(), request.data(), request.size(), MSG_NOSIGNAL) ==
                 static_cast<ssize_t>(request.size()),
             "send");
        receive_packet(ours_.get(), reply, spin_seconds(waiting_));
    }

  private:
    [[noreturn]] void answer(int socket) const {
        std::array<std::byte, kRequest> request{};
        const std::array<std::byte, kReply> reply{};
        try {
            for (;;) {
                receive_packet(socket, request, spin_seconds(waiting_));
                if (send(socket, reply.data(), reply.size(), MSG_NOSIGNAL) < 0) break;
            }
        } catch (const std::exception&) {
            _exit(1);
        }
        _exit(0);
    }

    Waiting waiting_;
    UniqueFd ours_;
    pid_t pid_ = -1;
};

std::string as_microseconds(double value) {
    return fmt::format("{:.1f} us", value * 1e6);
}

struct Scale {
    int rounds;
    size_t count;  // of round trips
};

struct Medians {
    std::vector<double> median;
    std::vector<double> tail;
    void add(const Latency& latency) {
        median.push_back(latency.median);
        tail.push_back(latency.tail);
    }
};

void print_latency(const std::string& name, const std::vector<double>& ours,
                   const std::vector<double>& peer, std::optional<double> limit) {
    const std::string note = "peer: bare ping-pong";
    if (ours.empty()) {
        print_row({name, "-", as_microseconds(median(peer)), "-", "-", std::nullopt,
                   note + "; " + *why_no_daemon()});
        return;
    }
    const double ratio = median(ours) / median(peer);
    print_row({name, as_microseconds(median(ours)), as_microseconds(median(peer)), as_ratio(ratio),
               "<= " + (limit ? as_microseconds(*limit) : fmt::format("{} x peer", kRatioLimit)),
               limit ? median(ours) <= *limit : ratio <= kRatioLimit, note});
}

// An owned image: no mount is needed, and STATX does no I/O either way.
void measure_waiting(const std::string& image, Waiting waiting, const Scale& scale) {
    Medians ours;
    Medians peer;
    std::optional<test::DaemonProcess> daemon;
    if (!why_no_daemon()) {
        const std::string spin = waiting == Waiting::Spin ? "50" : "0";
        const OnProcessor server(kServer);
        daemon.emplace(image, std::vector<std::string>{"--spin", spin});
    }
    for (int round = 0; round < scale.rounds; ++round) {
        if (daemon) {
            ClientOptions options;
            options.arena = Bytes(0);
            if (waiting == Waiting::Sleep) options.spin_us = {};
            const auto session = must(Client::connect(daemon->socket(), options));
            const File file = must(session->open("/file", wire::kOpenRead));
            const OnProcessor client(kClient);
            ours.add(measure(scale.count, [&] { must(session->statx(file.handle)); }));
        }
        Echo echo(waiting);
        const OnProcessor client(kClient);
        peer.add(measure(scale.count, [&] { echo.round_trip(); }));
    }
    if (daemon) stop(*daemon);
    const bool spin = waiting == Waiting::Spin;
    const std::string name = spin ? "statx, both spin" : "statx, both sleep";
    print_latency(name + ": p50", ours.median, peer.median,
                  spin ? std::optional(kMedianLimit) : std::nullopt);
    print_latency(name + ": p99", ours.tail, peer.tail,
                  spin ? std::optional(kTailLimit) : std::nullopt);
}

}  // namespace
}  // namespace atomic4::bench

int main(int argc, char** argv) {
    using namespace atomic4::bench;
    return run_benchmark(argc, argv, [](Form form) {
        const atomic4::test::TempDir directory;
        const std::string image = directory.file("statx.img");
        atomic4::test::make_image(image, 64 * kMiB);
        run_program({our_program("mkfs.atomic4"), "-q", "-F", image});
        run_program({our_program("atomic4ctl"), "-d", image, "prealloc", "/file", "--size", "1M"});
        const Scale scale = form == Form::Smoke     ? Scale{1, 200}
                            : form == Form::Bounded ? Scale{5, 10'000}
                                                    : Scale{15, 100'000};
        for (const Waiting waiting : {Waiting::Spin, Waiting::Sleep})
            measure_waiting(image, waiting, scale);
    });
}
