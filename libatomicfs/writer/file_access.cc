#include "writer/file_access.h"

#include <fcntl.h>

#include <algorithm>
#include <fstream>
#include <sstream>

#include "writer/opener_flags.h"

namespace atomic4 {
namespace {

using namespace std::chrono_literals;

// After a writer has closed the file the kernel may count it for a moment yet (open_watch.h).
constexpr int kLooks = 3;

std::string name_of(pid_t pid) {
    std::ifstream in(fmt::format("/proc/{}/comm", pid));
    std::string name;
    std::getline(in, name);
    return name.empty() ? "unknown" : name;
}

// When it was started, as the kernel counts it (proc_pid_stat(5), field 22); empty: it is gone.
std::string start_of(pid_t pid) {
    std::ifstream in(fmt::format("/proc/{}/stat", pid));
    std::string word;
    // The name may have blanks and brackets in it, but its end has the last one.
    std::string line;
    std::getline(in, line);
    std::istringstream rest(line.substr(std::min(line.rfind(')') + 1, line.size())));
    for (int field = 3; field <= 22; ++field) {
        word.clear();
        rest >> word;
    }
    return word;
}

}  // namespace

FileAccess::~FileAccess() {
    *alive_ = false;
    give_up({});
}

void FileAccess::start(std::function<void(Result<>)> done) {
    ready_calls_.push_back(std::move(done));
    if (around_.openers != nullptr) {
        // Marked before the probe: nobody slips in between.
        if (auto marked = around_.openers->watch(read_only()); marked)
            watched_ = true;
        else
            around_.why_no_watch = marked.error().message;
    }
    probe_wanted_ = watched_;
    if (probe_wanted_)
        step();
    else
        reopen();
}

void FileAccess::unuse() {
    --users_;
    if (users_ == 0) step();
}

std::string FileAccess::why_strict() const {
    if (!strict_) return {};
    if (!watched_) return "openers can't be watched: " + around_.why_no_watch;
    std::string known;
    if (!writers_.empty()) {
        const auto& [pid, writer] = *writers_.begin();
        std::string others;
        if (writers_.size() > 1) others = fmt::format(" (and {} others)", writers_.size() - 1);
        known = fmt::format("process {} ({}) has it open for writing{}", pid, writer.name, others);
        if (!unknown_writers_)
            return known + ": until it closes it, or declares in an OPEN that it is cooperative";
        known += "; ";
    }
    return known +
           "somebody has it open for writing whom the daemon didn't see opening it, as before the "
           "file's first OPEN: until that descriptor is closed. A client closes its own after "
           "OPEN, "
           "cooperative or not, and keeps a read-only one, or opens it again for writing and says "
           "so in another OPEN that declares it cooperative";
}

void FileAccess::add_writer(pid_t pid) {
    const auto [at, fresh] = writers_.try_emplace(pid, Writer{name_of(pid), start_of(pid)});
    // Another process had the number before, and its descriptors may live on elsewhere.
    if (!fresh && at->second.started != start_of(pid)) unknown_writers_ = true;
}

void FileAccess::give_up(const std::string& why) {
    if (!watched_) return;
    strict_ = true;
    unknown_writers_ = true;
    around_.why_no_watch = why;
    let_go();
    (void)around_.openers->unwatch(read_only()).has_value();
    watched_ = false;
}

void FileAccess::refuse_waiting(const Error& error) {
    if (probing_) return;  // it comes to its end
    probe_wanted_ = false;
    std::vector<std::function<void(Result<>)>> calls;
    calls.swap(ready_calls_);
    for (const auto& call : calls) call(fail(Error(error)));
}

void FileAccess::opened(pid_t pid, uint64_t token) {
    // Whoever only reads harms nothing, and goes on even while our own writes can't (a frozen
    // volume).
    if (surely_only_reads(pid)) {
        (void)around_.openers->allow(token).has_value();
        return;
    }
    waiting_.push_back({pid, token});
    // Others are in already, and nothing live is left that one more could harm.
    if (!watched_ || (strict_ && settled_)) {
        add_writer(pid);
        let_go();
        return;
    }
    probe_wanted_ = true;
    step();
}

void FileAccess::writer_closed() {
    if (!strict_ || !watched_) return;
    looks_left_ = kLooks;
    look_again(1ms);
}

void FileAccess::look_again(std::chrono::milliseconds after) {
    if (timer_set_ || !watched_) return;
    timer_set_ = true;
    around_.loop.after(after, [this, alive = alive_](int) {
        if (!*alive) return;
        timer_set_ = false;
        if (!strict_ || !watched_ || looks_left_ <= 0) return;
        --looks_left_;
        probe_wanted_ = true;
        step();
    });
}

void FileAccess::events_lost() {
    strict_ = true;
    unknown_writers_ = true;
    settled_ = false;
    writer_closed();
}

void FileAccess::declare(pid_t pid) {
    const auto found = writers_.find(pid);
    // Another process may have had the number before, and its descriptors may live on elsewhere.
    if (found == writers_.end() || found->second.started.empty() ||
        found->second.started != start_of(pid))
        return;
    writers_.erase(found);
    if (!writers_.empty() || unknown_writers_) return;
    become_exclusive();
    // Others were waiting for what it was.
    if (waiting_.empty()) return;
    probe_wanted_ = true;
    step();
}

void FileAccess::become_exclusive() {
    strict_ = false;
    settled_ = false;
    ++times_exclusive_;
}

void FileAccess::when_ready(std::function<void(Result<>)> call) {
    ready_calls_.push_back(std::move(call));
    if (!probing_ && !probe_wanted_) ready();
}

// New writes wait from now on; when those that run are through, the probe.
void FileAccess::step() {
    if (!probe_wanted_ || probing_) return;
    held_ = true;
    if (users_ == 0) return probe();
    if (waiting_.empty() || std::exchange(patience_set_, true)) return;
    around_.loop.after(kPatience, [this, alive = alive_](int) {
        if (!*alive) return;
        patience_set_ = false;
        lose_patience();
    });
}

// The probe, which closes our descriptor, comes when they are through.
void FileAccess::lose_patience() {
    if (!probe_wanted_ || probing_ || users_ == 0 || waiting_.empty()) return;
    for (const Held& opener : waiting_) add_writer(opener.pid);
    strict_ = true;
    around_.make_strict();
    retire_for_openers();
}

void FileAccess::probe() {
    probe_wanted_ = false;
    probing_ = true;
    ++probes_;
    direct_.reset();
    const auto nobody = OpenWatch::nobody_writes(read_only());
    if (nobody && *nobody) {
        become_exclusive();
        unknown_writers_ = false;
        writers_.clear();
        looks_left_ = 0;
        let_go();
        reopen();
        return;
    }
    if (waiting_.empty()) unknown_writers_ = unknown_writers_ || !strict_ || writers_.empty();
    // Which of them it is can't be told: all.
    for (const Held& opener : waiting_) add_writer(opener.pid);
    strict_ = true;
    if (settled_)
        let_go();
    else
        retire_for_openers();
    // The first answer may have been wrong (open_watch.h).
    if (!settled_ && looks_left_ == 0) looks_left_ = 1;
    if (looks_left_ > 0) look_again(10ms);
    reopen();
}

// What is live now could be replayed over what they are going to write.
void FileAccess::retire_for_openers() {
    around_.when_retired([this, alive = alive_, exclusive = times_exclusive_](const Result<>&) {
        // Exclusive meanwhile, so what is live now is another matter.
        if (!*alive || exclusive != times_exclusive_) return;
        // Those too that came after this was asked for: what is written by then is strict.
        for (const Held& opener : waiting_) add_writer(opener.pid);
        // In doubt or not: nobody is held for ever. In doubt the log says so.
        settled_ = true;
        let_go();
    });
}

void FileAccess::let_go() {
    std::vector<Held> waiting;
    waiting.swap(waiting_);
    for (const Held& opener : waiting) (void)around_.openers->allow(opener.token).has_value();
}

void FileAccess::reopen() {
    probing_ = true;
    around_.opening.run(
        static_cast<HelperThreads::Lane>(read_only()),
        [fd = read_only_] {
            const std::string path = fmt::format("/proc/self/fd/{}", fd->get());
            // A lease would keep this thread, and with it all other files, waiting for a minute.
            const int flags = O_RDWR | O_DIRECT;
            const int opened = ::open(path.c_str(), flags | O_NONBLOCK | O_CLOEXEC);
            if (opened < 0) return -errno;
            // Or io_uring would refuse whatever can't be done at once.
            ::fcntl(opened, F_SETFL, flags);
            return opened;
        },
        [this, alive = alive_](int fd) {
            if (!*alive) {
                const UniqueFd unwanted(fd);
                return;
            }
            reopened(fd);
        });
}

void FileAccess::reopened(int fd) {
    probing_ = false;
    broken_.reset();
    if (fd >= 0)
        direct_.reset(fd);
    else if (fd == -EWOULDBLOCK)
        wait_for_lease();
    else
        broken_ = Error::from_errno(-fd, "opening the file for direct writes");
    if (probe_wanted_) return step();
    ready();
}

// The kernel has asked its holder to give it up, and takes it in the end.
void FileAccess::wait_for_lease() {
    broken_ = Error{EBUSY, "another process has a lease on the file (fcntl(2), F_SETLEASE)"};
    around_.loop.after(50ms, [this, alive = alive_](int) {
        if (!*alive || probing_ || probe_wanted_ || direct_) return;
        held_ = true;
        reopen();
    });
}

void FileAccess::ready() {
    held_ = false;
    std::vector<std::function<void(Result<>)>> calls;
    calls.swap(ready_calls_);
    for (const auto& call : calls) call(broken_ ? Result<>(fail(Error(*broken_))) : Result<>());
    around_.wake();
}

}  // namespace atomic4
