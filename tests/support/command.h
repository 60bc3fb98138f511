// Runs a program and collects what it says, without a shell.
#pragma once

#include <string>
#include <vector>

namespace atomic4::test {

struct CommandOutput {
    int status = -1;     // exit status, or 128 + signal
    std::string output;  // stdout and stderr together
};

CommandOutput run_command(const std::vector<std::string>& arguments);

// Where a program of ours is: all are built into one directory.
std::string our_program(const std::string& name);

// A directory that goes with its contents when the object does. Under TMPDIR or /tmp.
class TempDir {
  public:
    TempDir();
    ~TempDir();
    TempDir(const TempDir&) = delete;
    TempDir& operator=(const TempDir&) = delete;
    const std::string& path() const { return path_; }
    std::string file(const std::string& name) const { return path_ + "/" + name; }

  private:
    std::string path_;
};

}  // namespace atomic4::test
