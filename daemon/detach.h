// Going into the background: the process that was started returns only when the daemon is ready, or
// says why it isn't.
#pragma once

#include <string>

#include "base/result.h"
#include "base/unique_fd.h"

namespace atomic4 {

class Detached {
  public:
    Detached() = default;  // in the foreground: everything below does nothing

    // The process that was started; it has nothing to do but wait.
    bool parent() const { return parent_; }
    // Until the daemon is ready (0) or has failed (1; its words are on standard error).
    int wait();

    // In the daemon, once.
    void ready();
    void failed(const std::string& message);

  private:
    friend Result<Detached> detach();
    UniqueFd pipe_;
    bool parent_ = false;
};

// Forks; the child has a session of its own.
Result<Detached> detach();

}  // namespace atomic4
