#include "fsck/terminal.h"

#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <array>
#include <iostream>

namespace atomic4::tools {

void Terminal::say(const std::string& line) {
    clear_bar();
    context_.print(prefix_ + line + "\n");
}

bool Terminal::progress(uint64_t done, uint64_t all) {
    show_progress(done, all);
    return !signals_.pending();
}

bool Terminal::ask(const std::string& line, const std::string& question) {
    clear_bar();
    context_.out << line << ". " << question << "? (y/n) " << std::flush;
    std::string answer;
    while (answers(answer)) {
        if (answer.starts_with("y") || answer.starts_with("Y")) return true;
        if (answer.starts_with("n") || answer.starts_with("N")) return false;
        context_.out << "y or n? " << std::flush;
    }
    return false;
}

void Terminal::show_progress(uint64_t done, uint64_t all) {
    const int per_mille = all == 0 ? 1000 : static_cast<int>(done * 1000 / all);
    if (!command_.progress || (per_mille == said_ && done != all)) return;
    said_ = per_mille;
    if (*command_.progress > 0) {
        const std::string line = fmt::format("0 {} {} {}\n", done, all, command_.device);
        // Who doesn't listen any more is no reason to stop.
        struct sigaction ignored{};
        struct sigaction before{};
        ignored.sa_handler = SIG_IGN;
        ::sigaction(SIGPIPE, &ignored, &before);
        (void)!::write(*command_.progress, line.data(), line.size());
        ::sigaction(SIGPIPE, &before, nullptr);
    } else if (*command_.progress == 0) {
        context_.print(fmt::format("\r{}: atomic files {}.{}%", command_.device, per_mille / 10,
                                   per_mille % 10));
        context_.out.flush();
        bar_ = true;
        if (done == all) clear_bar();
    }
}

bool Terminal::answers(std::string& line) {
    std::array<pollfd, 2> events{{{STDIN_FILENO, POLLIN, 0}, {signals_.fd(), POLLIN, 0}}};
    while (std::cin.rdbuf()->in_avail() <= 0 && events[0].revents == 0) {
        if (::poll(events.data(), events.size(), -1) < 0 && errno != EINTR) return false;
        if (events[1].revents != 0) return false;
    }
    return static_cast<bool>(std::getline(std::cin, line));
}

void Terminal::clear_bar() {
    if (!bar_) return;
    context_.print("\r" + std::string(command_.device.size() + 21, ' ') + "\r");
    context_.out.flush();
    bar_ = false;
}

}  // namespace atomic4::tools
