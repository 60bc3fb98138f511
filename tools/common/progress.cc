#include "common/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>

namespace atomic4::tools {

Progress::Progress(std::string doing) : doing_(std::move(doing)) {
    if (isatty(STDERR_FILENO) != 0) thread_ = std::thread([this] { run(); });
}

void Progress::finish() {
    if (!thread_.joinable()) return;
    {
        const std::lock_guard lock(mutex_);
        stop_ = true;
    }
    stop_changed_.notify_all();
    thread_.join();
}

void Progress::run() {
    std::unique_lock lock(mutex_);
    for (int seconds = 1;; ++seconds) {
        if (stop_changed_.wait_for(lock, std::chrono::seconds(1), [this] { return stop_; })) {
            if (seconds > 1) std::fputs("\r\033[K", stderr);
            return;
        }
        fmt::print(stderr, "\r\033[K{} … {} s", doing_, seconds);
    }
}

}  // namespace atomic4::tools
