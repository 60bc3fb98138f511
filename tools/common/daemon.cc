#include "common/daemon.h"

#include <fcntl.h>

#include "base/unique_fd.h"
#include "client/default_socket.h"

namespace atomic4::tools {

namespace {

wire::WireEngine wire_engine(Engine engine) {
    switch (engine) {
        case Engine::Native:
            return wire::WireEngine::Native;
        case Engine::Logged:
            return wire::WireEngine::Logged;
        case Engine::Auto:
            break;
    }
    return wire::WireEngine::Auto;
}

}  // namespace

Result<DaemonConnection> connect_daemon(const DaemonChoice& choice, const ClientOptions& options) {
    const std::string socket =
        choice.socket.empty() ? A4_TRY(default_socket_of(choice.path)) : choice.socket;
    auto client = Client::connect(socket, options);
    if (!client) {
        Error error = std::move(client).error();
        if (error.code == ENOENT || error.code == ECONNREFUSED)
            error.message += ": no daemon listens there; start atomic4d, or name its --socket";
        return fail(std::move(error));
    }
    return DaemonConnection{std::move(*client), socket};
}

Result<File> open_at_daemon(Client& client, const std::string& path, uint32_t flags,
                            Engine engine) {
    flags |= wire::kOpenCooperative;
    if (client.daemon().target == wire::TargetKind::Owned)
        return client.open(path, flags, wire_engine(engine)).context(path);
    const bool read = (flags & wire::kOpenRead) != 0;
    const bool write = (flags & wire::kOpenWrite) != 0;
    const int access = read && write ? O_RDWR : write ? O_WRONLY : O_RDONLY;
    // Nothing but a regular file will be taken; a FIFO must not hold us up.
    const UniqueFd fd(::open(path.c_str(), access | O_CLOEXEC | O_NONBLOCK));
    if (!fd) return fail(Error::from_errno(errno, path));
    return client.open(fd.get(), flags, wire_engine(engine)).context(path);
}

const char* to_text(wire::TargetKind target) {
    return target == wire::TargetKind::Owned ? "owned" : "mounted";
}

const char* to_text(wire::WireEngine engine) {
    switch (engine) {
        case wire::WireEngine::Native:
            return "native";
        case wire::WireEngine::Logged:
            return "logged";
        case wire::WireEngine::Auto:
            break;
    }
    return "auto";
}

const char* to_text(wire::AckMode ack) {
    switch (ack) {
        case wire::AckMode::Exclusive:
            return "exclusive";
        case wire::AckMode::Strict:
            return "strict";
        case wire::AckMode::None:
            break;
    }
    return "none";
}

}  // namespace atomic4::tools
