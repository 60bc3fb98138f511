#include "daemon/refusal_log.h"

#include "base/text.h"

namespace atomic4 {
namespace {

// Allowances are kept for so many users before full ones are looked for and forgotten.
constexpr size_t kUsersMax = 256;

std::string one_line(std::string text) {
    for (char& c : text)
        if (static_cast<unsigned char>(c) < ' ' || c == '\x7f') c = '?';
    return text;
}

}  // namespace

void RefusalLog::Allowance::refill(Clock::time_point now) {
    const auto pauses = (now - since) / kPause;
    if (pauses <= 0) return;
    left = pauses >= kBurst - left ? kBurst : left + static_cast<uint32_t>(pauses);
    since += pauses * kPause;
}

void RefusalLog::refused(std::optional<uid_t> user, const std::string& what,
                         Clock::time_point now) {
    if (allowances_.size() >= kUsersMax) {
        for (auto it = allowances_.begin(); it != allowances_.end();) {
            it->second.refill(now);
            it = it->second.untouched() ? allowances_.erase(it) : std::next(it);
        }
    }
    Allowance& allowance =
        allowances_.try_emplace(user, Allowance{kBurst, now, 0, {}}).first->second;
    allowance.refill(now);
    // The one that comes when some are held back is the last of them.
    if (allowance.left == 0 || allowance.held_back > 0) {
        ++allowance.held_back;
        ++held_back_;
        allowance.last = one_line(what);
        if (allowance.left > 0) tell(user, allowance);
        return;
    }
    --allowance.left;
    write_("refused: " + one_line(what));
}

void RefusalLog::tell_rest(Clock::time_point now, bool all) {
    for (auto& [user, allowance] : allowances_) {
        allowance.refill(now);
        if (allowance.held_back > 0 && (allowance.left > 0 || all)) tell(user, allowance);
    }
}

void RefusalLog::tell(std::optional<uid_t> user, Allowance& allowance) {
    write_(fmt::format("refused: {} more of {}, the last: {}", allowance.held_back,
                       user ? fmt::format("user {}", *user) : "various users", allowance.last));
    held_back_ -= allowance.held_back;
    allowance.held_back = 0;
    allowance.last.clear();
    if (allowance.left > 0) --allowance.left;
}

}  // namespace atomic4
