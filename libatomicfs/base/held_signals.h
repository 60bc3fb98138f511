// SIGINT and SIGTERM, held back from the calling thread, and from those that it starts, while this
// lives: for work that may be stopped between its steps, but not within one.
#pragma once

#include <signal.h>
#include <sys/signalfd.h>

#include "base/unique_fd.h"

namespace atomic4 {

class HeldSignals {
  public:
    HeldSignals() {
        sigemptyset(&held_);
        sigaddset(&held_, SIGINT);
        sigaddset(&held_, SIGTERM);
        ::pthread_sigmask(SIG_BLOCK, &held_, &before_);
        fd_ = UniqueFd(::signalfd(-1, &held_, SFD_CLOEXEC | SFD_NONBLOCK));
    }
    // One that came and was not taken takes effect now.
    ~HeldSignals() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
    HeldSignals(const HeldSignals&) = delete;
    HeldSignals& operator=(const HeldSignals&) = delete;

    // Readable when one has come: signalfd(2).
    int fd() const { return fd_.get(); }
    // One has come, and nobody has taken it.
    bool pending() const {
        sigset_t come;
        return ::sigpending(&come) == 0 &&
               (sigismember(&come, SIGINT) == 1 || sigismember(&come, SIGTERM) == 1);
    }
    // Whether there was one, which it gives.
    bool take(signalfd_siginfo& info) const {
        return ::read(fd_.get(), &info, sizeof info) == sizeof info;
    }
    // The mask for a program that is to be stopped by them.
    sigset_t for_a_program() const {
        sigset_t mask = before_;
        sigdelset(&mask, SIGINT);
        sigdelset(&mask, SIGTERM);
        return mask;
    }

  private:
    sigset_t held_{};
    sigset_t before_{};
    UniqueFd fd_;
};

}  // namespace atomic4
