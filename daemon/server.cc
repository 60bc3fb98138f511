#include "daemon/server.h"

#include <fcntl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <csignal>
#include <nlohmann/json.hpp>

#include "client/message.h"
#include "daemon/prometheus.h"

namespace atomic4 {
namespace {

using namespace std::chrono_literals;

std::string uuid_text(const std::array<uint8_t, 16>& uuid) {
    std::string text;
    for (size_t i = 0; i < uuid.size(); ++i)
        text += fmt::format("{}{:02x}", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", uuid[i]);
    return text;
}

}  // namespace

Server::Server(EventLoop& loop, VolumeService& volume, UniqueFd listener, UniqueFd signals,
               ServerOptions options)
    : loop_(loop),
      volume_(volume),
      listener_(std::move(listener)),
      signals_(std::move(signals)),
      options_(std::move(options)),
      memory_(std::make_shared<RequestMemory>(options_.request_memory)),
      refusals_(options_.warn) {
    // Shared with the keeper, which doesn't accept.
    ::fcntl(listener_.get(), F_SETFL, ::fcntl(listener_.get(), F_GETFL) | O_NONBLOCK);
    volume_.target().on_group = [this](size_t requests, Bytes record) {
        stats_.group(requests, record);
    };
    volume_.target().on_late = [this](uint32_t inode) {
        refusals_.refused(std::nullopt,
                          fmt::format("inode {}: another process keeps it locked in the kernel: a "
                                      "write waits for its place; others go on",
                                      inode),
                          RefusalLog::Clock::now());
        tell_refusals_later();
    };
}

Result<> Server::run() {
    loop_.set_spin(options_.spin);
    loop_.poll(signals_.get(), POLLIN, [this](int) { signalled(); });
    accept();
    schedule_stats_file();
    while (!stopped_) {
        // A client that was just answered usually asks again at once, and a device's answer finds
        // us awake. Whoever else wants the processor gets it (EventLoop::spin_now).
        loop_.spin_now(!sessions_.empty());
        A4_CHECK(loop_.run_once());
        gone_.clear();
        if (const std::string* why = volume_.target().poisoned();
            why != nullptr && !said_poisoned_) {
            said_poisoned_ = true;
            options_.warn(
                fmt::format("writes are refused from now on: {}: in doubt until a "
                            "restart has recovered",
                            *why));
        }
    }
    write_stats_file();
    refusals_.tell_rest(RefusalLog::Clock::now(), true);
    return std::move(*stopped_);
}

// --- clients ---

// Polled, not loop_.accept(): that waits exclusively in io_uring, and the ring of a worker that was
// killed lives on for a moment. It would take the wake-up that is meant for its successor, and the
// client would wait until the next one comes.
void Server::accept() {
    listening_ = loop_.poll(listener_.get(), POLLIN, [this](int) { accept_one(); });
}

void Server::stop_accepting() {
    if (listening_ != 0) loop_.unpoll(listening_);
    listening_ = 0;
}

void Server::accept_one() {
    if (stopping_) return;
    UniqueFd socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!socket) {
        if (errno == ECONNABORTED || errno == EAGAIN || errno == EINTR) return;
        // Out of descriptors or memory: in a while there may be some again.
        options_.warn(
            fmt::format("accepting clients: {}", Error::from_errno(errno, "accept").message));
        stop_accepting();
        loop_.after(100ms, [this](int) {
            if (!stopping_) accept();
        });
        return;
    }
    auto peer = peer_of(socket.get());
    if (!peer) {
        options_.warn(fmt::format("a client is turned away: {}", peer.error().message));
        return;
    }
    if (sessions_.size() >= options_.clients_max)
        return turn_away(*peer, fmt::format("there are {} already", sessions_.size()));
    const bool privileged = peer->uid == 0 || peer->uid == ::geteuid();
    size_t& of_user = sessions_of_[peer->uid];
    if (!privileged && of_user >= options_.clients_max / 4)
        return turn_away(*peer, fmt::format("this user has {} already", of_user));
    ++of_user;
    Session::Around around{
        loop_,
        volume_,
        stats_,
        memory_,
        options_.engine,
        [this](wire::StatsFormat format) { return stats_text(format); },
        [this](const Peer& who, int code, const std::string& what) { refused(who, code, what); },
        [this](const Session* session) {
            const auto found = sessions_.find(session);
            if (found == sessions_.end()) return;
            const auto user = sessions_of_.find(session->peer().uid);
            if (--user->second == 0) sessions_of_.erase(user);
            gone_.push_back(std::move(found->second));
            sessions_.erase(found);
            if (stopping_) finish_stop();
        }};
    auto session =
        std::make_shared<Session>(std::move(around), std::move(socket), std::move(*peer));
    sessions_.emplace(session.get(), session);
    session->start();
}

void Server::turn_away(const Peer& peer, const std::string& why) {
    refused(peer, 0, fmt::format("a connection by {}: {}", to_text(peer), why));
}

// --- reports ---

void Server::refused(const Peer& peer, int code, const std::string& what) {
    const bool in_doubt = code == EIO && volume_.target().poisoned() != nullptr;
    refusals_.refused(in_doubt ? std::nullopt : std::optional(peer.uid), what,
                      RefusalLog::Clock::now());
    tell_refusals_later();
}

void Server::tell_refusals_later() {
    if (telling_refusals_ || stopping_ || !refusals_.holds_back()) return;
    telling_refusals_ = true;
    loop_.after(RefusalLog::kPause, [this](int) {
        telling_refusals_ = false;
        refusals_.tell_rest(RefusalLog::Clock::now());
        tell_refusals_later();
    });
}

Snapshot Server::snapshot() {
    const TargetCounts counts = volume_.target().counts();
    stats_.rwf_atomic(counts.atomic_submissions - reported_.atomic_submissions);
    stats_.retired(counts.retirements - reported_.retirements);
    reported_ = counts;
    Snapshot now;
    now.target = options_.target_name;
    now.uuid = uuid_text(volume_.uuid());
    now.engine = to_text(options_.engine);
    now.clients = sessions_.size();
    for (const auto& [key, session] : sessions_) now.open_handles += session->handles();
    now.files_strict = counts.files_strict;
    now.files_exclusive = counts.files_exclusive;
    now.log_used = counts.log_used;
    now.log_capacity = counts.log_capacity;
    now.live_records = counts.live_records;
    now.late = counts.late;
    now.frozen = counts.frozen;
    now.request_memory = Bytes(memory_->used());
    now.poisoned = volume_.target().poisoned() != nullptr;
    return now;
}

std::string Server::stats_text(wire::StatsFormat format) {
    const Snapshot now = snapshot();
    return format == wire::StatsFormat::Json ? stats_.to_json(now).dump(2) + "\n"
                                             : stats_.to_prometheus(now);
}

void Server::write_stats_file() {
    if (options_.stats_file.empty()) return;
    const auto written =
        write_text_file(options_.stats_file, stats_text(wire::StatsFormat::Prometheus));
    // Once: it may be so for long.
    if (!written && !stats_failed_) options_.warn(written.error().message);
    stats_failed_ = !written;
}

void Server::schedule_stats_file() {
    if (options_.stats_file.empty()) return;
    write_stats_file();
    loop_.after(options_.stats_interval, [this](int) {
        if (!stopping_) schedule_stats_file();
    });
}

// --- the end ---

void Server::signalled() {
    signalfd_siginfo info{};
    while (::read(signals_.get(), &info, sizeof info) == sizeof info) {
        if (info.ssi_signo == SIGTERM || info.ssi_signo == SIGINT)
            begin_stop();
        else
            write_stats_file();
    }
}

void Server::begin_stop() {
    if (stopping_) return;
    stopping_ = true;
    stop_accepting();
    options_.info("stopping: finishing what has begun");

    loop_.after(kStopTime, [this](int) {
        if (!stopped_)
            stopped_ = fail(ETIMEDOUT,
                            "not everything could be finished in time; the log keeps "
                            "what the next start needs");
    });
    // A stop finishes what waits for a frozen volume anyway: now it can still be answered.
    volume_.target().thaw();
    // Requests that can't finish soon and answers that nobody reads must not hold up the rest.
    loop_.after(kAnswerTime, [this](int) {
        const auto slow = sessions_;
        for (const auto& [key, session] : slow) session->cut_off();
    });
    const auto sessions = sessions_;
    for (const auto& [key, session] : sessions) session->end();
    if (sessions_.empty()) finish_stop();
}

void Server::finish_stop() {
    // Sessions that end at once have brought us here already.
    if (!sessions_.empty() || finishing_ || stopped_) return;
    finishing_ = true;
    volume_.target().stop([this](Result<> done) { stopped_ = std::move(done); });
}

}  // namespace atomic4
