// The daemon's loop: accepts clients, runs their sessions, reports, and ends in an orderly way.
//
// A bad client costs itself: its session ends. One user, unless it is root or the daemon's own, has
// at most a quarter of all connections, so that nobody can take them all. When descriptors run out,
// accepting pauses and goes on by itself. SIGTERM and SIGINT: no new clients and requests; what
// runs is finished, everything is retired, and run() returns, within kStopTime. A stuck device can
// prevent that: then it gives up and says so, and the log keeps what is needed.
//
// Threads: one.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <string>

#include "daemon/refusal_log.h"
#include "daemon/session.h"

namespace atomic4 {

struct ServerOptions {
    std::string target_name;  // as the user called it
    std::string stats_file;   // Prometheus text; empty: none
    std::chrono::seconds stats_interval{10};
    std::chrono::microseconds spin{50};
    Engine engine = Engine::Auto;
    size_t clients_max = 4096;                  // of one user: a quarter
    size_t request_memory = size_t{128} << 20;  // bytes; what that means: request_memory.h
    std::function<void(const std::string&)> info;
    std::function<void(const std::string&)> warn;
};

class Server {
  public:
    static constexpr std::chrono::seconds kStopTime{5};
    // Of these, for clients to get the answers to what they have asked.
    static constexpr std::chrono::seconds kAnswerTime{2};

    // listener: bound and listening. signals: a signalfd with SIGTERM, SIGINT and SIGHUP.
    Server(EventLoop& loop, VolumeService& volume, UniqueFd listener, UniqueFd signals,
           ServerOptions options);

    // Until a signal ends it. An error: the volume is in doubt or the loop is broken; a restart
    // recovers.
    Result<> run();
    // A signal has ended it.
    bool stopping() const { return stopping_; }

  private:
    void accept();
    void accept_one();
    void stop_accepting();
    void turn_away(const Peer& peer, const std::string& why);
    void refused(const Peer& peer, int code, const std::string& what);
    void tell_refusals_later();
    void signalled();
    void write_stats_file();
    void schedule_stats_file();
    Snapshot snapshot();
    std::string stats_text(wire::StatsFormat format);
    void begin_stop();
    void finish_stop();

    EventLoop& loop_;
    VolumeService& volume_;
    UniqueFd listener_;
    UniqueFd signals_;
    ServerOptions options_;
    Stats stats_;
    std::shared_ptr<RequestMemory> memory_;
    TargetCounts reported_;  // what stats_ has been told of the target's counts
    std::map<const Session*, std::shared_ptr<Session>> sessions_;
    std::vector<std::shared_ptr<Session>> gone_;
    std::map<uid_t, size_t> sessions_of_;  // users with at least one
    RefusalLog refusals_;
    bool telling_refusals_ = false;    // in a while
    EventLoop::PollId listening_ = 0;  // 0: not now
    bool stopping_ = false;
    bool finishing_ = false;  // the target has been told to stop
    bool stats_failed_ = false;
    bool said_poisoned_ = false;
    std::optional<Result<>> stopped_;
};

}  // namespace atomic4
