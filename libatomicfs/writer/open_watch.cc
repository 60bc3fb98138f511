#include "writer/open_watch.h"

#include <fcntl.h>
#include <sys/fanotify.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <csignal>

namespace atomic4 {
namespace {

constexpr uint64_t kMask = FAN_OPEN_PERM | FAN_CLOSE_WRITE;
constexpr int kEventsPerDrain = 256;
constexpr rlim_t kMostDescriptors = 1 << 20;

}  // namespace

Result<UniqueFd> OpenWatch::new_group() {
    const int group = ::fanotify_init(
        FAN_CLASS_CONTENT | FAN_CLOEXEC | FAN_NONBLOCK | FAN_UNLIMITED_QUEUE | FAN_UNLIMITED_MARKS,
        O_RDONLY | O_CLOEXEC | O_LARGEFILE);
    if (group < 0) return fail(Error::from_errno(errno, "fanotify_init for permission events"));
    return UniqueFd(group);
}

OpenWatch::OpenWatch(UniqueFd group) : group_(std::move(group)), own_pid_(::getpid()) {
    make_reserve();
}

Result<> OpenWatch::watch(int group, int file) {
    if (::fanotify_mark(group, FAN_MARK_ADD, kMask, file, nullptr) != 0)
        return fail(Error::from_errno(errno, "fanotify: watching a file"));
    return {};
}

Result<> OpenWatch::unwatch(int group, int file) {
    if (::fanotify_mark(group, FAN_MARK_REMOVE, kMask, file, nullptr) != 0 && errno != ENOENT)
        return fail(Error::from_errno(errno, "fanotify: no longer watching a file"));
    return {};
}

Result<> OpenWatch::drain(const Handler& handler) {
    for (int i = 0; i < kEventsPerDrain; ++i) {
        if (!A4_TRY(read_one(handler))) break;
    }
    return {};
}

bool OpenWatch::make_reserve() {
    if (!reserve_) reserve_.reset(::fcntl(group_.get(), F_DUPFD_CLOEXEC, 0));
    return static_cast<bool>(reserve_);
}

// False: nothing more for now.
Result<bool> OpenWatch::read_one(const Handler& handler) {
    // Without a descriptor for the event the kernel refuses the open. So none is read unless one
    // is kept for it, and one at a time.
    if (!make_reserve()) return false;
    reserve_.reset();
    fanotify_event_metadata event{};
    const ssize_t got = ::read(group_.get(), &event, sizeof(event));
    const int error = errno;
    UniqueFd file(got == sizeof(event) ? event.fd : -1);
    make_reserve();

    if (got < 0) {
        if (error == EAGAIN) return false;
        if (error == EINTR) return true;
        return fail(Error::from_errno(error, "fanotify: reading an event (its open was refused)"));
    }
    if (got != sizeof(event) || event.vers != FANOTIFY_METADATA_VERSION)
        return fail(EPROTO, "fanotify: an event of an unknown form");

    OpenEvent told;
    told.pid = event.pid;
    if (event.mask & FAN_Q_OVERFLOW) {
        handler(told);
        return true;
    }
    struct stat st{};
    if (::fstat(file.get(), &st) == 0) {
        told.device = st.st_dev;
        told.inode = st.st_ino;
    }
    if (event.mask & FAN_OPEN_PERM) {
        if (event.pid == own_pid_) {
            A4_CHECK(answer(file.get()));
            return true;
        }
        told.kind = OpenEvent::Kind::Open;
        told.token = next_token_++;
        told.fd = file.get();
        // The descriptor stays open: its number is the event's name until it is answered.
        held_.emplace(told.token, std::move(file));
    } else {
        told.kind = OpenEvent::Kind::CloseWrite;
    }
    handler(told);
    return true;
}

Result<> OpenWatch::answer(int event_fd) const {
    const fanotify_response response{.fd = event_fd, .response = FAN_ALLOW};
    ssize_t written = 0;
    do {
        written = ::write(group_.get(), &response, sizeof(response));
    } while (written < 0 && errno == EINTR);
    // ENOENT: the opener was killed.
    if (written < 0 && errno != ENOENT)
        return fail(Error::from_errno(errno, "fanotify: letting an opener through"));
    return {};
}

Result<> OpenWatch::allow(uint64_t token) {
    const auto found = held_.find(token);
    if (found == held_.end()) return fail(ENOENT, "no opener is held under token {}", token);
    UniqueFd file = std::move(found->second);
    held_.erase(found);
    auto answered = answer(file.get());
    file.reset();
    make_reserve();
    return answered;
}

Result<size_t> OpenWatch::answer_orphans() {
    // The same number again would name the elder of two events.
    if (!held_.empty()) return fail(EBUSY, "answer orphans before the first event is read");
    rlimit limit{};
    if (::getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return fail(Error::from_errno(errno, "getrlimit(RLIMIT_NOFILE)"));
    const int end = static_cast<int>(std::min(limit.rlim_max, kMostDescriptors));
    size_t answered = 0;
    for (int fd = 0; fd < end;) {
        const fanotify_response response{.fd = fd, .response = FAN_ALLOW};
        if (::write(group_.get(), &response, sizeof(response)) >= 0) {
            ++answered;  // once more: several processes may have died with this number
        } else if (errno == ENOENT) {
            ++fd;
        } else if (errno != EINTR) {
            return fail(
                Error::from_errno(errno, "fanotify: letting a dead process's opener go on"));
        }
    }
    return answered;
}

Result<bool> OpenWatch::nobody_writes(int read_only_fd) {
    // Somebody who truncates just now breaks the lease; the signal for that, by default SIGIO,
    // would kill us. SIGURG is ignored unless handled, and is no realtime signal, which would fall
    // back to SIGIO when its queue is full.
    if (::fcntl(read_only_fd, F_SETSIG, SIGURG) != 0)
        return fail(Error::from_errno(errno, "fcntl(F_SETSIG)"));
    if (::fcntl(read_only_fd, F_SETLEASE, F_RDLCK) != 0) {
        if (errno == EAGAIN) return false;
        return fail(Error::from_errno(errno, "asking who writes a file (read lease)"));
    }
    if (::fcntl(read_only_fd, F_SETLEASE, F_UNLCK) != 0)
        return fail(Error::from_errno(errno, "giving a read lease back"));
    return true;
}

}  // namespace atomic4
