// A daemon that serves a mounted or an owned volume, and what it costs: descriptors and memory.
#pragma once

#include <gmock/gmock.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <optional>

#include "ext4/atomic_file.h"
#include "support/other_process.h"
#include "support/served_volume.h"
#include "support/wire_client.h"
#include "writer/open_volume.h"

// What a sanitizer keeps for itself is no leak of ours.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define A4_SANITIZED 1
#else
#define A4_SANITIZED 0
#endif

namespace atomic4::test {

inline constexpr uint64_t kFileSize = 16 * kMiB;

// /data of 16 MiB with units of 16 KiB, on a volume whose log takes writes of 4 MiB.
inline Image hostile_image() {
    EnableOptions options;
    options.log_size = Bytes(16448 * kKiB);
    Image image = make_atomic4(64 * kMiB, {"-b", "4096"}, options);
    auto opened = open_for_writing(std::make_unique<ImageDevice>(image)).value();
    NewFile file;
    file.size = Bytes(kFileSize);
    file.unit = Bytes(kUnit);
    create_atomic_file(*opened.volume, "/data", file).value();
    return image;
}

// Mounted, so that files can be made, until it is served; then so, or owned by the daemon.
class DaemonVolume {
  public:
    explicit DaemonVolume(bool mounted) : image_(hostile_image()), mounted_(mounted) {
        image_.mount();
        let_others_pass(image_.path());
    }
    void serve(std::vector<std::string> more = {}) {
        if (!mounted_) image_.unmount();
        more.insert(more.end(), {"--spin", "0", "--socket-mode", "0666"});
        if (const char* backend = std::getenv("ATOMIC4_TEST_BACKEND"))
            more.insert(more.end(), {"--backend", backend});
        daemon_.emplace(mounted_ ? image_.dir() : image_.device(), more);
        let_others_pass(daemon_->socket());
    }
    DaemonProcess& daemon() { return *daemon_; }
    const std::string& socket() const { return daemon_->socket(); }
    bool mounted() const { return mounted_; }
    std::string file(const std::string& name) const { return image_.file(name); }

    // Greeted.
    WireClient client(const Identity& who = {}) const {
        WireClient client(socket(), who);
        if (client.hello().error != 0) throw std::runtime_error("HELLO");
        return client;
    }
    // Of a file in the root directory.
    uint64_t open(WireClient& client, const std::string& name, uint32_t flags) const {
        if (!mounted_) return client.must_open(-1, flags, "/" + name);
        const UniqueFd fd(::open(file(name).c_str(), O_RDWR | O_CLOEXEC));
        return client.must_open(fd.get(), flags);
    }

    size_t descriptors() const {
        const std::filesystem::directory_iterator all(
            fmt::format("/proc/{}/fd", daemon_->worker()));
        return static_cast<size_t>(std::distance(begin(all), end(all)));
    }
    // What is given back in the background (a thread that closes, a file at rest) is waited for,
    // until the number is no larger than that.
    ::testing::AssertionResult descriptors_come_down_to(size_t most) const {
        WireClient asking = client();
        const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(kPatienceMs);
        size_t now = 0;
        do {
            // The one that asks has one itself.
            now = descriptors() - 1;
            if (now <= most) return ::testing::AssertionSuccess();
        } while (asking.ask(wire::Type::Ping).error == 0 && std::chrono::steady_clock::now() < end);
        return ::testing::AssertionFailure() << now << " descriptors are open, not " << most;
    }
    size_t resident_bytes() const {
        std::ifstream statm(fmt::format("/proc/{}/statm", daemon_->worker()));
        size_t total = 0, resident = 0;
        statm >> total >> resident;
        return resident * static_cast<size_t>(::sysconf(_SC_PAGESIZE));
    }

  private:
    // Other users, on their way to a file in a temporary directory.
    static void let_others_pass(const std::string& path) {
        std::filesystem::permissions(std::filesystem::path(path).parent_path(),
                                     std::filesystem::perms(0711));
    }

    MountedImage image_;
    bool mounted_;
    std::optional<DaemonProcess> daemon_;
};

// With a mounted and an owned volume.
class DaemonTest : public ::testing::TestWithParam<bool> {
  protected:
    void SetUp() override {
        if (const auto why = why_no_mounts()) A4_SKIP(*why);
        volume_.emplace(GetParam());
        prepare();
        volume_->serve();
        pid_ = volume_->daemon().worker();
    }
    // Files, before anything is served.
    virtual void prepare() {}
    void TearDown() override {
        if (!volume_) return;
        // No crash, no restart, no leak (a sanitizer's report is an exit status of its own).
        if (!stopped_) {
            EXPECT_EQ(volume_->daemon().worker(), pid_) << volume_->daemon().said();
            stop();
        }
        EXPECT_THAT(volume_->daemon().said(), ::testing::Not(::testing::HasSubstr("Sanitizer")));
        EXPECT_THAT(volume_->daemon().said(),
                    ::testing::Not(::testing::HasSubstr("runtime error")));
    }
    DaemonVolume& volume() { return *volume_; }
    // An orderly end now, with the clients that the test has.
    void stop() {
        stopped_ = true;
        EXPECT_EQ(volume_->daemon().stop(), 0) << volume_->daemon().said();
    }

  private:
    std::optional<DaemonVolume> volume_;
    pid_t pid_ = -1;
    bool stopped_ = false;
};

inline std::string volume_name(const ::testing::TestParamInfo<bool>& info) {
    return info.param ? "mounted" : "owned";
}

}  // namespace atomic4::test
