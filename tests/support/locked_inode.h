// Another program's long system call that keeps a file's inode locked, until the test lets it end.
//
// The call gets a page of memory that isn't there, and whoever would have to bring it (this class,
// by userfaultfd(2)) doesn't: it sleeps in the middle, as one that copies gigabytes does. A
// buffered write keeps the lock for itself; an O_DIRECT read shares it with its like, and is no
// writer.
#pragma once

#include <atomic>
#include <optional>
#include <string>
#include <thread>

#include "base/unique_fd.h"

namespace atomic4::test {

class LockedInode {
  public:
    enum class By { Write, DirectRead };

    // fd: open for that, valid as long as this object. At offset; one page. Returns when the lock
    // is held. It is given up by release(), the destructor, or after kPatienceMs.
    LockedInode(int fd, By by, uint64_t offset);
    ~LockedInode() { release(); }
    LockedInode(const LockedInode&) = delete;
    LockedInode& operator=(const LockedInode&) = delete;

    // The call has not returned.
    bool held() const { return !returned_; }
    void release();

    // Why it can't be done here.
    static std::optional<std::string> why_not();

  private:
    void bring_the_page();

    UniqueFd faults_;
    UniqueFd let_go_;
    void* page_ = nullptr;
    std::atomic<bool> returned_ = false;
    std::thread caller_;
    std::thread keeper_;
};

}  // namespace atomic4::test
