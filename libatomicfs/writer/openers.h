// Whoever else opens the files of a mounted volume: held, told, let through. What FileAccess needs
// of open_watch.h, whether this process reads the events itself or another one passes them on.
// Threads: the event loop's.
#pragma once

#include "writer/open_watch.h"

namespace atomic4 {

class Openers {
  public:
    virtual ~Openers() = default;
    virtual int fd() const = 0;  // to poll for reading
    virtual Result<> watch(int file) = 0;
    virtual Result<> unwatch(int file) = 0;
    virtual Result<> drain(const OpenWatch::Handler& handler) = 0;
    virtual Result<> allow(uint64_t token) = 0;
};

// This process reads the events itself, and nobody holds openers after it.
class OwnOpeners final : public Openers {
  public:
    explicit OwnOpeners(UniqueFd group) : watch_(std::move(group)) {}
    int fd() const override { return watch_.fd(); }
    Result<> watch(int file) override { return watch_.watch(file); }
    Result<> unwatch(int file) override { return watch_.unwatch(file); }
    Result<> drain(const OpenWatch::Handler& handler) override { return watch_.drain(handler); }
    Result<> allow(uint64_t token) override { return watch_.allow(token); }

  private:
    OpenWatch watch_;
};

}  // namespace atomic4
