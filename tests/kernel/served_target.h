// A fixture: a MountedTarget in this process over a mounted image, on either event loop, and others
// who use the same files.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "redo/log_reader.h"
#include "support/backends.h"
#include "support/mounted_image.h"
#include "support/other_process.h"
#include "support/privileged.h"
#include "support/target_driver.h"
#include "writer/mounted_target.h"

namespace atomic4::test {

class ServedTarget : public ::testing::TestWithParam<EventLoop::Backend> {
  protected:
    void SetUp() override {
        if (const auto why = why_no_mounts()) A4_SKIP(*why);
    }
    void TearDown() override { kill(); }

    void mount(const Image& image) {
        image_.emplace(image);
        image_->mount();
    }
    // What is mounted, whose log has nothing live.
    void begin(std::unique_ptr<EventLoop> loop, MountedTarget::Options options) {
        loop_ = std::move(loop);
        auto volume = MountedVolume::open(image_->dir());
        ASSERT_TRUE(volume) << volume.error().message;
        const auto contents = read_log((*volume)->log(), (*volume)->attr().log_id);
        ASSERT_TRUE(contents) << contents.error().message;
        ASSERT_TRUE(contents->live.empty());
        auto target =
            MountedTarget::open(*loop_, std::move(*volume), *contents, std::move(options));
        ASSERT_TRUE(target) << target.error().message;
        target_ = std::move(*target);
        driver_.emplace(*loop_, *target_);
        others_ = HelperThreads::start(*loop_).value();
    }
    std::unique_ptr<EventLoop> new_loop() { return EventLoop::create(GetParam()).value(); }
    // Without a last word to the log.
    void kill() {
        target_.reset();
        others_.reset();
        loop_.reset();
    }
    void stop() {
        const auto stopped = driver_->stop();
        EXPECT_TRUE(stopped) << stopped.error().message;
        kill();
    }

    std::string path(const std::string& name = "data") const { return image_->file(name); }
    // By another thread: the loop's own would wait for itself.
    UniqueFd open_file(const std::string& name, int flags) {
        std::optional<int> result;
        others_->run(
            [where = path(name), flags] {
                const int fd = ::open(where.c_str(), flags | O_CLOEXEC, 0644);
                return fd < 0 ? -errno : fd;
            },
            [&](int fd) { result = fd; });
        driver_->run_until([&] { return result.has_value(); });
        if (*result < 0) errno = -*result;
        return UniqueFd(*result < 0 ? -1 : *result);
    }
    Result<FileRef> open(const std::string& name = "data", int flags = O_RDWR | O_CREAT) {
        UniqueFd fd = open_file(name, flags);
        if (!fd) return fail(Error::from_errno(errno, name));
        return open(std::move(fd));
    }
    Result<FileRef> open(UniqueFd fd, bool cooperative = false) {
        // Another thread's view of the daemon's client: it has closed its own.
        auto shared = std::make_shared<UniqueFd>(std::move(fd));
        return driver_->wait<FileRef>([&](auto done) {
            target_->open_file(std::move(*shared), ::getpid(), cooperative, std::move(done));
        });
    }
    FileRef must_open(const std::string& name = "data") {
        auto file = open(name);
        EXPECT_TRUE(file) << file.error().message;
        return file ? *file : nullptr;
    }
    FileLimits limits(const FileRef& file) { return target_->limits(file).value(); }
    TargetCounts counts() const { return target_->counts(); }
    std::vector<std::byte> on_disk(const std::string& name, uint64_t offset, uint64_t length) {
        std::vector<std::byte> bytes(length);
        const UniqueFd fd = open_file(name, O_RDONLY);
        const ssize_t n = ::pread(fd.get(), bytes.data(), length, static_cast<off_t>(offset));
        bytes.resize(static_cast<size_t>(std::max<ssize_t>(n, 0)));
        return bytes;
    }
    // Its answer alone wakes the loop, if nothing else does.
    void until_answered(const OtherProcess& other) {
        const auto poll = loop_->poll(other.answers(), POLLIN, [](int) {});
        driver_->run_until([&] { return other.answered(); });
        loop_->unpoll(poll);
    }
    // As the process that runs the loop can't wait for its own answer.
    char other_step(OtherProcess& other, char step) {
        other.begin(step);
        until_answered(other);
        return other.result();
    }

    std::optional<MountedImage> image_;
    std::unique_ptr<EventLoop> loop_;
    std::unique_ptr<MountedTarget> target_;
    std::unique_ptr<HelperThreads> others_;
    std::optional<TargetDriver> driver_;
    std::mt19937_64 random_{42};
};

}  // namespace atomic4::test
