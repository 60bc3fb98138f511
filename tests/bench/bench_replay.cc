// Replay of a full redo log, against writing twice as many bytes to the same image.
//
// A log of 64 MiB is filled with records of one 16 KiB unit each, at random places of a file, and
// the writer dies. Opening again reads the log, places all of it and empties the log: that is what
// counts. The peer writes 128 MiB in order over the file's blocks, O_DIRECT, and flushes.

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>

#include "bench/bench.h"
#include "device/file_device.h"
#include "ext4/layout.h"
#include "ext4/path.h"
#include "support/command.h"
#include "support/loop.h"
#include "writer/atomic_writer.h"

namespace atomic4::bench {
namespace {

constexpr uint64_t kUnit = 16 * kKiB;
constexpr double kTarget = 2.0;

struct Scale {
    uint64_t log;
    uint64_t file;
    size_t rounds;
};

std::unique_ptr<FileDevice> device(const std::string& image) {
    return must(FileDevice::open(image, {.access = Access::ReadWrite}));
}

// Where MiBs of /f lie in one piece. All of it is written once, so that nobody pays for the host's
// allocation.
std::vector<ByteOffset> prepare(const std::string& image, const Scale& scale) {
    const auto writer = must(AtomicWriter::open(must(open_for_writing(device(image)))));
    Volume& volume = writer->volume();
    const FileState file = must(read_file(volume, must(lookup(volume, "/f"))));
    std::vector<ByteOffset> places;
    const std::vector<std::byte> bytes(kMiB, std::byte{1});
    for (uint64_t at = 0; at < scale.file; at += kMiB) {
        const auto runs = must(locate_range(volume, file, ByteOffset(at), Bytes(kMiB)));
        if (runs.size() == 1) places.push_back(runs[0].device_offset);
        must(writer->write_plain({file.number, file.generation, ByteOffset(at), bytes}));
    }
    must(writer->close());
    return places;
}

// Fills the log, once round, and dies.
uint64_t fill(const std::string& image, const Scale& scale, uint64_t seed,
              std::vector<uint64_t>& last) {
    const auto writer = must(AtomicWriter::open(must(open_for_writing(device(image)))));
    const FileState file = must(writer->file(must(lookup(writer->volume(), "/f"))));
    std::mt19937_64 random(seed);
    std::vector<std::byte> bytes(kUnit);
    // A header block each, and one record to spare.
    const uint64_t count = scale.log / (kUnit + 4 * kKiB) - 2;
    for (uint64_t i = 0; i < count; ++i) {
        const uint64_t unit = random() % (scale.file / kUnit);
        last[unit] = random();
        std::memcpy(bytes.data(), &last[unit], sizeof last[unit]);
        must(writer->write({file.number, file.generation, ByteOffset(unit * kUnit), bytes},
                           Engine::Logged));
    }
    if (writer->live_records() != count) throw std::runtime_error("some records have retired");
    return count;
}

void verify(AtomicWriter& writer, const std::vector<uint64_t>& last) {
    const ext2_ino_t number = must(lookup(writer.volume(), "/f"));
    for (size_t unit = 0; unit < last.size(); ++unit) {
        if (last[unit] == 0) continue;
        uint64_t found = 0;
        must(writer.read(number, ByteOffset(unit * kUnit),
                         std::as_writable_bytes(std::span(&found, 1))));
        if (found != last[unit]) throw std::runtime_error("wrong bytes after replay");
    }
}

double write_in_order(const std::string& image, const std::vector<ByteOffset>& places,
                      uint64_t bytes) {
    const auto target = device(image);
    const std::unique_ptr<std::byte, decltype(&std::free)> memory(
        static_cast<std::byte*>(std::aligned_alloc(4096, kMiB)), &std::free);
    const std::span<std::byte> piece(memory.get(), kMiB);
    std::ranges::fill(piece, std::byte{1});
    const double begin = seconds();
    for (uint64_t done = 0; done < bytes; done += kMiB)
        must(target->write(places[done / kMiB % places.size()], piece));
    must(target->flush());
    return seconds() - begin;
}

void contest(const std::string& directory, const std::string& name, const Scale& scale) {
    const std::string image = directory + "/replay.img";
    test::make_image(image, 2 * scale.file + 4 * scale.log);
    run_program({our_program("mkfs.atomic4"), "-q", "-F", "-l", std::to_string(scale.log), image});
    run_program({our_program("atomic4ctl"), "-d", image, "prealloc", "/f", "--size",
                 std::to_string(scale.file), "--unit", std::to_string(kUnit)});
    const auto places = prepare(image, scale);
    std::vector<double> ours;
    std::vector<double> peer;
    std::vector<double> ratios;
    uint64_t records = 0;
    for (size_t round = 0; round < scale.rounds; ++round) {
        // The peer writes over the file: what a round left there is judged before.
        std::vector<uint64_t> last(scale.file / kUnit, 0);
        records = fill(image, scale, round + 1, last);
        settle(image);
        const double begin = seconds();
        OpenVolume opened = must(open_for_writing(device(image)));
        ours.push_back(seconds() - begin);
        if (!opened.replayed || opened.replayed->records != records)
            throw std::runtime_error("not every record was replayed");
        {
            const auto writer = must(AtomicWriter::open(std::move(opened)));
            verify(*writer, last);
            must(writer->close());
        }
        settle(image);
        peer.push_back(write_in_order(image, places, 2 * scale.log));
        ratios.push_back(ours.back() / peer.back());
    }
    const double ratio = median(ratios);
    print_row({name, as_seconds(median(ours)), as_seconds(median(peer)), as_ratio(ratio),
               fmt::format("<= {}", kTarget), ratio <= kTarget,
               fmt::format("{} records, file of {}, {} rounds, quartiles {:.2f} to {:.2f}", records,
                           as_size(scale.file), scale.rounds, quantile(ratios, 0.25),
                           quantile(ratios, 0.75))});
    must(unlink(image.c_str()) == 0, image);
}

}  // namespace
}  // namespace atomic4::bench

int main(int argc, char** argv) {
    using namespace atomic4::bench;
    return run_benchmark(argc, argv, [](Form form) {
        const atomic4::test::TempDir directory;
        const bool smoke = form == Form::Smoke;
        const uint64_t log = smoke ? 4 * kMiB : 64 * kMiB;
        const size_t rounds = smoke ? 1 : form == Form::Bounded ? 3 : 15;
        contest(directory.path(), "replay of a full log, 16K records", {log, 4 * log, rounds});
        if (!smoke) contest(directory.path(), "replay, units far apart", {log, 32 * log, rounds});
    });
}
