#include "common/picture_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "base/unique_fd.h"
#include "ext4/handle_files.h"

namespace atomic4::tools {

namespace {

Result<> check_replaceable(const std::string& path) {
    struct stat status = {};
    if (::stat(path.c_str(), &status) != 0) {
        if (errno == ENOENT) return {};
        return fail(Error::from_errno(errno, path));
    }
    const auto refuse = [&] {
        return fail(EEXIST, "{}: exists and is no SVG picture: it is left alone, give another name",
                    path);
    };
    if (!S_ISREG(status.st_mode)) return refuse();
    if (status.st_size == 0) return {};
    const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (!file) return fail(Error::from_errno(errno, path));
    constexpr std::string_view kBegin = "<svg ";
    char begin[kBegin.size()];
    const ssize_t got = ::pread(file.get(), begin, sizeof begin, 0);
    if (got < 0) return fail(Error::from_errno(errno, path));
    if (std::string_view(begin, static_cast<size_t>(got)) != kBegin) return refuse();
    return {};
}

Result<> fill(int fd, const std::string& svg) {
    A4_CHECK(write_all(fd, std::as_bytes(std::span(svg)), ByteOffset(0)));
    const mode_t mask = ::umask(0);
    ::umask(mask);
    if (::fchmod(fd, 0666 & ~mask) != 0) return fail(Error::from_errno(errno, "fchmod"));
    return {};
}

}  // namespace

Result<> store_picture(const std::string& path, const std::string& svg) {
    A4_CHECK(check_replaceable(path));
    std::string temporary = path + ".XXXXXX";
    const UniqueFd file(::mkostemp(temporary.data(), O_CLOEXEC));
    if (!file) return fail(Error::from_errno(errno, path));
    auto done = fill(file.get(), svg);
    if (done && ::rename(temporary.c_str(), path.c_str()) != 0)
        done = fail(Error::from_errno(errno, "rename"));
    if (!done) {
        ::unlink(temporary.c_str());
        return std::move(done).context(path);
    }
    return {};
}

}  // namespace atomic4::tools
