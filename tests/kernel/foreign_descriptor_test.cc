// A descriptor of a FUSE file whose server, a client perhaps, doesn't answer.
#include "daemon/foreign_descriptor.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/fuse.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <thread>
#include <vector>

#include "daemon/authority.h"
#include "support/command.h"
#include "support/privileged.h"

namespace atomic4::test {
namespace {

constexpr uid_t kUser = 4711;

// A filesystem with one file, "f". It answers everything but FLUSH, which it keeps.
class FuseServer {
  public:
    explicit FuseServer(std::string directory) : directory_(std::move(directory)) {
        device_.reset(::open("/dev/fuse", O_RDWR | O_CLOEXEC));
        if (!device_) return;
        const std::string options =
            fmt::format("fd={},rootmode=40000,user_id=0,group_id=0", device_.get());
        mounted_ = ::mount("fuse", directory_.c_str(), "fuse", 0, options.c_str()) == 0;
        if (mounted_) thread_ = std::thread([this] { serve(); });
    }
    ~FuseServer() {
        // Ends the connection, and so the thread.
        if (mounted_) ::umount2(directory_.c_str(), MNT_DETACH);
        if (thread_.joinable()) thread_.join();
    }
    FuseServer(const FuseServer&) = delete;
    FuseServer& operator=(const FuseServer&) = delete;

    bool mounted() const { return mounted_; }
    int requests() const { return requests_; }
    void wait_for_flush() {
        std::unique_lock lock(mutex_);
        arrived_.wait(lock, [&] { return flush_ != 0; });
    }
    void answer_flush() {
        const std::lock_guard lock(mutex_);
        reply(flush_, nullptr, 0);
    }

  private:
    static constexpr uint64_t kRoot = FUSE_ROOT_ID;
    static constexpr uint64_t kFile = 2;

    static fuse_attr attributes(uint64_t node) {
        fuse_attr attr{};
        attr.ino = node;
        attr.mode = node == kRoot ? S_IFDIR | 0755 : S_IFREG | 0644;
        attr.nlink = 1;
        return attr;
    }
    void reply(uint64_t unique, const void* body, size_t size, int error = 0) {
        std::vector<char> packet(sizeof(fuse_out_header) + size);
        fuse_out_header header{static_cast<uint32_t>(packet.size()), -error, unique};
        std::memcpy(packet.data(), &header, sizeof header);
        if (size > 0) std::memcpy(packet.data() + sizeof header, body, size);
        // Nobody may be waiting any more.
        (void)!::write(device_.get(), packet.data(), packet.size());
    }
    void serve() {
        std::vector<char> packet(1 << 20);
        while (::read(device_.get(), packet.data(), packet.size()) > 0) {
            fuse_in_header in{};
            std::memcpy(&in, packet.data(), sizeof in);
            ++requests_;
            answer(in);
        }
    }
    void answer(const fuse_in_header& in) {
        switch (in.opcode) {
            case FUSE_INIT: {
                fuse_init_out out{};
                out.major = FUSE_KERNEL_VERSION;
                out.minor = FUSE_KERNEL_MINOR_VERSION;
                out.max_write = 4096;
                return reply(in.unique, &out, sizeof out);
            }
            case FUSE_LOOKUP: {
                fuse_entry_out out{};
                out.nodeid = kFile;
                out.attr = attributes(kFile);
                return reply(in.unique, &out, sizeof out);
            }
            case FUSE_GETATTR: {
                fuse_attr_out out{};
                out.attr = attributes(in.nodeid);
                return reply(in.unique, &out, sizeof out);
            }
            case FUSE_OPEN: {
                fuse_open_out out{};
                return reply(in.unique, &out, sizeof out);
            }
            case FUSE_FLUSH: {
                const std::lock_guard lock(mutex_);
                flush_ = in.unique;
                return arrived_.notify_all();
            }
            case FUSE_FORGET:
            case FUSE_BATCH_FORGET:
                return;
            case FUSE_RELEASE:
                return reply(in.unique, nullptr, 0);
            default:
                return reply(in.unique, nullptr, 0, ENOSYS);
        }
    }

    std::string directory_;
    UniqueFd device_;
    bool mounted_ = false;
    std::atomic<int> requests_ = 0;
    std::mutex mutex_;
    std::condition_variable arrived_;
    uint64_t flush_ = 0;
    std::thread thread_;
};

TEST(ForeignDescriptor, AServerThatDoesNotAnswerHoldsNobodyUp) {
    A4_REQUIRE_ROOT();
    const TempDir dir;
    FuseServer server(dir.path());
    if (!server.mounted()) A4_SKIP("FUSE filesystems can't be mounted here");
    UniqueFd fd(::open(dir.file("f").c_str(), O_RDWR | O_CLOEXEC));
    ASSERT_TRUE(fd) << std::strerror(errno);
    struct stat own{};
    ASSERT_EQ(::stat("/", &own), 0);

    // Judged without a word to the server, although the attributes aren't cached.
    const int before = server.requests();
    const auto grant = authorize_descriptor(Peer{}, fd.get(), own.st_dev, true, true);
    ASSERT_FALSE(grant);
    EXPECT_EQ(grant.error().code, EXDEV);
    EXPECT_EQ(server.requests(), before);

    // Returns while the server keeps the closing thread waiting.
    close_foreign(std::move(fd), kUser);
    server.wait_for_flush();
    EXPECT_EQ(foreign_pending(kUser), 1u);
    EXPECT_EQ(foreign_pending(kUser + 1), 0u);
    server.answer_flush();
    while (foreign_pending(kUser) != 0) std::this_thread::yield();
}

TEST(ForeignDescriptor, OrdinaryOnes) {
    close_foreign(UniqueFd(), kUser);
    EXPECT_EQ(foreign_pending(kUser), 0u);
    // Its number may be another's at once; the pipe's other end knows.
    std::array<int, 2> ends{};
    ASSERT_EQ(::pipe2(ends.data(), O_CLOEXEC | O_NONBLOCK), 0);
    const UniqueFd reader(ends[0]);
    char byte = 0;
    ASSERT_EQ(::read(reader.get(), &byte, 1), -1);
    close_foreign(UniqueFd(ends[1]), kUser);
    while (foreign_pending(kUser) != 0) std::this_thread::yield();
    EXPECT_EQ(::read(reader.get(), &byte, 1), 0);
}

}  // namespace
}  // namespace atomic4::test
