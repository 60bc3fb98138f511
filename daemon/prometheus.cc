#include "daemon/prometheus.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>

#include "base/unique_fd.h"

namespace atomic4 {

namespace {

// quote: of a label's value, not of HELP.
std::string escaped(std::string_view text, bool quote) {
    std::string result;
    for (const char c : text) {
        if (c == '\\') {
            result += "\\\\";
        } else if (c == '\n') {
            result += "\\n";
        } else if (c == '"' && quote) {
            result += "\\\"";
        } else {
            result += c;
        }
    }
    return result;
}

}  // namespace

void PrometheusText::family(std::string_view name, std::string_view type, std::string_view help) {
    name_ = name;
    text_ += fmt::format("# HELP {} {}\n# TYPE {} {}\n", name, escaped(help, false), name, type);
}

void PrometheusText::sample(double value, Labels labels, std::string_view suffix) {
    add(fmt::format("{}", value), labels, suffix);
}

void PrometheusText::sample(uint64_t value, Labels labels, std::string_view suffix) {
    add(fmt::format("{}", value), labels, suffix);
}

void PrometheusText::add(std::string_view value, Labels labels, std::string_view suffix) {
    text_ += name_;
    text_ += suffix;
    char before = '{';
    for (const auto& [label, content] : labels) {
        text_ += fmt::format("{}{}=\"{}\"", before, label, escaped(content, true));
        before = ',';
    }
    if (labels.size() > 0) text_ += '}';
    text_ += fmt::format(" {}\n", value);
}

Result<> write_text_file(const std::string& path, std::string_view text) {
    const std::string temporary = path + ".new";
    // One that a killed daemon left; or a link that somebody put there, which isn't followed.
    if (::unlink(temporary.c_str()) != 0 && errno != ENOENT)
        return fail(Error::from_errno(errno, temporary));
    UniqueFd fd(
        ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644));
    if (!fd) return fail(Error::from_errno(errno, temporary));
    const auto give_up = [&](int code, const std::string& what) {
        ::unlink(temporary.c_str());
        return fail(Error::from_errno(code, what));
    };
    while (!text.empty()) {
        const ssize_t done = ::write(fd.get(), text.data(), text.size());
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return give_up(errno, temporary);
        text.remove_prefix(static_cast<size_t>(done));
    }
    fd.reset();
    if (::rename(temporary.c_str(), path.c_str()) != 0) return give_up(errno, path);
    return {};
}

}  // namespace atomic4
