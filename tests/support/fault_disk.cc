#define FUSE_USE_VERSION 35
#include "support/fault_disk.h"

#include <fcntl.h>
#include <fuse3/fuse_lowlevel.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <stdexcept>

#include "support/loop.h"

namespace atomic4::test {
namespace {

constexpr uint64_t kDiskBlock = 4096;
constexpr size_t kMostEvents = 1 << 20;
// Address space; memory is taken as it is used.
constexpr uint64_t kTraceBytes = uint64_t{4} << 30;

std::runtime_error failure(const std::string& what) {
    return std::runtime_error("fault disk: " + what + ": " + std::strerror(errno));
}

// Seen by both processes, and gone with them.
void* share(uint64_t length) {
    void* memory = ::mmap(nullptr, length, PROT_READ | PROT_WRITE,
                          MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw failure("memory");
    return memory;
}

}  // namespace

// Addresses are the same on both sides: the server is forked.
struct FaultDisk::Shared {
    struct Event {
        uint64_t offset;
        uint64_t length;  // 0: a flush
        uint64_t data;    // where, in the trace
    };
    uint64_t size = 0;
    bool records = true;
    std::byte* image = nullptr;
    bool* used = nullptr;  // of each block: was it ever written?
    std::byte* trace = nullptr;
    Event* events = nullptr;
    uint64_t trace_used = 0;                // the server's
    std::atomic<uint64_t> event_count = 0;  // set when the event is complete
    std::atomic<uint64_t> writes = 0;
    std::atomic<uint64_t> flushes = 0;
    std::atomic<uint64_t> failed = 0;
    std::atomic<uint64_t> free_blocks = ~uint64_t{0};
    // The order to fail.
    std::atomic<bool> fail_writes = false;
    std::atomic<bool> fail_flushes = false;
    std::atomic<uint64_t> let_pass = 0;
    std::atomic<uint64_t> fail_left = 0;

    uint64_t memory() const { return kTraceBytes + kMostEvents * sizeof(Event) + size * 2; }

    bool fails(bool flush) {
        ++(flush ? flushes : writes);
        if (!(flush ? fail_flushes : fail_writes) || fail_left == 0) return false;
        if (let_pass > 0) {
            --let_pass;
            return false;
        }
        if (fail_left != kForEver) --fail_left;
        ++failed;
        return true;
    }
    int flush() {
        if (fails(true)) return EIO;
        return record(0, {});
    }
    int write(uint64_t offset, std::span<const std::byte> data) {
        if (offset > size || data.size() > size - offset) return EFBIG;
        if (fails(false)) return EIO;
        if (!take_space(offset, data.size())) {
            ++failed;
            return ENOSPC;
        }
        std::memcpy(image + offset, data.data(), data.size());
        return record(offset, data);
    }
    bool take_space(uint64_t offset, uint64_t length) {
        const uint64_t first = offset / kDiskBlock;
        const uint64_t end = (offset + length + kDiskBlock - 1) / kDiskBlock;
        const auto fresh = static_cast<uint64_t>(std::count(used + first, used + end, false));
        if (fresh > free_blocks) return false;
        if (free_blocks != ~uint64_t{0}) free_blocks -= fresh;
        std::fill(used + first, used + end, true);
        return true;
    }
    int record(uint64_t offset, std::span<const std::byte> data) {
        if (!records) return 0;
        const uint64_t number = event_count;
        // Better a test that fails than one that forgets.
        if (number == kMostEvents || trace_used + data.size() > kTraceBytes) return EIO;
        if (!data.empty()) std::memcpy(trace + trace_used, data.data(), data.size());
        events[number] = {offset, data.size(), trace_used};
        trace_used += data.size();
        event_count = number + 1;
        return 0;
    }
};

std::optional<std::string> FaultDisk::why_not() {
    if (::geteuid() != 0) return "root is needed";
    const UniqueFd fuse(::open("/dev/fuse", O_RDWR | O_CLOEXEC));
    if (!fuse) return std::string("/dev/fuse: ") + std::strerror(errno);
    return LoopDevice::why_not();
}

FaultDisk::FaultDisk(const Image& initial, Memory memory_of_it) {
    if (initial.empty() || initial.size() % kDiskBlock != 0)
        throw std::runtime_error("fault disk: the image has no whole blocks");
    if (memory_of_it == Memory::Records) initial_ = initial;
    Shared layout;
    layout.size = initial.size();
    auto* memory = static_cast<std::byte*>(share(sizeof(Shared)));
    shared_ = new (memory) Shared;
    shared_->size = layout.size;
    shared_->records = memory_of_it == Memory::Records;
    auto* place = static_cast<std::byte*>(share(layout.memory()));
    shared_->trace = place;
    shared_->image = place + kTraceBytes;
    shared_->events = reinterpret_cast<Shared::Event*>(shared_->image + initial.size());
    shared_->used = reinterpret_cast<bool*>(shared_->events + kMostEvents);
    for (uint64_t at = 0; at < initial.size(); at += kDiskBlock) {
        const auto block = std::span(initial).subspan(at, kDiskBlock);
        // Zeros are left to the memory, which is sparse.
        if (std::ranges::all_of(block, [](std::byte byte) { return byte == std::byte{0}; }))
            continue;
        std::memcpy(shared_->image + at, block.data(), kDiskBlock);
        shared_->used[at / kDiskBlock] = true;
    }

    const UniqueFd fuse(::open("/dev/fuse", O_RDWR | O_CLOEXEC));
    const UniqueFd context(::fsopen("fuse", FSOPEN_CLOEXEC));
    if (!fuse || !context) throw failure("fuse");
    const auto set = [&](const char* key, const std::string& value) {
        if (::fsconfig(context.get(), FSCONFIG_SET_STRING, key, value.c_str(), 0) != 0)
            throw failure(key);
    };
    set("source", "fault-disk");
    set("fd", std::to_string(fuse.get()));
    set("rootmode", "100000");  // the root is the file
    set("user_id", "0");
    set("group_id", "0");
    if (::fsconfig(context.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0)
        throw failure("fuse file system");
    const UniqueFd mount(::fsmount(context.get(), FSMOUNT_CLOEXEC, 0));
    if (!mount) throw failure("fuse mount");

    server_ = ::fork();
    if (server_ < 0) throw failure("fork");
    if (server_ == 0) serve(*shared_, fuse.get());

    const std::string path = "/proc/self/fd/" + std::to_string(mount.get());
    const UniqueFd file(::open(path.c_str(), O_RDWR | O_DIRECT | O_CLOEXEC));
    if (!file) throw failure("opening the served file");
    attach(file.get());
}

void FaultDisk::attach(int file) {
    const UniqueFd control(::open("/dev/loop-control", O_RDWR | O_CLOEXEC));
    // Others take devices at the same time.
    for (int attempt = 0; attempt < 100; ++attempt) {
        const int number = ::ioctl(control.get(), LOOP_CTL_GET_FREE);
        if (number < 0) throw failure("loop device");
        device_ = "/dev/loop" + std::to_string(number);
        loop_.reset(::open(device_.c_str(), O_RDWR | O_CLOEXEC));
        if (!loop_) throw failure(device_);
        loop_config config{};
        config.fd = static_cast<uint32_t>(file);
        config.info.lo_flags = LO_FLAGS_DIRECT_IO | LO_FLAGS_AUTOCLEAR;
        std::strcpy(reinterpret_cast<char*>(config.info.lo_file_name), "fault-disk");
        if (::ioctl(loop_.get(), LOOP_CONFIGURE, &config) == 0) return;
        if (errno != EBUSY) throw failure(device_);
    }
    throw failure("no free loop device");
}

FaultDisk::~FaultDisk() {
    // Whoever still has it mounted gets errors from now on, instead of waiting.
    if (loop_) ::ioctl(loop_.get(), LOOP_CLR_FD, 0);
    loop_.reset();
    if (server_ > 0) {
        ::kill(server_, SIGKILL);
        ::waitpid(server_, nullptr, 0);
    }
    if (shared_ == nullptr) return;
    ::munmap(shared_->trace, shared_->memory());
    ::munmap(shared_, sizeof(Shared));
}

// --- the serving process ---

namespace {

template <class Shared>
Shared& shared_of(fuse_req_t request) {
    return *static_cast<Shared*>(fuse_req_userdata(request));
}

}  // namespace

void FaultDisk::serve(Shared& shared, int fuse) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    // Not for us, but for the tests' descriptors: a copy of a fanotify group keeps openers waiting.
    constexpr int kFuse = 3;
    if (fuse != kFuse && ::dup2(fuse, kFuse) < 0) ::_exit(1);
    ::close_range(kFuse + 1, ~0U, 0);

    fuse_lowlevel_ops ops{};
    ops.getattr = [](fuse_req_t request, fuse_ino_t, fuse_file_info*) {
        struct stat st{};
        st.st_ino = FUSE_ROOT_ID;
        st.st_mode = S_IFREG | 0600;
        st.st_nlink = 1;
        st.st_blksize = kDiskBlock;
        st.st_size = static_cast<off_t>(shared_of<Shared>(request).size);
        fuse_reply_attr(request, &st, 3600);
    };
    ops.open = [](fuse_req_t request, fuse_ino_t, fuse_file_info* info) {
        info->direct_io = 1;
        fuse_reply_open(request, info);
    };
    ops.read = [](fuse_req_t request, fuse_ino_t, size_t length, off_t at, fuse_file_info*) {
        const Shared& disk = shared_of<Shared>(request);
        const auto offset = std::min(static_cast<uint64_t>(at), disk.size);
        fuse_reply_buf(request, reinterpret_cast<const char*>(disk.image + offset),
                       std::min(length, disk.size - offset));
    };
    ops.write = [](fuse_req_t request, fuse_ino_t, const char* data, size_t length, off_t at,
                   fuse_file_info*) {
        const int error = shared_of<Shared>(request).write(
            static_cast<uint64_t>(at), {reinterpret_cast<const std::byte*>(data), length});
        if (error != 0)
            fuse_reply_err(request, error);
        else
            fuse_reply_write(request, length);
    };
    ops.fsync = [](fuse_req_t request, fuse_ino_t, int, fuse_file_info*) {
        fuse_reply_err(request, shared_of<Shared>(request).flush());
    };
    char name[] = "fault-disk";
    char* arguments[] = {name, nullptr};
    fuse_args args = FUSE_ARGS_INIT(1, arguments);
    fuse_session* session = fuse_session_new(&args, &ops, sizeof ops, &shared);
    const std::string where = "/dev/fd/" + std::to_string(kFuse);
    if (session == nullptr || fuse_session_mount(session, where.c_str()) != 0) ::_exit(1);
    fuse_session_loop(session);
    ::_exit(0);
}

// --- the test's side ---

size_t FaultDisk::events() const {
    return shared_->event_count;
}
uint64_t FaultDisk::writes() const {
    return shared_->writes;
}
uint64_t FaultDisk::flushes() const {
    return shared_->flushes;
}
uint64_t FaultDisk::failed() const {
    return shared_->failed;
}

void FaultDisk::fail(What what, uint64_t nth, uint64_t times) {
    heal();
    shared_->let_pass = nth;
    shared_->fail_left = times;
    shared_->fail_flushes = what != What::Write;
    shared_->fail_writes = what != What::Flush;
}

void FaultDisk::heal() {
    shared_->fail_writes = false;
    shared_->fail_flushes = false;
    shared_->free_blocks = ~uint64_t{0};
}

void FaultDisk::fill_up_after(uint64_t blocks) {
    shared_->free_blocks = blocks;
}

Image FaultDisk::contents() const {
    return {shared_->image, shared_->image + shared_->size};
}

std::unique_ptr<CrashDevice> FaultDisk::recorded() const {
    auto trace = std::make_unique<CrashDevice>(initial_);
    const size_t count = events();
    for (size_t i = 0; i < count; ++i) {
        const Shared::Event& event = shared_->events[i];
        const auto done = event.length == 0
                              ? trace->flush()
                              : trace->write(ByteOffset(event.offset),
                                             {shared_->trace + event.data, event.length});
        if (!done) throw std::runtime_error("fault disk: " + done.error().message);
    }
    return trace;
}

}  // namespace atomic4::test
