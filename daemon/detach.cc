#include "daemon/detach.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>

namespace atomic4 {
namespace {

void write_all(int fd, const std::string& text) {
    size_t done = 0;
    while (done < text.size()) {
        const ssize_t n = ::write(fd, text.data() + done, text.size() - done);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return;  // nobody listens any more
        done += static_cast<size_t>(n);
    }
}

}  // namespace

Result<Detached> detach() {
    std::array<int, 2> ends{};
    if (::pipe2(ends.data(), O_CLOEXEC) != 0) return fail(Error::from_errno(errno, "pipe"));
    UniqueFd read_end(ends[0]);
    UniqueFd write_end(ends[1]);
    const pid_t child = ::fork();
    if (child < 0) return fail(Error::from_errno(errno, "fork"));
    Detached detached;
    if (child > 0) {
        detached.parent_ = true;
        detached.pipe_ = std::move(read_end);
        return detached;
    }
    ::setsid();
    if (::chdir("/") != 0) return fail(Error::from_errno(errno, "/"));
    // Whoever waits for the end of our output must not wait for a daemon's. Words go by the pipe.
    const UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
    for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) ::dup2(null.get(), fd);
    detached.pipe_ = std::move(write_end);
    return detached;
}

int Detached::wait() {
    std::string said;
    std::array<char, 512> buffer{};
    for (;;) {
        const ssize_t n = ::read(pipe_.get(), buffer.data(), buffer.size());
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) break;
        said.append(buffer.data(), static_cast<size_t>(n));
        // Not only at the end of the pipe: the keeper holds it as long as it lives.
        if (said == "+") return 0;
    }
    if (said.empty()) said = "atomic4d: it ended before it was ready";
    write_all(STDERR_FILENO, said + "\n");
    return 1;
}

void Detached::ready() {
    if (!pipe_) return;
    write_all(pipe_.get(), "+");
    pipe_.reset();
}

void Detached::failed(const std::string& message) {
    if (!pipe_) return;
    write_all(pipe_.get(), message);
    pipe_.reset();
}

}  // namespace atomic4
