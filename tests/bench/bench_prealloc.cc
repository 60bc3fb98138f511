// `atomic4ctl prealloc` of a file in 16 KiB units, on a sparse image, against the kernel's
// fallocate and fsync on a mounted image of the same size. Ours is zeroed, written and durable;
// the kernel's extents are unwritten.

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <vector>

#include "base/unique_fd.h"
#include "bench/bench.h"
#include "support/command.h"
#include "support/loop.h"

namespace atomic4::bench {
namespace {

constexpr uint64_t kUnit = 16 * kKiB;
constexpr double kPeakLimit = 64;  // MiB

// A plain ext4 of the same size, mounted while the object lives.
class Peer {
  public:
    Peer(const std::string& directory, uint64_t image_size)
        : image_(directory + "/peer.img"), point_(directory + "/mnt") {
        test::make_image(image_, image_size);
        run_program({"mke2fs", "-q", "-F", "-t", "ext4", image_});
        must(mkdir(point_.c_str(), 0700) == 0, point_);
        loop_.emplace(image_, std::vector<std::string>{"--direct-io=on"});
        mount_.emplace(loop_->path(), point_,
                       std::vector<std::string>{"-t", "ext4", "-o", "noinit_itable"});
    }
    ~Peer() {
        mount_.reset();
        loop_.reset();
        rmdir(point_.c_str());
        unlink(image_.c_str());
    }
    Peer(const Peer&) = delete;
    Peer& operator=(const Peer&) = delete;

    double fallocate(const std::string& name, uint64_t size) {
        settle(image_);
        const double begin = seconds();
        const UniqueFd fd(
            ::open((point_ + "/" + name).c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
        must(static_cast<bool>(fd), "create on the mounted image");
        must(::fallocate(fd.get(), 0, 0, static_cast<off_t>(size)) == 0, "fallocate");
        must(fsync(fd.get()) == 0, "fsync");
        return seconds() - begin;
    }

  private:
    std::string image_;
    std::string point_;
    std::optional<test::LoopDevice> loop_;
    std::optional<test::Mount> mount_;
};

void check_result(const std::string& image, const std::string& path, uint64_t size) {
    const Spent status =
        run_program({our_program("atomic4ctl"), "--json", "-d", image, "status", path});
    const auto report = nlohmann::json::parse(status.output);
    if (report.at("size") != size || report.at("units").at("mapped") != size / kUnit ||
        report.at("units").at("problems") != 0)
        throw std::runtime_error("prealloc left a wrong file: " + status.output);
}

void measure(const std::string& directory, uint64_t image_size, uint64_t size, double limit,
             int rounds) {
    const std::string image = directory + "/ours.img";
    test::make_image(image, image_size);
    run_program({our_program("mkfs.atomic4"), "-q", "-F", image});
    std::vector<double> ours;
    std::vector<double> peer;
    double peak = 0;
    const auto no_mounts = why_no_mounts();
    std::optional<Peer> mounted;
    if (!no_mounts) mounted.emplace(directory, image_size);
    for (int round = 0; round < rounds; ++round) {
        const std::string name = fmt::format("f{}", round);
        const std::string path = "/" + name;
        settle(image);
        const Spent spent =
            run_program({our_program("atomic4ctl"), "-d", image, "prealloc", path, "--size",
                         std::to_string(size), "--unit", std::to_string(kUnit)});
        check_result(image, path, size);
        ours.push_back(spent.seconds);
        peak = std::max(peak, spent.peak_mib);
        if (mounted) peer.push_back(mounted->fallocate(name, size));
    }
    mounted.reset();
    must(unlink(image.c_str()) == 0, image);
    const std::string row = fmt::format("prealloc {} on {}", as_size(size), as_size(image_size));
    print_row({row, as_seconds(median(ours)), no_mounts ? "-" : as_seconds(median(peer)),
               no_mounts ? "-" : as_ratio(median(ours) / median(peer)), "<= " + as_seconds(limit),
               median(ours) <= limit,
               "peer fallocate+fsync" + (no_mounts ? " skipped: " + *no_mounts : "")});
    print_row({row + ": peak memory", fmt::format("{:.1f} MiB", peak), "-", "-",
               fmt::format("<= {} MiB", kPeakLimit), peak <= kPeakLimit, ""});
}

}  // namespace
}  // namespace atomic4::bench

int main(int argc, char** argv) {
    using namespace atomic4::bench;
    return run_benchmark(argc, argv, [](Form form) {
        const atomic4::test::TempDir directory;
        if (form == Form::Smoke) return measure(directory.path(), 4 * kGiB, kGiB, 1.0, 1);
        const int rounds = form == Form::Long ? 9 : 3;
        measure(directory.path(), kTiB, 100 * kGiB, 1.0, rounds);
        measure(directory.path(), 15 * kTiB, 100 * kGiB, 2.0, rounds);
    });
}
