#include "daemon/service_manager.h"

#include <sys/socket.h>
#include <systemd/sd-daemon.h>

#include <algorithm>
#include <string>
#include <vector>

namespace atomic4 {

namespace {

Result<> notify(const std::string& message) {
    const int code = ::sd_notify(0, message.c_str());
    // 0: nobody wants to know.
    if (code < 0) return fail(Error::from_errno(-code, "telling the service manager"));
    return {};
}

// A line break would end the assignment and begin another one.
std::string status_line(std::string_view status) {
    std::string line(status);
    std::replace_if(line.begin(), line.end(), [](char c) { return c == '\n' || c == '\0'; }, ' ');
    return "STATUS=" + line;
}

}  // namespace

Result<> notify_ready(std::string_view status) {
    return notify("READY=1\n" + status_line(status));
}

Result<> notify_status(std::string_view status) {
    return notify(status_line(status));
}

Result<> notify_stopping(std::string_view status) {
    return notify("STOPPING=1\n" + status_line(status));
}

Result<> notify_main_process(pid_t pid) {
    return notify(fmt::format("MAINPID={}", pid));
}

Result<std::optional<UniqueFd>> listen_socket() {
    const int count = ::sd_listen_fds(1);
    if (count < 0) return fail(Error::from_errno(-count, "sockets of the service manager"));
    if (count == 0) return std::optional<UniqueFd>();
    std::vector<UniqueFd> passed;
    for (int i = 0; i < count; ++i) passed.emplace_back(SD_LISTEN_FDS_START + i);
    if (count > 1) {
        return fail(EINVAL,
                    "the service manager passed {} sockets, one is expected: the socket unit has "
                    "to have one ListenSequentialPacket= line and no other Listen…= line",
                    count);
    }
    if (::sd_is_socket(passed[0].get(), AF_UNIX, SOCK_SEQPACKET, 1) <= 0) {
        return fail(EINVAL,
                    "the service manager passed something else than a listening AF_UNIX "
                    "SOCK_SEQPACKET socket: the socket unit has to have ListenSequentialPacket= "
                    "with a path, and Accept=no");
    }
    return std::optional(std::move(passed[0]));
}

}  // namespace atomic4
