// How many aligned units a fragmented volume still gives: ours, what the kernel's fallocate gives
// by chance on the same image, and what there is by libext2fs's bitmap (support/free_bitmap.h).
//
// Two volumes, both made by the kernel: 90 % one file with every other of its blocks punched out;
// and 90 % full of files that came and went at random. For each unit as many are asked for as there
// are: of our allocator, on the unmounted image, undone each time; of the kernel, by fallocate of a
// file unit by unit on a mounted copy, where FIEMAP says which came out as one run that starts at a
// multiple of the unit on the device.

#include <fcntl.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <random>
#include <stdexcept>
#include <vector>

#include "base/unique_fd.h"
#include "bench/bench.h"
#include "device/file_device.h"
#include "ext4/transaction.h"
#include "support/free_bitmap.h"
#include "support/loop.h"

namespace atomic4::bench {
namespace {

constexpr uint64_t kBlock = 4 * kKiB;

class Mounted {
  public:
    Mounted(const std::string& image, const std::string& point)
        : point_(point), loop_(image), mount_(loop_.path(), point, {"-t", "ext4"}) {}
    UniqueFd create(const std::string& name) const {
        UniqueFd fd(::open(path(name).c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
        must(static_cast<bool>(fd), path(name));
        return fd;
    }
    void remove(const std::string& name) const { must(::unlink(path(name).c_str()) == 0, name); }
    // Freed blocks are given out again only after the journal's commit.
    void commit() const {
        const UniqueFd fd(::open(point_.c_str(), O_RDONLY | O_CLOEXEC));
        must(fd && ::syncfs(fd.get()) == 0, point_);
    }
    // Bytes until it is 90 % full.
    uint64_t to_fill() const {
        struct statvfs space = {};
        must(::statvfs(point_.c_str(), &space) == 0, point_);
        const uint64_t wanted = space.f_blocks / 10;
        return space.f_bfree > wanted ? (space.f_bfree - wanted) * kBlock : 0;
    }
    void unmount() { mount_.unmount(); }

  private:
    std::string path(const std::string& name) const { return point_ + "/" + name; }
    std::string point_;
    test::LoopDevice loop_;
    test::Mount mount_;
};

bool allocate(int fd, uint64_t offset, uint64_t length) {
    if (::fallocate(fd, 0, static_cast<off_t>(offset), static_cast<off_t>(length)) == 0)
        return true;
    must(errno == ENOSPC, "fallocate");
    return false;
}

void punch(const Mounted& volume) {
    const UniqueFd file = volume.create("punched");
    const uint64_t size = volume.to_fill();
    must(allocate(file.get(), 0, size), "the file that is to be punched");
    for (uint64_t at = 0; at < size; at += 2 * kBlock) {
        must(::fallocate(file.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                         static_cast<off_t>(at), kBlock) == 0,
             "punch");
    }
}

// Files of 4 KiB to 2 MiB, as many of each power of two; deletions at random keep it 90 % full.
void age(const Mounted& volume, int operations) {
    std::mt19937_64 random(31);
    const uint64_t size = volume.to_fill();
    std::vector<std::pair<std::string, uint64_t>> files;
    uint64_t full = 0;
    for (int i = 0; i < operations; ++i) {
        const uint64_t power = kBlock << random() % 10;
        const uint64_t length = power - random() % (power / kBlock / 2 + 1) * kBlock;
        bool freed = false;
        while (full + length > size) {
            std::swap(files[random() % files.size()], files.back());
            volume.remove(files.back().first);
            full -= files.back().second;
            files.pop_back();
            freed = true;
        }
        if (freed && i % 16 == 0) volume.commit();
        files.emplace_back("file" + std::to_string(i), length);
        const UniqueFd file = volume.create(files.back().first);
        if (!allocate(file.get(), 0, length)) volume.commit();
        full += length;
    }
}

// Units of the file that are one run, aligned on the device.
uint64_t aligned_units(int fd, uint64_t units, uint64_t unit) {
    std::vector<std::optional<uint64_t>> places(units * unit / kBlock);
    constexpr size_t kExtents = 1024;
    std::vector<std::byte> memory(sizeof(fiemap) + kExtents * sizeof(fiemap_extent));
    for (uint64_t from = 0; from < units * unit;) {
        auto* request = reinterpret_cast<fiemap*>(memory.data());
        *request = {};
        request->fm_start = from;
        request->fm_length = units * unit - from;
        request->fm_flags = FIEMAP_FLAG_SYNC;
        request->fm_extent_count = kExtents;
        must(::ioctl(fd, FS_IOC_FIEMAP, request) == 0, "FIEMAP");
        if (request->fm_mapped_extents == 0) break;
        for (uint32_t i = 0; i < request->fm_mapped_extents; ++i) {
            const fiemap_extent& extent = request->fm_extents[i];
            for (uint64_t at = 0; at < extent.fe_length; at += kBlock) {
                const uint64_t block = (extent.fe_logical + at) / kBlock;
                if (block < places.size()) places[block] = (extent.fe_physical + at) / kBlock;
            }
            from = extent.fe_logical + extent.fe_length;
        }
    }
    const uint64_t blocks = unit / kBlock;
    uint64_t aligned = 0;
    for (uint64_t first = 0; first < places.size(); first += blocks) {
        bool good = places[first] && *places[first] % blocks == 0;
        for (uint64_t i = 1; good && i < blocks; ++i)
            good = places[first + i] && *places[first + i] == *places[first] + i;
        aligned += good ? 1 : 0;
    }
    return aligned;
}

uint64_t kernels(const std::string& image, const std::string& directory, uint64_t units,
                 uint64_t unit) {
    const std::string copy = directory + "/copy.img";
    run_program({"cp", "--sparse=always", image, copy});
    uint64_t aligned = 0;
    {
        const Mounted volume(copy, directory + "/mnt");
        const UniqueFd file = volume.create("units");
        for (uint64_t i = 0; i < units && allocate(file.get(), i * unit, unit);) ++i;
        aligned = aligned_units(file.get(), units, unit);
    }
    must(::unlink(copy.c_str()) == 0, copy);
    return aligned;
}

// All that the allocator gives.
uint64_t ours(const std::string& image, uint64_t unit) {
    VolumeOptions options;
    options.purpose = OpenFor::Write;
    options.require_atomic4 = false;
    options.may_use_reserved = true;
    const auto volume =
        must(Volume::open(must(FileDevice::open(image, {.access = Access::ReadWrite})), options));
    const Transaction undone(*volume);
    int order = 0;
    while (kBlock << order < unit) ++order;
    uint64_t units = 0;
    for (;; ++units) {
        const auto run = volume->allocator().allocate(order, Pblk(0));
        if (!run && run.error().code != ENOSPC) must(run);
        if (!run) return units;
    }
}

std::string as_percent(uint64_t part, uint64_t whole) {
    return fmt::format("{:.1f} %", 100.0 * static_cast<double>(part) / static_cast<double>(whole));
}

void compare(const std::string& name, const std::string& image, const std::string& directory) {
    const std::vector<bool> is_free = test::free_blocks_of(image);
    for (uint64_t unit = 8 * kKiB; unit <= kMiB; unit *= 2) {
        const std::string row = fmt::format("fragmentation {}: {} units", name, as_size(unit));
        const uint64_t possible = test::aligned_runs(is_free, unit / kBlock);
        const uint64_t given = ours(image, unit);
        if (given != possible) {
            throw std::runtime_error(
                fmt::format("{}: {} units given, but {} are possible", row, given, possible));
        }
        if (possible == 0) {
            print_row({row, "-", "-", "-", "-", std::nullopt, "none is possible, ours gives none"});
            continue;
        }
        const uint64_t by_chance = kernels(image, directory, possible, unit);
        print_row({row, as_percent(given, possible), as_percent(by_chance, possible),
                   by_chance == 0
                       ? "-"
                       : as_ratio(static_cast<double>(given) / static_cast<double>(by_chance)),
                   "= possible", given == possible,
                   fmt::format("of {} possible; peer fallocate", possible)});
    }
}

void measure(uint64_t size, int operations) {
    const test::TempDir directory;
    const std::string image = directory.file("volume.img");
    const std::string point = directory.file("mnt");
    must(::mkdir(point.c_str(), 0700) == 0, point);
    for (const bool aged : {false, true}) {
        test::make_image(image, size);
        run_program({"mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-E",
                     "lazy_itable_init=0,lazy_journal_init=0", image});
        {
            Mounted volume(image, point);
            aged ? age(volume, operations) : punch(volume);
            volume.unmount();
        }
        compare(aged ? "aged" : "punched", image, directory.path());
        must(::unlink(image.c_str()) == 0, image);
    }
}

}  // namespace
}  // namespace atomic4::bench

int main(int argc, char** argv) {
    using namespace atomic4::bench;
    return run_benchmark(argc, argv, [](Form form) {
        if (const auto why = why_no_mounts()) return print_skipped("fragmentation", *why);
        if (form == Form::Smoke) return measure(64 * kMiB, 500);
        if (form == Form::Long) return measure(8 * kGiB, 200'000);
        measure(512 * kMiB, 10'000);
    });
}
