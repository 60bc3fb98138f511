// A MountedTarget over a mount, from recovery to its end, with others who use the same files: in
// one process, so that a test decides what happens when.
#pragma once

#include <fcntl.h>

#include <optional>
#include <string>

#include "redo/mounted_replay.h"
#include "support/target_driver.h"
#include "writer/helper_threads.h"
#include "writer/mounted_target.h"

namespace atomic4::test {

class MountedSession {
  public:
    // Recovers, then serves. Holds the volume until stop() or the destructor; the latter is like a
    // kill, if nothing is under way.
    static Result<std::unique_ptr<MountedSession>> start(const std::string& dir,
                                                         const MountHistory& history) {
        std::unique_ptr<MountedSession> session(new MountedSession(dir));
        auto volume = A4_TRY(MountedVolume::open(dir));
        MountedLog log = A4_TRY(recover_mounted_log(*volume, history));
        session->replayed = std::move(log.replayed);
        session->loop_ = A4_TRY(EventLoop::create());
        MountedTarget::Options options;
        options.openers = std::make_unique<OwnOpeners>(A4_TRY(OpenWatch::new_group()));
        session->target_ = A4_TRY(MountedTarget::open(*session->loop_, std::move(volume),
                                                      log.contents, std::move(options)));
        session->driver_.emplace(*session->loop_, *session->target_);
        session->others_ = A4_TRY(HelperThreads::start(*session->loop_));
        return session;
    }
    ~MountedSession() {
        target_.reset();
        others_.reset();
        loop_.reset();
    }
    MountedSession(const MountedSession&) = delete;
    MountedSession& operator=(const MountedSession&) = delete;

    MountedTarget& target() { return *target_; }
    TargetDriver& driver() { return *driver_; }
    // For what others do: the loop's own thread must not wait for itself.
    HelperThreads& others() { return *others_; }
    std::string path(const std::string& name) const { return dir_ + "/" + name; }

    // What others' work returned, while the loop goes on.
    int by_others(std::function<int()> work) {
        std::optional<int> result;
        others_->run(std::move(work), [&](int value) { result = value; });
        driver_->run_until([&] { return result.has_value(); });
        return *result;
    }
    UniqueFd open_by_others(const std::string& name, int flags) {
        const int fd = by_others([where = path(name), flags] {
            const int opened = ::open(where.c_str(), flags | O_CLOEXEC, 0644);
            return opened < 0 ? -errno : opened;
        });
        if (fd < 0) errno = -fd;
        return UniqueFd(fd < 0 ? -1 : fd);
    }
    Result<FileRef> open(const std::string& name) {
        UniqueFd fd = open_by_others(name, O_RDWR | O_CREAT);
        if (!fd) return fail(Error::from_errno(errno, name));
        auto shared = std::make_shared<UniqueFd>(std::move(fd));
        return driver_->wait<FileRef>([&](auto done) {
            target_->open_file(std::move(*shared), ::getpid(), false, std::move(done));
        });
    }

    std::optional<ReplayReport> replayed;  // at the start

  private:
    explicit MountedSession(std::string dir) : dir_(std::move(dir)) {}

    std::string dir_;
    std::unique_ptr<EventLoop> loop_;
    std::unique_ptr<MountedTarget> target_;
    std::unique_ptr<HelperThreads> others_;
    std::optional<TargetDriver> driver_;
};

}  // namespace atomic4::test
