#include "support/fault_driver.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <unordered_map>

namespace atomic4::test {

namespace {

struct Mode {
    const char* name;
    int code;
    bool persistent;
    bool torn;
};

constexpr Mode kModes[] = {
    {"EIO once, torn", EIO, false, true},         {"EIO from then on", EIO, true, false},
    {"ENOSPC once", ENOSPC, false, false},        {"EIO once", EIO, false, false},
    {"ENOSPC from then on", ENOSPC, true, false}, {"EIO from then on, torn", EIO, true, true},
};
constexpr size_t kModesInShort = 3;

bool in_doubt(const Error& error) {
    return error.message.find("in doubt") != error.message.npos;
}

// e2fsck's verdicts: many faults leave the same image.
class Judge {
  public:
    explicit Judge(const FaultOperation& operation) : operation_(operation) {}

    std::string success(Image& image) {
        if (auto wrong = operation_.right(image); !wrong.empty()) return wrong;
        return complaints(image);
    }

    std::string error(Image& image, const Error& error) {
        const bool doubt = in_doubt(error);
        if (!doubt && operation_.unchanged) {
            if (auto wrong = operation_.unchanged(image); !wrong.empty())
                return "not in doubt, and yet: " + wrong;
        }
        if (auto wrong = reopen(image, doubt); !wrong.empty()) return wrong;
        if (auto wrong = complaints(image); !wrong.empty()) {
            if (!doubt) return "not in doubt, and yet " + wrong;
            const Fsck fsck = e2fsck(image, {"-fy"}, &image);
            if (fsck.status > 1) return "e2fsck can't repair it: " + fsck.output;
        }
        if (auto wrong = operation_.intact(image); !wrong.empty()) return wrong;
        ImageDevice device(image);
        device.set_atomic_limits(operation_.atomic_limits);
        // It may have been done before the error.
        const auto again = operation_.run(*borrowed(device));
        const auto wrong = success(image);
        if (wrong.empty()) return {};
        return fmt::format("run again: {}: {}", again ? "success" : again.error().message, wrong);
    }

  private:
    // As the next command would: recover first. Empty, or what kept it from being complete.
    static std::string recovered(Image& image) {
        ImageDevice device(image);
        const auto done = recover(borrowed(device), OnConflict::Keep);
        if (done) return done->failed.empty() ? std::string() : done->failed.front();
        // An enable or disable that was not finished has no log: running it again is next.
        const std::string& message = done.error().message;
        return message.find("interrupted") == message.npos ? message : std::string();
    }

    static std::string reopen(Image& image, bool doubt) {
        if (!raw_super(image).gate) return {};
        auto refused = recovered(image);
        if (refused.empty()) return {};
        if (!doubt) return "not in doubt, and yet recover says: " + refused;
        const Fsck fsck = e2fsck(image, {"-fy"}, &image);
        if (fsck.status > 1) return "e2fsck can't repair it: " + fsck.output;
        refused = recovered(image);
        return refused.empty() ? refused : "recover after e2fsck: " + refused;
    }

    std::string complaints(const Image& image) {
        const std::string_view bytes(reinterpret_cast<const char*>(image.data()), image.size());
        const auto [found, fresh] = verdicts_.try_emplace(std::hash<std::string_view>{}(bytes));
        if (fresh) found->second = fsck_complaints(image);
        return found->second;
    }

    const FaultOperation& operation_;
    std::unordered_map<size_t, std::string> verdicts_;
};

}  // namespace

bool long_run() {
    const char* value = std::getenv("ATOMIC4_LONG");
    return value != nullptr && *value != '\0' && std::string_view(value) != "0";
}

void run_with_every_fault(const FaultOperation& operation) {
    Judge judge(operation);
    int failures = 0;
    Image image;
    uint64_t runs = 0;
    uint64_t errors = 0;
    uint64_t doubtful = 0;
    for (const Mode& mode :
         std::span(kModes).first(long_run() ? std::size(kModes) : kModesInShort)) {
        for (uint64_t nth = 0;; ++nth) {
            image = operation.image;
            ImageDevice memory(image);
            memory.set_atomic_limits(operation.atomic_limits);
            FaultDevice device(memory);
            device.set_torn(mode.torn);
            device.fail_at(nth, mode.code, mode.persistent);
            const auto done = operation.run(device);
            ++runs;
            const bool fired = device.fired();
            std::string wrong;
            if (done) {
                wrong = judge.success(image);
            } else if (!fired) {
                wrong = "it fails without a fault";
            } else {
                ++errors;
                if (in_doubt(done.error())) ++doubtful;
                wrong = judge.error(image, done.error());
            }
            if (!wrong.empty()) {
                ADD_FAILURE() << operation.name << ", " << mode.name << ", I/O " << nth << ": "
                              << (done ? "success" : done.error().message) << "\n  " << wrong;
                if (++failures == 3) return;
            }
            if (!fired) break;
        }
    }
    fmt::print("{}: {} runs, {} errors, {} in doubt\n", operation.name, runs, errors, doubtful);
}

}  // namespace atomic4::test
