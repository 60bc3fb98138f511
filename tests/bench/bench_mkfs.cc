// mkfs.atomic4 against mke2fs on fresh sparse images, plus the zeroing of the log, for which a
// plain direct write of as many zeros to another sparse image stands. The three take turns.

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <vector>

#include "base/unique_fd.h"
#include "bench/bench.h"
#include "support/command.h"
#include "support/loop.h"
#include "writer/enable.h"

namespace atomic4::bench {
namespace {

double write_zeros(const std::string& path, uint64_t length) {
    const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_DIRECT | O_CLOEXEC));
    must(static_cast<bool>(fd), path);
    const std::unique_ptr<void, decltype(&std::free)> zeros(std::aligned_alloc(4096, kMiB),
                                                            &std::free);
    std::fill_n(static_cast<char*>(zeros.get()), kMiB, '\0');
    const double begin = seconds();
    for (uint64_t at = 0; at < length; at += kMiB) {
        const uint64_t n = std::min(kMiB, length - at);
        must(pwrite(fd.get(), zeros.get(), n, static_cast<off_t>(kGiB / 2 + at)) ==
                 static_cast<ssize_t>(n),
             path);
    }
    must(fdatasync(fd.get()) == 0, path);
    return seconds() - begin;
}

void measure(const std::string& image, uint64_t size, int rounds) {
    const std::string mkfs = our_program("mkfs.atomic4");
    std::vector<double> ours;
    std::vector<double> peer;
    std::vector<double> zeroing;
    const uint64_t log = default_log_size(Bytes(size)).value();
    for (int round = 0; round < rounds; ++round) {
        test::make_image(image, size);
        settle(image);
        peer.push_back(run_program({"mke2fs", "-q", "-F", "-t", "ext4", image}).seconds);
        test::make_image(image, size);
        settle(image);
        zeroing.push_back(write_zeros(image, log));
        test::make_image(image, size);
        settle(image);
        ours.push_back(run_program({mkfs, "-q", "-F", image}).seconds);
    }
    run_program({our_program("atomic4ctl"), "info", image});
    // Round by round: the disk may be in another mood in the next.
    std::vector<double> limit;
    std::vector<double> share;
    for (size_t i = 0; i < ours.size(); ++i) {
        limit.push_back(1.2 * peer[i] + 0.050 + zeroing[i]);
        share.push_back(ours[i] / limit[i]);
    }
    print_row({fmt::format("mkfs {}", as_size(size)), as_seconds(median(ours)),
               as_seconds(median(peer)), as_ratio(median(ours) / median(peer)),
               "<= " + as_seconds(median(limit)), median(share) <= 1,
               fmt::format("peer mke2fs; zeroing {} of log {}; {:.2f} of the limit", as_size(log),
                           as_seconds(median(zeroing)), median(share))});
    must(unlink(image.c_str()) == 0, image);
}

}  // namespace
}  // namespace atomic4::bench

int main(int argc, char** argv) {
    using namespace atomic4::bench;
    return run_benchmark(argc, argv, [](Form form) {
        const atomic4::test::TempDir directory;
        const std::string image = directory.file("mkfs.img");
        if (form == Form::Smoke) return measure(image, kGiB, 1);
        const bool is_long = form == Form::Long;
        measure(image, kGiB, is_long ? 9 : 5);
        measure(image, kTiB, is_long ? 9 : 3);
        // mke2fs's own time varies the most here.
        measure(image, 15 * kTiB, is_long ? 9 : 5);
    });
}
