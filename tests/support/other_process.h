// Another process that opens, maps and closes a file, one step after the other as it is told.
#pragma once

#include <sys/types.h>

#include <string>

#include "base/unique_fd.h"

namespace atomic4::test {

// Before a wait counts as forever.
inline constexpr int kPatienceMs = 20000;

bool readable(int fd, int timeout_ms);

// It has none of our descriptors. Killed by the destructor.
class OtherProcess {
  public:
    explicit OtherProcess(const std::string& path);
    OtherProcess(const OtherProcess&) = delete;
    OtherProcess& operator=(const OtherProcess&) = delete;
    ~OtherProcess() { kill(); }

    // 'r' open for reading, 'w' for reading and writing, 'p' O_PATH, 't' for reading, and truncate;
    // 'm' map what is open writably, 'u' unmap, 'c' close, 's' truncate(2), 'x' execute.
    void begin(char step);
    // What became of the step: '+' or '-'; '?' if nothing comes.
    char result();
    char step(char step) {
        begin(step);
        return result();
    }
    bool answered() const { return readable(answers_.get(), 0); }
    int answers() const { return answers_.get(); }  // to poll
    void kill();
    pid_t pid() const { return pid_; }

  private:
    pid_t pid_ = -1;
    UniqueFd orders_;
    UniqueFd answers_;
};

}  // namespace atomic4::test
