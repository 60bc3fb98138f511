// One file of a mounted volume as the daemon has it open, and whether others may write it.
//
// Strict or exclusive. While somebody else may have the file open for writing, an acknowledgement
// waits until its record is retired: a later replay would put our bytes over theirs. While nobody
// has, records may stay live. What proves that nobody has (open_watch.h):
//
//   start        the file is marked first, so that whoever opens it from now on is held; then a
//                probe finds those who had it open before
//   an opener    is held. If its call shows that it only reads, it goes on at once
//   (opener_flags.h).
//                Else new writes wait, running ones finish; our own writable descriptor is closed,
//                and the probe tells whether the opener, or anybody, can write. A reader goes on,
//                and the file stays exclusive. A writer goes on when the file's live records are
//                retired, and the file is strict. Running writes that another process's lock on
//                the file keeps from finishing are not waited for longer than kPatience: they
//                become strict themselves, and nobody is told of them while their records could
//                still be replayed over what the opener does
//   a writer has gone      the same probe: if nobody is left the file is exclusive again
//   a client declares that it writes only through us: the descriptors that its process was seen to
//                open no longer count
//
// Who opened it before the mark, nobody can tell. A client that declares at the very first OPEN,
// with a writable descriptor of its own still open, therefore leaves the file strict until it
// closes that: the probe says only that there are writers, not whose. /proc/PID/fd doesn't answer
// it: descriptors under way in a socket, or registered with io_uring, are nowhere to be seen, and
// with one of them a foreign writer would be taken for the client. (A write lease, taken on the
// passed descriptor itself, would prove that no other description can write the file; but not who
// else has this one, by fork(2) or a socket, and it fails while anybody reads.) A descriptor opened
// after the first OPEN was seen, and may be kept.
//
// Without fanotify the file is strict for ever.
//
// Somebody's lease (fcntl(2)) excludes us: until it is given up or taken away by the kernel,
// writes are refused with EBUSY; nothing waits for it.
//
// A probe needs that we have no writable descriptor ourselves, and opening one again is an open
// like any other: made by a helper thread, answered by the loop. No other work gets before it.
//
// Threads: the event loop's.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "writer/helper_threads.h"
#include "writer/openers.h"
#include "writer/target.h"

namespace atomic4 {

class FileAccess {
  public:
    struct Surroundings {
        EventLoop& loop;
        HelperThreads& opening;      // opens the file again
        Openers* openers = nullptr;  // null: none, and why
        std::string why_no_watch;
        // New writes may begin again, or can't ever.
        std::function<void()> wake;
        // Calls back when all that was logged is durably retired.
        std::function<void(std::function<void(Result<>)>)> when_retired;
        // What runs on the file is acknowledged only when it is retired.
        std::function<void()> make_strict;
    };
    static constexpr std::chrono::milliseconds kPatience{400};

    FileAccess(const Surroundings& around, UniqueFd read_only)
        : around_(around), read_only_(std::make_shared<UniqueFd>(std::move(read_only))) {}
    ~FileAccess();
    FileAccess(const FileAccess&) = delete;
    FileAccess& operator=(const FileAccess&) = delete;

    // Marks, probes, opens. Ready when done.
    void start(std::function<void(Result<>)> done);

    // New writes have to wait.
    bool held() const { return held_; }
    // Why there is no writable descriptor; null: there is one.
    const Error* broken() const { return broken_ ? &*broken_ : nullptr; }
    // O_RDWR|O_DIRECT; valid while somebody uses it.
    int direct() const { return direct_.get(); }
    int read_only() const { return read_only_->get(); }
    void use() { ++users_; }
    void unuse();

    Ack ack() const { return strict_ ? Ack::Strict : Ack::Exclusive; }
    std::string why_strict() const;
    // How often it was asked who can write: the same number and exclusive both times means that
    // nobody else could in between.
    uint64_t probes() const { return probes_; }

    // What the watch saw of this file.
    void opened(pid_t pid, uint64_t token);
    void writer_closed();
    void events_lost();
    // This process writes the file only through us, as long as it has the descriptors that it has
    // now.
    void declare(pid_t pid);
    // Openers are let through, now and later: the log is in doubt, or nothing is live any more and
    // the surroundings are about to go.
    void give_up(const std::string& why);
    // In doubt, a probe that waits for the running ones waits for ever: whoever waits for it.
    void refuse_waiting(const Error& error);
    // Calls when the file is ready: at once, if it is.
    void when_ready(std::function<void(Result<>)> call);

  private:
    struct Held {
        pid_t pid;
        uint64_t token;
    };
    void step();
    void lose_patience();
    void probe();
    void retire_for_openers();
    void become_exclusive();
    void let_go();
    void reopen();
    void reopened(int fd);
    void wait_for_lease();
    void ready();
    void add_writer(pid_t pid);
    void look_again(std::chrono::milliseconds after);

    Surroundings around_;
    std::shared_ptr<UniqueFd> read_only_;  // the helper threads' too
    UniqueFd direct_;
    bool watched_ = false;
    bool held_ = true;
    bool probing_ = false;  // from the probe to the reopening
    bool probe_wanted_ = false;
    bool strict_ = true;
    bool unknown_writers_ = true;
    bool settled_ = false;  // strict, and nothing live is left from before
    bool timer_set_ = false;
    bool patience_set_ = false;
    int looks_left_ = 0;
    struct Writer {
        std::string name;
        std::string started;  // a process number may be used again
    };
    std::map<pid_t, Writer> writers_;
    std::vector<Held> waiting_;  // openers
    size_t users_ = 0;
    uint64_t probes_ = 0;
    uint64_t times_exclusive_ = 0;
    std::optional<Error> broken_;
    std::vector<std::function<void(Result<>)>> ready_calls_;
    std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace atomic4
