#include "bench/site.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <stdexcept>

#include "support/command.h"

namespace atomic4::bench {
namespace {

constexpr size_t kSector = 512;
constexpr size_t kPiece = 4 * kMiB;

// At the beginning of each sector that a writer wrote.
struct Stamp {
    uint64_t offset = 0;  // of the sector in the file
    uint64_t serial = 0;
    uint64_t length = 0;  // of the write
    bool operator==(const Stamp&) const = default;
};

// Every block: else the first peer to write it would pay for the host's allocation.
std::string make_written_image(const std::string& directory, uint64_t size) {
    const std::string path = directory + "/peers.img";
    fill(path, size);
    return path;
}

}  // namespace

Site::Site(const std::string& directory, uint64_t device_size, uint64_t file_size)
    : mount_point_(directory + "/mnt"),
      file_size_(file_size),
      loop_(make_written_image(directory, device_size), {"--direct-io=on"}) {
    must(mkdir(mount_point_.c_str(), 0700) == 0, mount_point_);
}

std::optional<std::string> why_no_filesystem(const std::string& type, const std::string& mkfs) {
    if (test::run_command({mkfs, "-V"}).status != 0) return mkfs + " is not installed";
    test::run_command({"modprobe", "-q", type});
    std::ifstream known("/proc/filesystems");
    for (std::string word; known >> word;)
        if (word == type) return std::nullopt;
    return "this kernel has no " + type;
}

void make_ext4(Site& site) {
    run_program({"mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-E",
                 "nodiscard,lazy_itable_init=0,lazy_journal_init=0", site.device()});
}

UniqueFd open_file(const std::string& path, int flags) {
    UniqueFd fd(::open(path.c_str(), flags | O_CLOEXEC, 0600));
    must(static_cast<bool>(fd), path);
    return fd;
}

void fill(const std::string& path, uint64_t size) {
    const UniqueFd fd = open_file(path, O_WRONLY | O_CREAT | O_DIRECT);
    const Buffer zeros(kPiece);
    for (uint64_t at = 0; at < size; at += kPiece) {
        const size_t length = std::min<uint64_t>(kPiece, size - at);
        must(pwrite(fd.get(), zeros.data(), length, static_cast<off_t>(at)) ==
                 static_cast<ssize_t>(length),
             "filling " + path);
    }
    must(fsync(fd.get()) == 0, path);
}

Buffer::Buffer(size_t size)
    : memory_(static_cast<std::byte*>(std::aligned_alloc(4096, round_up(size, 4096)))),
      size_(size) {
    must(memory_ != nullptr, "memory");
    std::memset(memory_.get(), 0, size);
}

void Buffer::Free::operator()(std::byte* memory) const {
    std::free(memory);
}

void stamp(std::span<std::byte> unit, uint64_t offset, uint64_t serial) {
    for (size_t at = 0; at < unit.size(); at += kSector) {
        const Stamp here{offset + at, serial, unit.size()};
        std::memcpy(unit.data() + at, &here, sizeof here);
    }
}

void verify(const std::string& path, uint64_t size, uint64_t unit, Expect expect) {
    constexpr uint64_t kSample = 1024;
    const UniqueFd fd = open_file(path, O_RDONLY);
    const Buffer buffer(unit);
    const uint64_t units = size / unit;
    const uint64_t step = std::max<uint64_t>(1, units / kSample);
    for (uint64_t index = 0; index < units; index += step) {
        const uint64_t offset = index * unit;
        must(pread(fd.get(), buffer.data(), unit, static_cast<off_t>(offset)) ==
                 static_cast<ssize_t>(unit),
             path);
        Stamp first;
        std::memcpy(&first, buffer.data(), sizeof first);
        bool right = true;
        for (size_t at = 0; at < unit; at += kSector) {
            Stamp here;
            std::memcpy(&here, buffer.data() + at, sizeof here);
            right = right && (here == Stamp{} || here.offset == offset + at);
            // Only writes of this length can have been the last: the loads follow each other.
            const bool either = here.length == unit || first.length == unit;
            if (expect == Expect::Whole && either)
                right = right && here.length == first.length && here.serial == first.serial;
        }
        if (!right)
            throw std::runtime_error(
                fmt::format("{}: wrong bytes in the unit at {}", path, offset));
    }
}

}  // namespace atomic4::bench
