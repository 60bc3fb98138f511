#include "daemon/service_manager.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#include "support/command.h"
#include "support/failing_syscalls.h"

namespace atomic4::test {
namespace {

using testing::EndsWith;
using testing::HasSubstr;

constexpr int kFirst = 3;  // where the service manager puts what it passes

// Runs body in a child that finds these descriptors where a service manager puts them. It gives
// back what body says.
std::string in_service(const std::vector<int>& descriptors,
                       const std::function<std::string()>& body) {
    return run_with_failing_syscalls({}, [&]() -> std::string {
        // Out of the way first, each kept from what is put in its place.
        std::vector<int> high;
        for (const int fd : descriptors) high.push_back(::fcntl(fd, F_DUPFD, 100));
        // The child's report goes through a descriptor that may lie there.
        int at = kFirst;
        std::vector<std::pair<int, int>> saved;
        for (const int fd : high) {
            saved.emplace_back(at, ::fcntl(at, F_DUPFD, 200));
            if (::dup2(fd, at++) < 0) return "dup2";
        }
        ::setenv("LISTEN_PID", std::to_string(::getpid()).c_str(), 1);
        if (!descriptors.empty())
            ::setenv("LISTEN_FDS", std::to_string(descriptors.size()).c_str(), 1);
        std::string said = body();
        for (const auto& [place, original] : saved) {
            if (original >= 0) ::dup2(original, place);
        }
        return said;
    });
}

std::string listen_in_child() {
    auto socket = listen_socket();
    if (!socket) {
        return fmt::format("{}: {}", socket.error().code, socket.error().message);
    }
    if (!*socket) return "none";
    if ((::fcntl((*socket)->get(), F_GETFD) & FD_CLOEXEC) == 0) return "not close-on-exec";
    if (std::getenv("LISTEN_FDS") != nullptr) return "still in the environment";
    return fmt::format("socket {}", (*socket)->get());
}

UniqueFd bound(int type, const std::string& path, bool listening) {
    UniqueFd fd(::socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
    sockaddr_un address{AF_UNIX, {}};
    path.copy(address.sun_path, sizeof address.sun_path - 1);
    EXPECT_EQ(::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    if (listening) {
        EXPECT_EQ(::listen(fd.get(), 5), 0);
    }
    return fd;
}

TEST(ServiceManager, ListenSocket) {
    const TempDir dir;
    const UniqueFd good = bound(SOCK_SEQPACKET, dir.file("good"), true);
    const UniqueFd stream = bound(SOCK_STREAM, dir.file("stream"), true);
    const UniqueFd silent = bound(SOCK_SEQPACKET, dir.file("silent"), false);
    const UniqueFd network(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const UniqueFd file(::open("/dev/null", O_RDWR | O_CLOEXEC));

    EXPECT_EQ(in_service({}, listen_in_child), "none");
    EXPECT_EQ(in_service({good.get()}, listen_in_child), "socket 3");
    for (const UniqueFd* wrong : {&stream, &silent, &network, &file}) {
        const std::string said = in_service({wrong->get()}, [] {
            const std::string refusal = listen_in_child();
            return refusal + (::fcntl(kFirst, F_GETFD) == -1 ? ", closed" : ", open");
        });
        EXPECT_THAT(said, EndsWith(", closed"));
        EXPECT_THAT(said, HasSubstr(std::to_string(EINVAL) + ": "));
        EXPECT_THAT(said, HasSubstr("ListenSequentialPacket="));
    }
    EXPECT_THAT(in_service({good.get(), good.get()}, listen_in_child),
                HasSubstr("passed 2 sockets"));
}

TEST(ServiceManager, SocketsOfAnotherProcessAreNotOurs) {
    const UniqueFd file(::open("/dev/null", O_RDWR | O_CLOEXEC));
    EXPECT_EQ(in_service({file.get()},
                         [] {
                             ::setenv("LISTEN_PID", "1", 1);
                             return listen_in_child();
                         }),
              "none");
}

TEST(ServiceManager, NonsenseInTheEnvironment) {
    EXPECT_THAT(in_service({},
                           [] {
                               ::setenv("LISTEN_FDS", "many", 1);
                               return listen_in_child();
                           }),
                HasSubstr("sockets of the service manager"));
}

TEST(ServiceManager, Notifications) {
    const TempDir dir;
    const UniqueFd manager = bound(SOCK_DGRAM, dir.file("notify"), false);
    const auto said = [&](const std::function<Result<>()>& notify) -> std::string {
        const std::string error = run_with_failing_syscalls({}, [&]() -> std::string {
            ::setenv("NOTIFY_SOCKET", dir.file("notify").c_str(), 1);
            const auto done = notify();
            return done ? "" : done.error().message;
        });
        if (!error.empty()) return error;
        char text[256];
        const ssize_t got = ::recv(manager.get(), text, sizeof text, MSG_DONTWAIT);
        return got < 0 ? std::strerror(errno) : std::string(text, static_cast<size_t>(got));
    };
    EXPECT_EQ(said([] { return notify_ready("serving /mnt"); }), "READY=1\nSTATUS=serving /mnt");
    EXPECT_EQ(said([] { return notify_status("a\nREADY=1"); }), "STATUS=a READY=1");
    EXPECT_EQ(said([] { return notify_stopping("draining"); }), "STOPPING=1\nSTATUS=draining");
    EXPECT_EQ(said([] { return notify_main_process(42); }), "MAINPID=42");
    EXPECT_THAT(said([&] {
                    ::setenv("NOTIFY_SOCKET", dir.file("nobody").c_str(), 1);
                    return notify_ready("x");
                }),
                HasSubstr("telling the service manager"));
    // Nobody to tell is no error.
    EXPECT_EQ(run_with_failing_syscalls({},
                                        []() -> std::string {
                                            ::unsetenv("NOTIFY_SOCKET");
                                            const auto done = notify_ready("x");
                                            return done ? "" : done.error().message;
                                        }),
              "");
}

}  // namespace
}  // namespace atomic4::test
