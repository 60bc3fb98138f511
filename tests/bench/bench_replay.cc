// Replay of a full 64 MiB log, against writing 128 MiB to the same place on the device: the log has
// to be read and its bytes written, so twice that is what a recovery may cost.
//
// The log is filled by the library, and nothing is placed, as after a power cut at the worst
// moment. Rounds of recovery (`atomic4ctl recover`, a process as a user runs it) and of the plain
// writes alternate. After each recovery the file must hold every unit's last logged bytes.

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <random>
#include <stdexcept>

#include "base/unique_fd.h"
#include "bench/bench.h"
#include "bench/volume.h"
#include "device/file_device.h"
#include "ext4/path.h"
#include "redo/redo_log.h"
#include "redo/volume_log.h"
#include "support/command.h"
#include "support/loop.h"
#include "writer/atomic_writer.h"

namespace atomic4::bench {
namespace {

constexpr uint64_t kUnit = 16 * kKiB;
constexpr double kTarget = 2.0;
constexpr const char* kPath = "/db";

struct Scale {
    uint64_t file;
    uint64_t log;
    int rounds;
};

// The serial of the last logged write of each unit.
using Expected = std::map<uint64_t, uint64_t>;

void stamp(std::span<std::byte> unit, uint64_t serial) {
    for (size_t at = 0; at < unit.size(); at += sizeof serial)
        std::memcpy(unit.data() + at, &serial, sizeof serial);
}

// Appends records of so many units at random places until the log takes no more.
Expected fill_log(const std::string& image, size_t units_a_record, uint64_t first_serial) {
    auto device = must(FileDevice::open(image, {.access = Access::ReadWrite}));
    OpenVolume opened = must(open_for_writing(std::move(device)));
    Volume& volume = *opened.volume;
    const FileState file = must(read_file(volume, must(lookup(volume, kPath))));
    must(volume.write_needs_replay(true));
    const auto log = must(RedoLog::begin(*opened.log, opened.log_contents, session_stamp(volume)));

    std::mt19937_64 random(first_serial);
    std::vector<std::byte> bytes(units_a_record * kUnit);
    Expected expected;
    for (uint64_t serial = first_serial;; serial += units_a_record) {
        std::vector<RangeRef> ranges;
        std::vector<std::span<const std::byte>> data;
        for (size_t i = 0; i < units_a_record; ++i) {
            const uint64_t unit = random() % (file.size.value() / kUnit);
            const auto payload = std::span(bytes).subspan(i * kUnit, kUnit);
            stamp(payload, serial + i);
            ranges.push_back(
                {file.number, file.generation, ByteOffset(unit * kUnit), Bytes(kUnit), Bytes(0)});
            data.push_back(payload);
        }
        if (!log->has_room(ranges)) break;
        must(log->append(ranges, data));
        for (size_t i = 0; i < units_a_record; ++i)
            expected[ranges[i].offset.value() / kUnit] = serial + i;
    }
    return expected;
}

// So much of the file's blocks, in order and in large pieces: the fastest that the device takes.
double time_to_write(const std::string& image, const std::vector<DeviceRun>& runs,
                     uint64_t length) {
    const UniqueFd fd(::open(image.c_str(), O_WRONLY | O_DIRECT | O_CLOEXEC));
    must(static_cast<bool>(fd), image);
    LogBuffer memory;
    const auto buffer = must(memory.get(Bytes(kMiB)));
    std::memset(buffer.data(), 0x5a, buffer.size());
    const double start = seconds();
    for (const DeviceRun& run : runs) {
        const uint64_t end = std::min(run.length.value(), length);
        for (uint64_t at = 0; at < end; at += kMiB) {
            const size_t piece = std::min(kMiB, end - at);
            must(pwrite(fd.get(), buffer.data(), piece,
                        static_cast<off_t>(run.device_offset.value() + at)) ==
                     static_cast<ssize_t>(piece),
                 "plain write");
        }
        length -= end;
    }
    must(fdatasync(fd.get()) == 0, image);
    return seconds() - start;
}

void verify(const std::string& image, const Expected& expected) {
    auto device = must(FileDevice::open(image, {.access = Access::ReadOnly}));
    const auto reader = must(AtomicWriter::open(must(open_for_reading(std::move(device)))));
    const ext2_ino_t inode = must(lookup(reader->volume(), kPath));
    std::vector<std::byte> found(kUnit);
    std::vector<std::byte> wanted(kUnit);
    for (const auto& [unit, serial] : expected) {
        stamp(wanted, serial);
        must(reader->read(inode, ByteOffset(unit * kUnit), found));
        if (found != wanted)
            throw std::runtime_error(fmt::format("unit {} was not replayed rightly", unit));
    }
}

void measure(const std::string& image, size_t units_a_record, const Scale& scale) {
    test::make_image(image, 2 * scale.file);
    run_program({our_program("mkfs.atomic4"), "-q", "-F", "-l", std::to_string(scale.log), image});
    run_program({our_program("atomic4ctl"), "-d", image, "prealloc", kPath, "--size",
                 std::to_string(scale.file), "--unit", std::to_string(kUnit)});
    const auto runs = runs_of_file(image, kPath);
    time_to_write(image, runs, scale.file);  // nobody pays for the host's allocation

    std::vector<double> ours;
    std::vector<double> peer;
    std::vector<double> ratios;
    uint64_t serial = 1;
    for (int round = 0; round < scale.rounds; ++round) {
        peer.push_back(time_to_write(image, runs, 2 * scale.log));
        const Expected expected = fill_log(image, units_a_record, serial);
        serial += 2 * scale.log / kUnit;
        settle(image);
        ours.push_back(run_program({our_program("atomic4ctl"), "recover", image}).seconds);
        verify(image, expected);
        ratios.push_back(ours.back() / peer.back());
    }
    must(unlink(image.c_str()) == 0, image);
    const double ratio = median(ratios);
    print_row({fmt::format("replay {}, {} x 16K a record", as_size(scale.log), units_a_record),
               as_seconds(median(ours)), as_seconds(median(peer)), as_ratio(ratio),
               fmt::format("<= {}", kTarget), ratio <= kTarget,
               fmt::format("peer: write {}; {} rounds, {:.2f} to {:.2f}", as_size(2 * scale.log),
                           scale.rounds, std::ranges::min(ratios), std::ranges::max(ratios))});
}

}  // namespace
}  // namespace atomic4::bench

int main(int argc, char** argv) {
    using namespace atomic4::bench;
    return run_benchmark(argc, argv, [](Form form) {
        const atomic4::test::TempDir directory;
        const std::string image = directory.file("replay.img");
        const Scale scale = form == Form::Smoke     ? Scale{32 * kMiB, 4 * kMiB, 1}
                            : form == Form::Bounded ? Scale{512 * kMiB, 64 * kMiB, 3}
                                                    : Scale{2 * kGiB, 64 * kMiB, 15};
        for (const size_t units_a_record : {1, 16}) measure(image, units_a_record, scale);
    });
}
