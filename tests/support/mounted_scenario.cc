#include "support/mounted_scenario.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>

#include "ext4/atomic_file.h"
#include "writer/open_volume.h"

namespace atomic4::test {
namespace {

constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kBlock = WriteHistory::kBlock;
constexpr uint64_t kFileSize = MountedScenario::kFileBlocks * kBlock;

void must(bool good, const std::string& what) {
    if (!good) throw std::runtime_error("scenario: " + what + ": " + std::strerror(errno));
}
template <class T>
T must(Result<T> result) {
    if (!result) throw std::runtime_error("scenario: " + result.error().message);
    return std::move(*result);
}

Image volume(MountedScenario::Journal journal) {
    EnableOptions options;
    options.log_size = Bytes(kMiB + kMiB / 16);
    std::vector<std::string> mke2fs{"-b",  "4096", "-N",
                                    "128", "-E",   "lazy_itable_init=0,lazy_journal_init=0"};
    if (journal == MountedScenario::Journal::Without)
        mke2fs.insert(mke2fs.end(), {"-O", "^has_journal"});
    Image image = make_atomic4(16 * kMiB, mke2fs, options);
    const auto opened = must(open_for_writing(std::make_unique<ImageDevice>(image)));
    NewFile file;
    file.size = Bytes(kFileSize);
    file.unit = Bytes(16384);
    must(create_atomic_file(*opened.volume, "/data", file));
    return image;
}

// 0 or an errno.
int write_and_sync(int fd, const std::vector<std::byte>& bytes, const WriteHistory::Part& part) {
    const ssize_t n =
        ::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(part.first * kBlock));
    if (n < 0) return errno;
    if (n != static_cast<ssize_t>(bytes.size())) return ENOSPC;
    return ::fsync(fd) == 0 ? 0 : errno;
}

int write_direct(int fd, const std::vector<std::byte>& bytes, const WriteHistory::Part& part) {
    const std::unique_ptr<void, decltype(&std::free)> memory(
        std::aligned_alloc(kBlock, bytes.size()), &std::free);
    std::memcpy(memory.get(), bytes.data(), bytes.size());
    const iovec from{memory.get(), bytes.size()};
    const ssize_t n = ::pwritev2(fd, &from, 1, static_cast<off_t>(part.first * kBlock), RWF_DSYNC);
    if (n < 0) return errno;
    return n == static_cast<ssize_t>(bytes.size()) ? 0 : ENOSPC;
}

int write_mapped(int fd, const std::vector<std::byte>& bytes, const WriteHistory::Part& part) {
    void* map = ::mmap(nullptr, bytes.size(), PROT_READ | PROT_WRITE, MAP_SHARED, fd,
                       static_cast<off_t>(part.first * kBlock));
    if (map == MAP_FAILED) return errno;
    std::memcpy(map, bytes.data(), bytes.size());
    const int result = ::msync(map, bytes.size(), MS_SYNC) == 0 ? 0 : errno;
    ::munmap(map, bytes.size());
    return result;
}

// If a commit has failed while somebody else waited for it, fsync(2) says 0 all the same
// (MountedVolume::check_journal): that isn't held against us.
int confirmed(int fd, int result) {
    for (int i = 0; i < 2 && result == 0; ++i)
        if (::futimens(fd, nullptr) != 0) result = errno;
    return result;
}

// Away and back; each is on disk before the next.
int rename_and_back(int fd, const std::string& path) {
    const std::string moved = path + kMoved;
    if (::rename(path.c_str(), moved.c_str()) != 0 || ::fsync(fd) != 0) return errno;
    return ::rename(moved.c_str(), path.c_str()) == 0 ? 0 : errno;
}

}  // namespace

MountedScenario::MountedScenario(uint64_t seed, Journal journal) : random_(seed) {
    must(::mkdir(dir_.c_str(), 0755) == 0, dir_);
    disk_.emplace(volume(journal));
    mount();
    for (const char* name : {"data", "grow", "sparse", "shared"}) {
        const bool grows = std::string_view(name) == "grow";
        history_.add_file(name, grows ? 0 : kFileSize);
        const std::string path = dir_ + "/" + name;
        const UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
        must(::ftruncate(fd.get(), grows ? 0 : static_cast<off_t>(kFileSize)) == 0, path);
        if (std::string_view(name) == "shared") {
            const std::vector<std::byte> zeros(kFileSize);
            must(write_and_sync(fd.get(), zeros, {kShared, 0, kFileBlocks}) == 0, path);
        }
        must(::fsync(fd.get()) == 0, path);
    }
    ::sync();
    if (const auto served = serve({}); !served)
        throw std::runtime_error("scenario: " + served.error().message);
}

MountedScenario::~MountedScenario() {
    crash();
    others_.reset();
    others_direct_.reset();
}

void MountedScenario::mount() {
    mount_.emplace(disk_->device(), dir_, std::vector<std::string>{"-t", "ext4"});
}

Result<> MountedScenario::serve(const MountHistory& history) {
    // The watch lets this process's own opens pass; an earlier one is found by the probe.
    if (!others_) {
        const std::string path = dir_ + "/shared";
        others_.reset(::open(path.c_str(), O_RDWR | O_CLOEXEC));
        others_direct_.reset(::open(path.c_str(), O_RDWR | O_DIRECT | O_CLOEXEC));
    }
    session_ = A4_TRY(MountedSession::start(dir_, history));
    for (const std::string& name : history_.files()) files_.push_back(A4_TRY(session_->open(name)));
    return {};
}

void MountedScenario::crash() {
    files_.clear();
    session_.reset();
}

void MountedScenario::unmount() {
    crash();
    others_.reset();
    others_direct_.reset();
    // The session's last files go a moment after its ring. A lazy unmount would leave the volume as
    // it is, read-only perhaps, to the next mount.
    for (int attempt = 0; attempt < 500; ++attempt) {
        if (run_command({"umount", dir_}).status != 0) continue;
        mount_->gone();
        break;
    }
    mount_.reset();
}

// Within the clients' half of the files; "grow" as far as it goes, and a bit.
WriteHistory::Part MountedScenario::random_part(size_t file, uint64_t largest) {
    uint64_t count = 1;
    while (count < largest && below(3) != 0) count *= 2;
    const uint64_t span =
        file == kGrow ? std::min(kFileBlocks, grown_ + 2 * count) : kFileBlocks / 2;
    const uint64_t first = below(std::max<uint64_t>(1, span / count)) * count;
    if (file == kGrow) grown_ = std::max(grown_, first + count);
    return {file, first, count};
}

std::vector<WriteHistory::Part> MountedScenario::random_write() {
    const size_t files = history_.files().size();
    if (below(7) != 0) return {random_part(below(files), kLargestUnit)};
    std::vector<WriteHistory::Part> parts;
    for (uint64_t left = 2 + below(4); left > 0; --left) {
        const WriteHistory::Part part = random_part(below(files), 8);
        if (std::ranges::none_of(parts, [&](const auto& it) { return it.overlaps(part); }))
            parts.push_back(part);
    }
    return parts;
}

void MountedScenario::submit(const std::vector<WriteHistory::Part>& parts) {
    const uint64_t number = history_.begin(parts, disk_->events());
    auto op = std::make_unique<WriteOp>();
    op->kind = parts.size() > 1 ? WriteOp::Kind::Batch : WriteOp::Kind::Atomic;
    auto data = std::make_shared<std::vector<std::vector<std::byte>>>();
    for (const WriteHistory::Part& part : parts) {
        data->push_back(history_.bytes(number, part));
        op->ranges.push_back({files_[part.file], ByteOffset(part.first * kBlock), data->back()});
    }
    ++under_way_;
    op->done = [this, number, data](const Result<WriteDone>& done) {
        --under_way_;
        if (done)
            history_.done(number, disk_->events());
        else
            errors.push_back(done.error());
    };
    session_->target().submit(std::move(op));
}

Result<> MountedScenario::write(const std::vector<WriteHistory::Part>& parts) {
    const size_t before = errors.size();
    submit(parts);
    settle();
    if (errors.size() > before) return fail(Error(errors.back()));
    return {};
}

void MountedScenario::run(unsigned writes) {
    for (unsigned i = 0; i < writes; ++i) {
        if (below(3) == 0) others_write();
        submit(random_write());
        const size_t depth = below(12);
        session_->driver().run_until([&] { return under_way_ <= depth; });
    }
    settle();
}

void MountedScenario::settle() {
    session_->driver().run_until([&] { return under_way_ == 0 && !others_busy_; });
}

void MountedScenario::others_write() {
    if (others_busy_) return;
    others_busy_ = true;
    const WriteHistory::Part part{kShared, kFileBlocks / 2 + below(kFileBlocks / 2 - 4),
                                  1 + below(4)};
    const uint64_t number = history_.begin_by_others(part, disk_->events());
    session_->others().run(
        [this, turn = others_writes_++, part, bytes = history_.bytes(number, part)] {
            if (turn % 8 == 7) {
                const int result = rename_and_back(others_.get(), dir_ + "/shared");
                if (result != 0) return result;
            }
            const int fd = others_.get();
            const int result = turn % 3 == 1   ? write_direct(others_direct_.get(), bytes, part)
                               : turn % 3 == 2 ? write_mapped(fd, bytes, part)
                                               : write_and_sync(fd, bytes, part);
            return confirmed(fd, result);
        },
        [this, number](int result) {
            others_busy_ = false;
            if (result == 0)
                history_.done(number, disk_->events());
            else
                others_errors.push_back(result);
        });
}

int MountedScenario::others_write_now(int fd, WriteHistory::Part part) {
    const uint64_t number = history_.begin_by_others(part, disk_->events());
    const int result = session_->by_others([fd, part, bytes = history_.bytes(number, part)] {
        return confirmed(fd, write_and_sync(fd, bytes, part));
    });
    if (result == 0) history_.done(number, disk_->events());
    return result;
}

}  // namespace atomic4::test
