#include "bench/bench.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <stdexcept>

#include "base/size_parse.h"
#include "base/unique_fd.h"
#include "support/loop.h"

extern char** environ;

namespace atomic4::bench {

int run_benchmark(int argc, char** argv, const std::function<void(Form)>& benchmark) {
    Form form = Form::Bounded;
    if (argc == 2 && std::string_view(argv[1]) == "--smoke") {
        form = Form::Smoke;
    } else if (argc == 2 && std::string_view(argv[1]) == "--long") {
        form = Form::Long;
    } else if (argc != 1) {
        fmt::print(stderr, "usage: {} [--smoke|--long]\n", argv[0]);
        return 2;
    }
    try {
        benchmark(form);
    } catch (const std::exception& error) {
        std::fflush(stdout);
        fmt::print(stderr, "{}: {}\n", argv[0], error.what());
        return 1;
    }
    return 0;
}

void must(bool ok, const std::string& what) {
    if (!ok) throw std::runtime_error(what + ": " + std::strerror(errno));
}

double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

double median(std::vector<double> values) {
    if (values.empty()) throw std::runtime_error("a median of nothing");
    std::ranges::sort(values);
    const size_t middle = values.size() / 2;
    return values.size() % 2 != 0 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

Spent run_program(const std::vector<std::string>& arguments) {
    int ends[2];
    must(pipe2(ends, O_CLOEXEC) == 0, "pipe2");
    UniqueFd from(ends[0]);
    UniqueFd to(ends[1]);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, to.get(), 1);
    posix_spawn_file_actions_adddup2(&actions, to.get(), 2);
    std::vector<char*> argv;
    for (const std::string& argument : arguments)
        argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    pid_t pid = -1;
    const double begin = seconds();
    const int error = posix_spawnp(&pid, argv[0], &actions, nullptr, argv.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    if (error != 0) throw std::runtime_error(arguments[0] + ": " + std::strerror(error));
    to.reset();
    Spent spent;
    char buffer[4096];
    for (ssize_t n = 0; (n = read(from.get(), buffer, sizeof buffer)) > 0;)
        spent.output.append(buffer, static_cast<size_t>(n));
    int status = 0;
    rusage usage{};
    while (wait4(pid, &status, 0, &usage) < 0 && errno == EINTR) {
    }
    spent.seconds = seconds() - begin;
    spent.peak_mib = static_cast<double>(usage.ru_maxrss) / 1024;
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        throw std::runtime_error(
            fmt::format("{} ended with status {:#x}: {}", arguments[0], status, spent.output));
    }
    return spent;
}

void settle(const std::string& path) {
    const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    must(fd && fsync(fd.get()) == 0, path);
}

double quantile(std::vector<double> values, double part) {
    if (values.empty()) throw std::runtime_error("a quantile of nothing");
    std::ranges::sort(values);
    return values[static_cast<size_t>(part * static_cast<double>(values.size() - 1))];
}

std::optional<std::string> why_no_mounts() {
    if (::geteuid() != 0) return "root is needed for a loop mount";
    return test::LoopDevice::why_not();
}

void print_row(const Row& row) {
    const char* verdict = !row.met ? "-" : *row.met ? "met" : "MISSED";
    fmt::print("{:<44} {:>12} {:>12} {:>7}  {:<14} {:<6} {}\n", row.name, row.ours, row.peer,
               row.ratio, row.target, verdict, row.note);
    std::fflush(stdout);
}

void print_skipped(const std::string& name, const std::string& reason) {
    print_row({name, "-", "-", "-", "-", std::nullopt, "skipped: " + reason});
}

std::string as_seconds(double value) {
    return value < 0.1 ? fmt::format("{:.1f} ms", value * 1000) : fmt::format("{:.3f} s", value);
}

std::string as_rate(double per_second) {
    return fmt::format("{:.0f}/s", per_second);
}

std::string as_ratio(double value) {
    return fmt::format("{:.2f}", value);
}

std::string as_size(uint64_t bytes) {
    return format_size(Bytes(bytes));
}

}  // namespace atomic4::bench
