// Durable atomic writes of one thread, without a daemon, against the least that does the same:
//
//   logged   a bare loop that writes a log record (a header block and the payload) O_DSYNC, then
//            the payload in place, both O_DIRECT. It writes the very blocks that the writer uses:
//            the log's ring, and the file's units in the same random order.
//   native   pwritev2(RWF_ATOMIC | RWF_DSYNC) on the image, at the same offsets.
//
// The two alternate in short rounds, A B B A, and the ratio is the median of the rounds' ratios:
// the disk's moods meet both, and so does what the first to write a unit leaves to the second (XFS
// keeps room for copies). Quartiles far apart mean that the disk was too busy to tell. All blocks
// were written before. At the end the volume is reopened, and every unit must hold what was last
// written to it.

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <random>
#include <stdexcept>

#include "base/unique_fd.h"
#include "bench/bench.h"
#include "device/file_device.h"
#include "ext4/layout.h"
#include "ext4/path.h"
#include "redo/log_format.h"
#include "support/command.h"
#include "support/loop.h"
#include "writer/atomic_writer.h"

#ifndef RWF_ATOMIC
#define RWF_ATOMIC 0x00000040
#endif

namespace atomic4::bench {
namespace {

constexpr uint64_t kSector = 512;
constexpr double kTarget = 0.9;

struct FreeMemory {
    void operator()(std::byte* memory) const { std::free(memory); }
};
std::span<std::byte> allocate(std::unique_ptr<std::byte, FreeMemory>& memory, size_t length) {
    memory.reset(static_cast<std::byte*>(std::aligned_alloc(4096, length)));
    must(memory != nullptr, "memory");
    std::memset(memory.get(), 0, length);
    return {memory.get(), length};
}

// Each sector says which write it is from.
void stamp(std::span<std::byte> payload, uint64_t serial) {
    for (size_t at = 0; at < payload.size(); at += kSector)
        std::memcpy(payload.data() + at, &serial, sizeof serial);
}

void transfer(int fd, std::span<const std::byte> from, uint64_t offset, int flags) {
    const iovec vector{const_cast<std::byte*>(from.data()), from.size()};
    must(pwritev2(fd, &vector, 1, static_cast<off_t>(offset), flags) ==
             static_cast<ssize_t>(from.size()),
         "bare write");
}

struct Unit {
    ByteOffset offset;  // in the file
    uint64_t position;  // in the image
};

// Units of a file, and the log's ring, as the bare loop needs them.
struct Site {
    std::vector<Unit> units;
    uint64_t ring_begin = 0;
    uint64_t ring_end = 0;
};

// Units that are mapped; of many, so many bytes evenly spread.
Site survey(const std::string& image, const std::string& path, uint64_t unit, uint64_t bytes) {
    auto device = must(FileDevice::open(image, {.access = Access::ReadOnly}));
    const auto opened = must(open_for_reading(std::move(device)));
    Volume& volume = *opened.volume;
    Site site;
    const FileState log = must(read_file(volume, volume.attr()->log_inode));
    const auto log_runs = must(locate_range(volume, log, ByteOffset(0), log.size));
    if (log_runs.size() != 1) throw std::runtime_error("the log is not in one run");
    site.ring_begin = (log_runs[0].device_offset + Bytes(kFirstRecord.value())).value();
    site.ring_end = (log_runs[0].device_offset + log.size).value();

    const FileState file = must(read_file(volume, must(lookup(volume, path))));
    const uint64_t block = volume.block_size().value();
    const auto mappings = must(
        map_range(volume, file.number, file.inode, Lblk(0), Blocks(file.size.value() / block)));
    for (const Mapping& mapping : mappings) {
        if (mapping.state != MapState::Written) continue;
        const uint64_t begin = mapping.lblk.value() * block;
        for (uint64_t at = round_up(begin, unit); at + unit <= mapping.end().value() * block;
             at += unit)
            site.units.push_back({ByteOffset(at), mapping.pblk.value() * block + at - begin});
    }
    if (site.units.empty()) throw std::runtime_error(path + " has no units");
    const size_t wanted = std::min<size_t>(site.units.size(), bytes / unit);
    for (size_t i = 0; i < wanted; ++i) site.units[i] = site.units[i * site.units.size() / wanted];
    site.units.resize(wanted);
    return site;
}

// Every block written once, so that nobody pays for the host's allocation.
void write_all_units(const std::string& image, const Site& site, uint64_t unit) {
    const UniqueFd fd(::open(image.c_str(), O_WRONLY | O_DIRECT | O_CLOEXEC));
    must(static_cast<bool>(fd), image);
    std::unique_ptr<std::byte, FreeMemory> memory;
    const auto zeros = allocate(memory, kMiB);
    for (size_t i = 0; i < site.units.size();) {
        const uint64_t begin = site.units[i].position;
        uint64_t length = 0;
        for (; i < site.units.size() && site.units[i].position == begin + length &&
               length + unit <= kMiB;
             ++i)
            length += unit;
        transfer(fd.get(), zeros.first(length), begin, 0);
    }
    must(fsync(fd.get()) == 0, image);
}

struct Case {
    std::string name;
    std::string image;
    std::string path;
    uint64_t unit;
    uint64_t bytes;  // touched
    Engine engine;
    double budget;  // seconds
    size_t writes_a_round;
};

class Contest {
  public:
    explicit Contest(const Case& the_case)
        : case_(the_case),
          site_(survey(case_.image, case_.path, case_.unit, case_.bytes)),
          last_(site_.units.size(), 0) {}

    void run() {
        write_all_units(case_.image, site_, case_.unit);
        auto device = must(FileDevice::open(case_.image, {.access = Access::ReadWrite}));
        writer_ = must(AtomicWriter::open(must(open_for_writing(std::move(device)))));
        file_ = must(writer_->file(must(lookup(writer_->volume(), case_.path))));
        fd_.reset(::open(case_.image.c_str(), O_WRONLY | O_DIRECT | O_CLOEXEC));
        must(static_cast<bool>(fd_), case_.image);
        record_ = allocate(record_memory_, kLogBlock + case_.unit);
        payload_ = allocate(payload_memory_, case_.unit);
        ring_at_ = site_.ring_begin;
        settle(case_.image);

        rounds();
        must(writer_->close());
        writer_.reset();
        verify();

        const double ratio = median(ratios_);
        Row row{case_.name,
                as_rate(median(ours_)),
                as_rate(median(peer_)),
                as_ratio(ratio),
                fmt::format(">= {}", kTarget),
                ratio >= kTarget,
                fmt::format("{} x {} writes each, quartiles {:.2f} to {:.2f}, whole time {:.2f}",
                            ratios_.size(), case_.writes_a_round, quantile(ratios_, 0.25),
                            quantile(ratios_, 0.75), peer_seconds_ / ours_seconds_)};
        print_row(row);
    }

  private:
    void rounds() {
        std::mt19937_64 random(20240607);
        std::vector<size_t> order(case_.writes_a_round / 2);
        const auto refill = [&] {
            for (size_t& index : order) index = random() % site_.units.size();
        };
        // One of each to warm up: the session begins, mappings are read.
        refill();
        ours(order);
        peer(order);
        const double end = seconds() + case_.budget;
        for (size_t round = 0; round < 2 || seconds() < end; ++round) {
            refill();
            double ours_spent = ours(order);
            double peer_spent = peer(order);
            refill();
            peer_spent += peer(order);
            ours_spent += ours(order);
            const auto count = static_cast<double>(2 * order.size());
            ours_.push_back(count / ours_spent);
            peer_.push_back(count / peer_spent);
            ratios_.push_back(peer_spent / ours_spent);
            ours_seconds_ += ours_spent;
            peer_seconds_ += peer_spent;
        }
    }

    double ours(const std::vector<size_t>& order) {
        const double begin = seconds();
        for (const size_t index : order) {
            stamp(payload_, last_[index] = ++serial_);
            must(writer_->write(
                {file_.number, file_.generation, site_.units[index].offset, payload_},
                case_.engine));
        }
        return seconds() - begin;
    }

    double peer(const std::vector<size_t>& order) {
        const double begin = seconds();
        const auto payload = record_.subspan(kLogBlock);
        for (const size_t index : order) {
            stamp(payload, last_[index] = ++serial_);
            const uint64_t position = site_.units[index].position;
            if (case_.engine == Engine::Native) {
                transfer(fd_.get(), payload, position, RWF_ATOMIC | RWF_DSYNC);
                continue;
            }
            if (ring_at_ + record_.size() > site_.ring_end) ring_at_ = site_.ring_begin;
            transfer(fd_.get(), record_, ring_at_, RWF_DSYNC);
            ring_at_ += record_.size();
            transfer(fd_.get(), payload, position, 0);
        }
        return seconds() - begin;
    }

    void verify() {
        auto device = must(FileDevice::open(case_.image, {.access = Access::ReadOnly}));
        const auto reader = must(AtomicWriter::open(must(open_for_reading(std::move(device)))));
        std::unique_ptr<std::byte, FreeMemory> memory;
        const auto found = allocate(memory, case_.unit);
        for (size_t i = 0; i < site_.units.size(); ++i) {
            if (last_[i] == 0) continue;
            const Bytes length = must(reader->read(file_.number, site_.units[i].offset, found));
            bool right = length.value() == found.size();
            for (size_t at = 0; at < found.size(); at += kSector)
                right = right && std::memcmp(found.data() + at, &last_[i], sizeof last_[i]) == 0;
            if (!right)
                throw std::runtime_error(fmt::format("{}: wrong bytes at {} of {}", case_.name,
                                                     site_.units[i].offset, case_.path));
        }
    }

    Case case_;
    Site site_;
    std::vector<uint64_t> last_;  // serial of the last write to each unit; 0: none
    uint64_t serial_ = 0;
    std::unique_ptr<AtomicWriter> writer_;
    FileState file_;
    UniqueFd fd_;
    uint64_t ring_at_ = 0;
    std::unique_ptr<std::byte, FreeMemory> record_memory_;
    std::unique_ptr<std::byte, FreeMemory> payload_memory_;
    std::span<std::byte> record_;
    std::span<std::byte> payload_;
    std::vector<double> ours_;
    std::vector<double> peer_;
    std::vector<double> ratios_;
    double ours_seconds_ = 0;
    double peer_seconds_ = 0;
};

void prealloc(const std::string& image, const std::string& path, uint64_t size, uint64_t unit) {
    run_program({our_program("atomic4ctl"), "-d", image, "prealloc", path, "--size",
                 std::to_string(size), "--unit", std::to_string(unit)});
}

// A file with a hole after each 16 KiB: no two extents merge, and the tree grows deep.
void add_fragmented_file(const std::string& directory, const std::string& image, uint64_t bytes) {
    constexpr uint64_t kPartBlocks = 4;
    constexpr uint64_t kPart = kPartBlocks * 4096;
    prealloc(image, "/fragmented", 2 * bytes, kPart);
    const std::string path = directory + "/punches";
    std::string commands;
    for (uint64_t i = 0; i < bytes / kPart; ++i) {
        const uint64_t hole = (2 * i + 1) * kPartBlocks;
        commands += fmt::format("punch /fragmented {} {}\n", hole, hole + kPartBlocks - 1);
    }
    std::ofstream(path) << commands;
    run_program({"debugfs", "-w", "-f", path, image});
    must(unlink(path.c_str()) == 0, path);
}

struct Scale {
    uint64_t file;
    double budget;
    size_t writes_a_round;
};

void logged_cases(const std::string& directory, const Scale& scale) {
    const std::string image = directory + "/logged.img";
    test::make_image(image, 256 * scale.file);
    // As short as a small volume's, so that its records retire again and again meanwhile.
    run_program(
        {our_program("mkfs.atomic4"), "-q", "-F", "-l", std::to_string(scale.file / 8), image});
    prealloc(image, "/u16", scale.file, 16 * kKiB);
    prealloc(image, "/u4", scale.file, 4 * kKiB);
    prealloc(image, "/u64", scale.file, 64 * kKiB);
    prealloc(image, "/large", 128 * scale.file, 16 * kKiB);
    add_fragmented_file(directory, image, scale.file);
    const auto contest = [&](const char* name, const char* path, uint64_t unit) {
        Contest({name, image, path, unit, scale.file, Engine::Logged, scale.budget,
                 scale.writes_a_round})
            .run();
    };
    contest("write 16K logged", "/u16", 16 * kKiB);
    contest("write 16K logged, deep extent tree", "/fragmented", 16 * kKiB);
    contest("write 16K logged, large file", "/large", 16 * kKiB);
    contest("write 4K logged", "/u4", 4 * kKiB);
    contest("write 64K logged", "/u64", 64 * kKiB);
    must(unlink(image.c_str()) == 0, image);
}

void native_cases(const std::string& directory, const Scale& scale) {
    constexpr const char* kName = "write 16K native, image on XFS";
    if (const auto reason = why_no_mounts()) return print_skipped(kName, *reason);
    if (test::run_command({"mkfs.xfs", "-V"}).status != 0)
        return print_skipped(kName, "mkfs.xfs is not installed");
    const std::string host = directory + "/xfs.img";
    const std::string point = directory + "/xfs";
    const std::string image = point + "/native.img";
    test::make_image(host, 32 * scale.file);
    run_program({"mkfs.xfs", "-q", host});
    must(mkdir(point.c_str(), 0700) == 0, point);
    {
        const test::LoopDevice loop(host, {"--direct-io=on"});
        const test::Mount mount(loop.path(), point, {"-t", "xfs"});
        test::make_image(image, 4 * scale.file);
        const auto limits =
            must(FileDevice::open(image, {.access = Access::ReadOnly}))->atomic_limits();
        if (!limits.supported()) {
            print_skipped(kName, limits.why_not);
        } else {
            run_program({our_program("mkfs.atomic4"), "-q", "-F", image});
            prealloc(image, "/u16", scale.file, 16 * kKiB);
            add_fragmented_file(directory, image, scale.file);
            Contest({kName, image, "/u16", 16 * kKiB, scale.file, Engine::Native, scale.budget,
                     scale.writes_a_round})
                .run();
            Contest({"write 16K native, XFS, deep extent tree", image, "/fragmented", 16 * kKiB,
                     scale.file, Engine::Native, scale.budget, scale.writes_a_round})
                .run();
        }
    }
    must(rmdir(point.c_str()) == 0, point);
}

}  // namespace
}  // namespace atomic4::bench

int main(int argc, char** argv) {
    using namespace atomic4::bench;
    return run_benchmark(argc, argv, [](Form form) {
        const atomic4::test::TempDir directory;
        const Scale scale = form == Form::Smoke     ? Scale{16 * kMiB, 0.0, 20}
                            : form == Form::Bounded ? Scale{128 * kMiB, 2.5, 20}
                                                    : Scale{512 * kMiB, 30.0, 40};
        logged_cases(directory.path(), scale);
        if (form != Form::Smoke) native_cases(directory.path(), scale);
    });
}
