// Tests of the real thing: a kernel mount of an atomic4 volume in a loop device, and atomic4d
// serving it.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "client/client.h"
#include "support/bytes.h"
#include "support/daemon_process.h"
#include "support/mounted_image.h"
#include "support/privileged.h"
#include "support/results.h"

namespace atomic4::test {

inline constexpr uint64_t kKiB = 1024;
inline constexpr uint64_t kMiB = 1024 * kKiB;
inline constexpr uint64_t kUnit = 16 * kKiB;

// ATOMIC4_LONG=1 in the environment: the form that takes minutes.
inline bool long_form() {
    const char* value = std::getenv("ATOMIC4_LONG");
    return value != nullptr && *value != '\0' && *value != '0';
}

// ATOMIC4_SEED in the environment, or a new one; said, so that a failure can be repeated.
inline uint64_t test_seed() {
    const char* value = std::getenv("ATOMIC4_SEED");
    const uint64_t seed = value ? std::strtoull(value, nullptr, 0) : std::random_device{}();
    fmt::print("seed {} (ATOMIC4_SEED={} repeats it)\n", seed, seed);
    return seed;
}

// Memory for O_DIRECT.
class DirectBuffer {
  public:
    explicit DirectBuffer(size_t size)
        : memory_(static_cast<std::byte*>(std::aligned_alloc(4096, (size + 4095) / 4096 * 4096))),
          size_(size) {}
    std::span<std::byte> span() const { return {memory_.get(), size_}; }
    std::byte* data() const { return memory_.get(); }

  private:
    struct Free {
        void operator()(std::byte* memory) const { std::free(memory); }
    };
    std::unique_ptr<std::byte, Free> memory_;
    size_t size_;
};

inline UniqueFd open_path(const std::string& path, int flags) {
    UniqueFd fd(::open(path.c_str(), flags | O_CLOEXEC, 0644));
    if (!fd) throw std::runtime_error(path + ": " + std::strerror(errno));
    return fd;
}

// Up to length bytes; flags: O_DIRECT to ask the disk (then offset and length are block multiples).
inline std::vector<std::byte> read_path(const std::string& path, uint64_t offset, uint64_t length,
                                        int flags = 0) {
    const UniqueFd fd = open_path(path, O_RDONLY | flags);
    const DirectBuffer buffer(length);
    const ssize_t n = ::pread(fd.get(), buffer.data(), length, static_cast<off_t>(offset));
    if (n < 0) throw std::runtime_error(path + ": reading: " + std::strerror(errno));
    return {buffer.data(), buffer.data() + n};
}

// A client's own descriptor, passed and closed: the file can become exclusive.
inline File open_through(Client& client, const std::string& path,
                         uint32_t flags = wire::kOpenRead | wire::kOpenWrite,
                         wire::WireEngine engine = wire::WireEngine::Auto) {
    const UniqueFd fd = open_path(path, O_RDWR);
    return must(client.open(fd.get(), flags, engine));
}

// The daemon looks again a moment after a writer has gone: asked until it has seen it.
inline bool until_exclusive(Client& client, uint64_t handle) {
    for (int i = 0; i < 20000; ++i)
        if (must(client.statx(handle)).ack_mode == wire::AckMode::Exclusive) return true;
    return false;
}

class ServedTest : public ::testing::Test {
  protected:
    struct Volume {
        uint64_t size = 96 * kMiB;
        uint64_t log = 16448 * kKiB;  // takes units of 4 MiB
        std::vector<std::string> mkfs = {"-b", "4096"};
        std::string mount = "rw";
        std::vector<std::string> daemon;
    };

    void SetUp() override {
        if (const auto why = why_no_mounts()) A4_SKIP(*why);
    }
    void TearDown() override {
        if (HasFailure() && daemon_) fmt::print(stderr, "--- atomic4d said:\n{}", daemon_->said());
        daemon_.reset();
        image_.reset();
    }

    void serve(const Volume& volume) {
        mount(volume);
        daemon_.emplace(image_->dir(), volume.daemon);
    }
    void serve() { serve(Volume()); }
    void mount(const Volume& volume) {
        EnableOptions options;
        options.log_size = Bytes(volume.log);
        image_.emplace(make_atomic4(volume.size, volume.mkfs, options));
        image_->mount(volume.mount);
    }
    // Everything as an orderly end leaves it.
    void stop_and_check() {
        EXPECT_EQ(daemon_->stop(), 0) << daemon_->said();
        image_->unmount();
        EXPECT_EQ(fsck_complaints(image_->load()), "");
    }

    std::string path(const std::string& name) const { return image_->file(name); }
    std::unique_ptr<Client> connect(const ClientOptions& options = {}) const {
        return must(Client::connect(daemon_->socket(), options));
    }
    // A file of zeros, written: its blocks are mapped.
    void make_file(const std::string& name, uint64_t size) const {
        const UniqueFd fd = open_path(path(name), O_RDWR | O_CREAT | O_TRUNC);
        const std::vector<std::byte> zeros(kMiB);
        for (uint64_t at = 0; at < size; at += kMiB) {
            const size_t length = std::min<uint64_t>(kMiB, size - at);
            if (::pwrite(fd.get(), zeros.data(), length, static_cast<off_t>(at)) !=
                static_cast<ssize_t>(length))
                throw std::runtime_error(name + ": filling: " + std::strerror(errno));
        }
        if (::fsync(fd.get()) != 0) throw std::runtime_error(name + ": fsync");
    }
    static bool until_exclusive(Client& client, const File& file) {
        return test::until_exclusive(client, file.handle);
    }

    std::optional<MountedImage> image_;
    std::optional<DaemonProcess> daemon_;
};

}  // namespace atomic4::test
