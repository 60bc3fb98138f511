// Holding openers across the death of the worker that knows when they may go on.
//
// The keeper (keeper.h) reads the fanotify group and keeps who is held; the worker is told over a
// socket, and answers. It could not read the group itself:
//
//   - a successor has to open watched files, to replay the log, before it may let anybody through.
//     Its own opens would wait for itself. The keeper, which knows its pid, never holds them: the
//     worker opens watched files as if they weren't, at any time;
//   - fanotify names an unanswered open by a descriptor number of the process that read it. After
//     that process's death the same number comes again, and answering it lets the elder through.
//     So the process that reads has to be the one that doesn't die.
//
// The price is one hop between processes for each opener of a watched file.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <deque>
#include <map>
#include <optional>

#include "base/result.h"
#include "base/unique_fd.h"
#include "writer/open_watch.h"

namespace atomic4 {

// What goes over the socket, one a message. Both ends are of one program: no versions.
struct GateNote {
    enum class Kind : uint32_t { Open, CloseWrite, Overflow, Allow, Ready };
    Kind kind = Kind::Overflow;
    int32_t pid = 0;
    uint64_t device = 0;
    uint64_t inode = 0;
    uint64_t token = 0;
};

// The worker's end. One thread at a time; drain() doesn't block. When the keeper is gone, calls
// fail with EPIPE; openers are then held until this process ends, for it has the group, too.
class GateClient {
  public:
    // group: empty where there are no permission events; nothing can be watched then.
    GateClient(UniqueFd channel, UniqueFd group)
        : channel_(std::move(channel)), group_(std::move(group)) {}

    bool can_watch() const { return static_cast<bool>(group_); }
    int fd() const { return channel_.get(); }  // to poll for reading

    // As OpenWatch's. Needed anew for a file only if it was unwatched: marks outlive a worker. So a
    // successor is also told of files that it doesn't know: allow them when the log is replayed.
    Result<> watch(int file) const;
    Result<> unwatch(int file) const;

    // As OpenWatch's, but events bring no descriptor. A successor is told at once of everybody
    // whom its predecessors left waiting.
    Result<> drain(const OpenWatch::Handler& handler);
    Result<> allow(uint64_t token);  // of an event told to this worker

    // Recovered, and able to answer: ends the keeper's patience with a successor.
    Result<> ready();

  private:
    Result<> send(const GateNote& note);

    UniqueFd channel_;
    UniqueFd group_;
};

// The keeper's end. Never blocks.
class OpenGate {
  public:
    // group: may be empty; then there is nothing to hold, only readiness to be told of.
    explicit OpenGate(UniqueFd group);

    // A worker at the other end of the channel. It is told of all who are held.
    void connect(UniqueFd channel, pid_t worker);
    // It is dead: what it had said is heard, what it was not told is forgotten. All stay held.
    void disconnect();

    // To poll for reading. -1 while there is nothing to read from, or no descriptor left for
    // another opener: then those after it wait in the kernel.
    int events() const { return watch_ && !(watch_->starved() && held() > 0) ? group() : -1; }
    int group() const { return watch_ ? watch_->fd() : -1; }
    int channel() const { return channel_.get(); }
    bool wants_to_send() const { return !outgoing_.empty(); }  // poll the channel for writing too
    bool worker_is_ready() const { return ready_; }
    size_t held() const { return held_.size(); }

    // When the group can be read. An error: an opener may have been refused.
    Result<> take_events();
    // When the channel can be read or written. Errors are allow()'s.
    Result<> serve_channel();

  private:
    void tell(const GateNote& note);
    void flush();
    Result<> listen();

    std::optional<OpenWatch> watch_;
    UniqueFd channel_;
    bool ready_ = false;
    std::map<uint64_t, GateNote> held_;  // by token: in order of arrival
    std::deque<GateNote> outgoing_;
};

}  // namespace atomic4
