#include "mount/options.h"

#include <fcntl.h>
#include <sched.h>

#include <algorithm>
#include <functional>

#include "base/unique_fd.h"

namespace atomic4::tools {

namespace {

std::vector<std::string> split(const std::string& text) {
    std::vector<std::string> words(1);
    bool quoted = false;
    for (const char c : text) {
        if (c == '"') quoted = !quoted;
        if (c == ',' && !quoted)
            words.emplace_back();
        else
            words.back() += c;
    }
    std::erase_if(words, [](const std::string& word) { return word.empty(); });
    return words;
}

// Options of one letter, in any order and joined, between the operands.
Result<std::vector<std::string>> parse_words(
    const std::vector<std::string>& arguments, const std::string& with_value,
    const std::function<bool(char, const std::string&)>& option) {
    std::vector<std::string> operands;
    for (size_t i = 0; i < arguments.size(); ++i) {
        const std::string& word = arguments[i];
        if (word.size() < 2 || word[0] != '-') {
            operands.push_back(word);
            continue;
        }
        for (size_t at = 1; at < word.size(); ++at) {
            const char letter = word[at];
            std::string value;
            if (with_value.find(letter) != std::string::npos) {
                value = word.substr(at + 1);
                if (value.empty() && ++i == arguments.size())
                    return fail(EINVAL, "option -{} needs a value", letter);
                if (value.empty()) value = arguments[i];
                at = word.size();
            }
            if (!option(letter, value)) return fail(EINVAL, "unknown option {}", word);
        }
    }
    return operands;
}

}  // namespace

Result<MountOptions> MountOptions::parse(const std::string& text) {
    MountOptions options;
    for (const std::string& word : split(text)) {
        if (word == "ro" || word == "rw") {
            options.read_only = word == "ro";
        } else if (word == "noatomic4d") {
            options.start_daemon = false;
        } else if (word == "data=journal") {
            return fail(EINVAL,
                        "atomic writes don't go with data=journal, which writes data twice and "
                        "undoes direct writes: leave the option out");
        } else if (word == "nobarrier" || word == "barrier=0") {
            return fail(EINVAL,
                        "atomic writes don't go with {}: nothing that is flushed would be sure to "
                        "be stored: leave the option out",
                        word);
        } else if (!word.starts_with("helper=") && !word.starts_with("uhelper=")) {
            options.remount = options.remount || word == "remount";
            options.no_recovery = options.no_recovery || word == "noload" || word == "norecovery";
            options.passed.push_back(word);
        }
    }
    return options;
}

std::string MountOptions::to_text(const std::vector<std::string>& first) const {
    std::string text;
    for (const auto* words : {&first, &passed}) {
        for (const std::string& word : *words) text += (text.empty() ? "" : ",") + word;
    }
    return text;
}

Result<MountRequest> parse_mount(const std::vector<std::string>& arguments) {
    MountRequest request;
    std::string options;
    const auto operands =
        A4_TRY(parse_words(arguments, "Not", [&](char letter, const std::string& value) {
            switch (letter) {
                case 's':
                    return request.sloppy = true;
                case 'f':
                    return request.fake = true;
                case 'n':
                    return request.no_mtab = true;
                case 'v':
                    return request.verbose = true;
                case 'N':
                    request.mount_namespace = value;
                    return true;
                case 'o':
                    options += "," + value;
                    return true;
                case 'r':
                    options += ",ro";
                    return true;
                case 'w':
                    options += ",rw";
                    return true;
                default:
                    return letter == 't';  // whatever it says, we are atomic4
            }
        }));
    if (operands.size() != 2) return fail(EINVAL, "want a device and a directory");
    request.device = operands[0];
    request.directory = operands[1];
    request.options = A4_TRY(MountOptions::parse(options));
    return request;
}

Result<UmountRequest> parse_umount(const std::vector<std::string>& arguments) {
    UmountRequest request;
    const auto operands =
        A4_TRY(parse_words(arguments, "Nt", [&](char letter, const std::string& value) {
            switch (letter) {
                case 'f':
                    return request.force = true;
                case 'l':
                    return request.lazy = true;
                case 'n':
                    return request.no_mtab = true;
                case 'r':
                    return request.read_only = true;
                case 'v':
                    return request.verbose = true;
                case 'N':
                    request.mount_namespace = value;
                    return true;
                default:
                    return letter == 't';
            }
        }));
    if (operands.size() != 1) return fail(EINVAL, "want a directory or a device");
    request.target = operands[0];
    return request;
}

Result<> enter_namespace(const std::string& mount_namespace) {
    if (mount_namespace.empty()) return {};
    const bool number = std::ranges::all_of(mount_namespace, ::isdigit);
    const std::string path =
        number ? fmt::format("/proc/{}/ns/mnt", mount_namespace) : mount_namespace;
    const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd || ::setns(fd.get(), CLONE_NEWNS) != 0)
        return fail(Error::from_errno(errno, "entering the mount namespace " + path));
    return {};
}

}  // namespace atomic4::tools
