#include "daemon/foreign_descriptor.h"

#include <map>
#include <mutex>
#include <system_error>
#include <thread>

namespace atomic4 {

namespace {

struct Pending {
    std::mutex mutex;
    std::map<uid_t, size_t> by_user;
};

// Never destroyed: a thread may still be closing when the program ends.
Pending& pending() {
    static auto* instance = new Pending;
    return *instance;
}

void finish(UniqueFd fd, uid_t user) {
    fd.reset();
    const std::lock_guard lock(pending().mutex);
    const auto entry = pending().by_user.find(user);
    if (--entry->second == 0) pending().by_user.erase(entry);
}

}  // namespace

void close_foreign(UniqueFd fd, uid_t user) {
    if (!fd) return;
    {
        const std::lock_guard lock(pending().mutex);
        ++pending().by_user[user];
    }
    const int number = fd.release();
    try {
        std::thread([number, user] { finish(UniqueFd(number), user); }).detach();
    } catch (const std::system_error&) {  // NOLINT(bugprone-empty-catch)
        // No thread to be had: it stays open, and counted, rather than hold up the caller.
    }
}

size_t foreign_pending(uid_t user) {
    const std::lock_guard lock(pending().mutex);
    const auto entry = pending().by_user.find(user);
    return entry == pending().by_user.end() ? 0 : entry->second;
}

}  // namespace atomic4
