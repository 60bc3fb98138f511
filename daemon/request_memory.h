// What the requests of all clients together may take of the daemon's memory.
//
// Each connection is bounded by the number of its requests, 256; thousands of connections aren't.
// So what a request costs, copies of its payload and its answer above all, is counted from its
// arrival until its answer is sent. While the sum is over the limit only those are listened to that
// have less than an equal share of the limit, or nothing under way. The others go on when an
// answer of theirs is sent: each has one to come, so that nobody waits for others, and a client
// that keeps its answers unread takes no more than the limit from everybody else.
//
// The sum is therefore at most twice the limit (once by those over their share, once by those under
// it), and one request more for each connection, besides the packet that it receives into. Arenas
// are the clients' own memory.
//
// Threads: the event loop's.
#pragma once

#include <algorithm>
#include <cstddef>

namespace atomic4 {

class RequestMemory {
  public:
    explicit RequestMemory(size_t limit) : limit_(limit) {}

    // A connection has come; it goes with all that it has taken given back.
    void join() { ++connections_; }
    void leave() { --connections_; }

    void take(size_t bytes) { used_ += bytes; }
    void give(size_t bytes) { used_ -= bytes; }
    size_t used() const { return used_; }

    // May a connection that has taken this much begin another request?
    bool admits(size_t taken) const {
        return taken == 0 || used_ <= limit_ || taken <= limit_ / std::max<size_t>(1, connections_);
    }

  private:
    const size_t limit_;
    size_t used_ = 0;
    size_t connections_ = 0;
};

}  // namespace atomic4
