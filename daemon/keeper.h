// The keeper: a small process that outlives the worker and starts it again.
//
// What must not end with a crash of the daemon is kept here: who waits to open a watched file
// (open_gate.h), and whatever descriptors are open when run_keeper() is called, such as the socket
// that clients connect to: each worker is forked from the keeper and so inherits them all. The
// keeper does nothing else, holds next to no memory of its own, and has one thread; call it before
// there are others.
//
// How it ends:
//
//   worker exits with 0                       keeper returns 0; openers that wait go on
//   worker exits with restart_status, or      a successor is forked at once
//     is killed by a signal
//   more than most_restarts within the        gives up
//     window; or a successor isn't ready in
//     time (it is killed then); or killed
//     after SIGTERM or SIGINT was passed on;
//     or any other exit status
//
// Giving up: on_let_through() is called; then the group is closed, and openers go on, whatever is
// still in the log. Exit status: the worker's, or 128 + signal.
//
// Signals: SIGTERM, SIGINT and SIGHUP are passed on to the worker. It starts with these three
// blocked, so that none is lost or kills it before it listens: take them from a signalfd, or
// unblock them. If the keeper itself is killed, the worker gets SIGTERM (and again, perhaps, from a
// terminal or a service manager that signals the whole group): it must then retire its records and
// end, since with its death openers go on. A worker that changes its user id has to call
// prctl(PR_SET_PDEATHSIG) again.
#pragma once

#include <chrono>
#include <functional>
#include <string>

#include "base/result.h"
#include "base/unique_fd.h"
#include "daemon/open_gate.h"

namespace atomic4 {

inline constexpr int kRestartStatus = 75;  // EX_TEMPFAIL

struct WorkerStart {
    GateClient opens;
    unsigned restarts = 0;  // 0: the first. More: recover, answer who waits, call opens.ready()
};

struct WorkerEnd {
    int exit_status = 0;       // or
    int signal = 0;            // what killed it
    bool out_of_time = false;  // by us: it wasn't ready in time
    bool was_ready = false;    // it, or a worker before it
    unsigned restarts = 0;
    std::string words;  // "worker 117 was killed by signal 9 (Killed)"
};

struct KeeperOptions {
    UniqueFd group;  // OpenWatch::new_group(); empty: nothing can be watched
    unsigned most_restarts = 5;
    std::chrono::milliseconds restart_window{10000};
    std::chrono::milliseconds patience{10000};  // with a successor, until it is ready
    // Both are called in the keeper, and must not open watched files.
    std::function<void(const std::string&)> report;        // for the log: what happened
    std::function<void(const WorkerEnd&)> on_let_through;  // before openers go on unguarded
};

// Runs in a child of the keeper; its value is the child's exit status (no destructors of statics
// and no atexit functions run). Flush streams before run_keeper(): the child has a copy.
using Worker = std::function<int(WorkerStart)>;

// Returns in the keeper only. An error: no worker could be started, and openers go on.
Result<int> run_keeper(KeeperOptions options, const Worker& worker);

}  // namespace atomic4
