// Opening a volume: `atomic4ctl info` against `dumpe2fs -h`, and opening for writing in the
// library, which also reads the redo log and proves that it is empty.

#include <unistd.h>

#include "bench/bench.h"
#include "device/file_device.h"
#include "support/command.h"
#include "support/loop.h"
#include "writer/open_volume.h"

namespace atomic4::bench {
namespace {

constexpr double kLimit = 0.050;

void measure(const std::string& image, uint64_t size, int rounds) {
    test::make_image(image, size);
    run_program({our_program("mkfs.atomic4"), "-q", "-F", image});
    std::vector<double> info;
    std::vector<double> peer;
    std::vector<double> opening;
    for (int round = 0; round < rounds; ++round) {
        info.push_back(run_program({our_program("atomic4ctl"), "info", image}).seconds);
        peer.push_back(run_program({"dumpe2fs", "-h", image}).seconds);
        const double begin = seconds();
        auto device = must(FileDevice::open(image, {.access = Access::ReadWrite}));
        const auto opened = must(open_for_writing(std::move(device)));
        opening.push_back(seconds() - begin);
    }
    const std::string target = "<= " + as_seconds(kLimit);
    print_row({fmt::format("open {}: atomic4ctl info", as_size(size)), as_seconds(median(info)),
               as_seconds(median(peer)), as_ratio(median(info) / median(peer)), target,
               median(info) <= kLimit, "peer dumpe2fs -h"});
    print_row({fmt::format("open {}: for writing", as_size(size)), as_seconds(median(opening)), "-",
               "-", target, median(opening) <= kLimit, ""});
    must(unlink(image.c_str()) == 0, image);
}

}  // namespace
}  // namespace atomic4::bench

int main(int argc, char** argv) {
    using namespace atomic4::bench;
    return run_benchmark(argc, argv, [](Form form) {
        const atomic4::test::TempDir directory;
        const std::string image = directory.file("open.img");
        if (form == Form::Smoke) return measure(image, kGiB, 1);
        const int rounds = form == Form::Long ? 21 : 5;
        for (const uint64_t size : {kGiB, 64 * kGiB, kTiB, 15 * kTiB}) measure(image, size, rounds);
    });
}
