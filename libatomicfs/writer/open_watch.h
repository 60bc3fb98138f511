// Holds other programs' opens of a file until we say so, and tells who can write it.
//
// While somebody else may write a file, its acknowledgements must wait until their records are
// retired; this is how the daemon learns of it in time. An inode mark of fanotify(7) makes every
// open of the file, by whatever name, wait for allow(). The opener's write access is counted before
// it waits, so that nobody_writes(), asked while it is held, is exact: false if it, or anybody
// else, can write. Measured on Linux 6.18:
//
//   - held: open, creat, open by handle, by /proc/PID/fd, by another link, exec;
//   - not held: O_PATH, which can do nothing, and truncate(2), which nothing shows;
//   - open(O_RDONLY | O_TRUNC) is held but counts as a reader: it truncates when let through;
//   - a writable shared mapping counts as long as it lives, its descriptor closed or not;
//   - an opener that is killed while it is held is gone without a CloseWrite;
//   - CloseWrite is sent a moment before the kernel stops to count the writer. Nobody_writes() was
//     never seen to be late, but may be: ask once more before you settle for "somebody writes".
//
// Who opens a watched file itself waits for its own answer. Opens by the process that let_through()
// names (at first the one that drains) are therefore answered by drain() and not reported; but
// they must not be made by the thread that drains.
//
// A group outlives its OpenWatch if another process holds a descriptor of it: openers go on
// waiting. The last descriptor's closing lets them through; so does the destructor only if it is
// the last. The kernel identifies an unanswered open by the number that its descriptor had in the
// process that read it, dead or not: answer_orphans() before the first drain().
//
// Threads: one at a time. Nothing here blocks. Needs CAP_SYS_ADMIN for new_group(), CAP_LEASE for
// nobody_writes() on other users' files.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <unordered_map>

#include "base/result.h"
#include "base/unique_fd.h"

namespace atomic4 {

struct OpenEvent {
    enum class Kind : uint32_t {
        Open,        // somebody is held until allow(token)
        CloseWrite,  // a description that could write is gone, and its mappings
        Overflow,    // events were lost: anybody may have opened anything
    };
    Kind kind = Kind::Overflow;
    pid_t pid = 0;  // 0: of another pid namespace
    dev_t device = 0;
    ino_t inode = 0;
    uint64_t token = 0;  // Open
    int fd = -1;         // Open: the file, read-only, for nobody_writes(); not yours, until allow()
};

class OpenWatch {
  public:
    using Handler = std::function<void(const OpenEvent&)>;

    // The descriptor of a new fanotify group with unlimited queue and marks. EPERM without
    // CAP_SYS_ADMIN, EINVAL if the kernel has no permission events.
    static Result<UniqueFd> new_group();

    explicit OpenWatch(UniqueFd group);

    int fd() const { return group_.get(); }  // to poll for reading

    // From now on opens of this file are held. The mark keeps the inode (an unlinked file's
    // blocks too) until unwatch(). file: any descriptor of it but an O_PATH one.
    Result<> watch(int file) const { return watch(group_.get(), file); }
    Result<> unwatch(int file) const { return unwatch(group_.get(), file); }
    static Result<> watch(int group, int file);
    static Result<> unwatch(int group, int file);

    // Opens by this process are never held.
    void let_through(pid_t pid) { own_pid_ = pid; }

    // Calls the handler for what has happened, a bounded number of events a call. The handler may
    // call allow(). If the process runs out of descriptors, openers stay in the kernel's queue
    // until others were allowed, while starved() is true. An error means that one opener may have
    // been refused (EPERM) by the kernel; draining can go on.
    Result<> drain(const Handler& handler);

    // Lets the opener through. It may have been killed meanwhile: that is no error.
    Result<> allow(uint64_t token);

    // How many are held.
    size_t held() const { return held_.size(); }
    // No descriptor is free for another event: drain() reads none.
    bool starved() const { return !reserve_; }

    // Lets through whom a dead predecessor had read and not answered; how many. Those that it
    // had not read are events as usual. Tries every number that a descriptor may have had, up to
    // the hard limit and 2^20: some 0.4 us each. Refused with EBUSY while something is held here.
    Result<size_t> answer_orphans();

    // Has nobody this inode open for writing, or mapped so? Asked by taking a read lease for a
    // moment. read_only_fd: opened O_RDONLY, its description not shared with anybody; its signal
    // (F_SETSIG) is changed to one that is ignored. Every writable descriptor counts, the caller's
    // too. On a file that isn't watched, an open for writing with O_NONBLOCK at this very moment
    // could fail with EWOULDBLOCK. EACCES without CAP_LEASE, EINVAL if the file can't have leases.
    static Result<bool> nobody_writes(int read_only_fd);

  private:
    bool make_reserve();
    Result<bool> read_one(const Handler& handler);
    Result<> answer(int event_fd) const;

    UniqueFd group_;
    UniqueFd reserve_;  // gives its number to the next event's descriptor
    pid_t own_pid_;
    uint64_t next_token_ = 1;
    std::unordered_map<uint64_t, UniqueFd> held_;
};

}  // namespace atomic4
