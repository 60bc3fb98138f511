// A sign of life on a terminal: after one second "NAME: doing … 3 s", and gone when done.
// Nothing where stderr is not a terminal.
#pragma once

#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>

namespace atomic4::tools {

class Progress {
  public:
    explicit Progress(std::string doing);
    ~Progress() { finish(); }
    // Takes it off the terminal, before something else is printed there.
    void finish();
    Progress(const Progress&) = delete;
    Progress& operator=(const Progress&) = delete;

  private:
    void run();
    std::string doing_;
    std::mutex mutex_;
    std::condition_variable stop_changed_;
    bool stop_ = false;
    std::thread thread_;
};

}  // namespace atomic4::tools
