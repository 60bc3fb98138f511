// What the benchmarks share: forms, timing, programs with their peak memory, and rows.
//
// A benchmark prints one row for each case, ours and the peer's figure side by side from the same
// run. Missing a target is a row that says MISSED, not an error. A crash, a failed program or a
// wrong result throws, and the program exits 1.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/units.h"
#include "support/command.h"
#include "support/results.h"

namespace atomic4::bench {

inline constexpr uint64_t kKiB = 1024;
inline constexpr uint64_t kMiB = kKiB * 1024;
inline constexpr uint64_t kGiB = kMiB * 1024;
inline constexpr uint64_t kTiB = kGiB * 1024;

enum class Form {
    Smoke,    // seconds; proves that the benchmark runs, its figures mean nothing
    Bounded,  // all of run.sh together about 2 minutes
    Long,
};

// main() of every benchmark: [--smoke|--long].
int run_benchmark(int argc, char** argv, const std::function<void(Form)>& benchmark);

using test::must;
// For system calls; strerror(errno) is added.
void must(bool ok, const std::string& what);

double seconds();  // a steady clock
double median(std::vector<double> values);
double quantile(std::vector<double> values, double part);  // part: 0 … 1

struct Spent {
    double seconds = 0;
    double peak_mib = 0;
    std::string output;
};
// Runs a program to its end; throws unless it exits 0.
Spent run_program(const std::vector<std::string>& arguments);
using test::our_program;

// fsync: what was written to the image, or freed on its host, is not in the time that follows.
void settle(const std::string& path);

// Why loop mounts can't be made here.
std::optional<std::string> why_no_mounts();

// Figures are texts with their units. Without a verdict the row only reports.
struct Row {
    std::string name;
    std::string ours;
    std::string peer;
    std::string ratio;
    std::string target;
    std::optional<bool> met;
    std::string note;
};
void print_row(const Row& row);
void print_skipped(const std::string& name, const std::string& reason);

std::string as_seconds(double value);
std::string as_rate(double per_second);
std::string as_ratio(double value);
std::string as_size(uint64_t bytes);

}  // namespace atomic4::bench
