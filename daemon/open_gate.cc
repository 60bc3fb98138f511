#include "daemon/open_gate.h"

#include <sys/socket.h>

#include <algorithm>

namespace atomic4 {
namespace {

constexpr pid_t kNobody = -1;

OpenEvent to_event(const GateNote& note) {
    OpenEvent event;
    event.pid = note.pid;
    event.device = note.device;
    event.inode = note.inode;
    event.token = note.token;
    if (note.kind == GateNote::Kind::Open) event.kind = OpenEvent::Kind::Open;
    if (note.kind == GateNote::Kind::CloseWrite) event.kind = OpenEvent::Kind::CloseWrite;
    return event;
}

GateNote to_note(const OpenEvent& event) {
    GateNote note{
        .pid = event.pid, .device = event.device, .inode = event.inode, .token = event.token};
    if (event.kind == OpenEvent::Kind::Open) note.kind = GateNote::Kind::Open;
    if (event.kind == OpenEvent::Kind::CloseWrite) note.kind = GateNote::Kind::CloseWrite;
    return note;
}

}  // namespace

Result<> GateClient::watch(int file) const {
    if (!can_watch()) return fail(EOPNOTSUPP, "no fanotify permission events here");
    return OpenWatch::watch(group_.get(), file);
}

Result<> GateClient::unwatch(int file) const {
    if (!can_watch()) return {};
    return OpenWatch::unwatch(group_.get(), file);
}

Result<> GateClient::drain(const OpenWatch::Handler& handler) {
    for (;;) {
        GateNote note;
        const ssize_t got = ::recv(channel_.get(), &note, sizeof(note), MSG_DONTWAIT);
        if (got == sizeof(note)) {
            handler(to_event(note));
        } else if (got >= 0) {
            return fail(EPIPE, "the keeper process is gone");
        } else if (errno == EAGAIN) {
            return {};
        } else if (errno != EINTR) {
            return fail(Error::from_errno(errno, "hearing of openers from the keeper"));
        }
    }
}

// Waits for room in the socket, which the keeper soon makes: it waits for nothing itself.
Result<> GateClient::send(const GateNote& note) {
    ssize_t sent = 0;
    do {
        sent = ::send(channel_.get(), &note, sizeof(note), MSG_NOSIGNAL);
    } while (sent < 0 && errno == EINTR);
    if (sent < 0) return fail(Error::from_errno(errno, "answering the keeper"));
    return {};
}

Result<> GateClient::allow(uint64_t token) {
    return send({.kind = GateNote::Kind::Allow, .token = token});
}

Result<> GateClient::ready() {
    return send({.kind = GateNote::Kind::Ready});
}

OpenGate::OpenGate(UniqueFd group) {
    if (group) watch_.emplace(std::move(group));
}

void OpenGate::connect(UniqueFd channel, pid_t worker) {
    channel_ = std::move(channel);
    ready_ = false;
    outgoing_.clear();
    if (watch_) watch_->let_through(worker);
    for (const auto& [token, note] : held_) outgoing_.push_back(note);
    flush();
}

void OpenGate::disconnect() {
    // An answer that was sent before the death was right when it was sent.
    static_cast<void>(listen());
    channel_.reset();
    outgoing_.clear();
    if (watch_) watch_->let_through(kNobody);  // its pid may become another's
}

Result<> OpenGate::take_events() {
    return watch_->drain([this](const OpenEvent& event) {
        const GateNote note = to_note(event);
        if (note.kind == GateNote::Kind::Open) held_.emplace(note.token, note);
        tell(note);
    });
}

void OpenGate::tell(const GateNote& note) {
    if (!channel_) return;
    // While the worker doesn't listen, only openers may pile up: each is a process that waits.
    const auto same = [&note](const GateNote& other) {
        return other.kind == note.kind && other.device == note.device && other.inode == note.inode;
    };
    if (note.kind != GateNote::Kind::Open && std::ranges::any_of(outgoing_, same)) return;
    outgoing_.push_back(note);
    flush();
}

void OpenGate::flush() {
    while (!outgoing_.empty()) {
        const GateNote& note = outgoing_.front();
        if (::send(channel_.get(), &note, sizeof(note), MSG_DONTWAIT | MSG_NOSIGNAL) >= 0) {
            outgoing_.pop_front();
        } else if (errno == EPIPE || errno == ECONNRESET) {
            outgoing_.clear();  // the worker is dying: its successor will be told
        } else if (errno != EINTR) {
            return;  // full: later
        }
    }
}

Result<> OpenGate::serve_channel() {
    flush();
    return listen();
}

Result<> OpenGate::listen() {
    GateNote note;
    for (;;) {
        const ssize_t got = ::recv(channel_.get(), &note, sizeof(note), MSG_DONTWAIT);
        // ECONNRESET, once: the worker died before it had heard all; what it said is still there.
        if (got < 0 && (errno == EINTR || errno == ECONNRESET)) continue;
        if (got < 0 && errno == EAGAIN) return {};
        if (got != sizeof(note)) {
            // The other end is closed, and nothing left to hear: polling it would never wait.
            channel_.reset();
            return {};
        }
        if (note.kind == GateNote::Kind::Ready) {
            ready_ = true;
        } else if (note.kind == GateNote::Kind::Allow && held_.erase(note.token) > 0) {
            A4_CHECK(watch_->allow(note.token));
        }
    }
}

}  // namespace atomic4
