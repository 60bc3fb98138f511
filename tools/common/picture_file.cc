#include "common/picture_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string_view>

#include "base/unique_fd.h"
#include "ext4/handle_files.h"

namespace atomic4::tools {

namespace {

// Where a picture goes: the file that a link leads to, and the permissions that it has or gets.
struct Place {
    std::string path;
    mode_t mode = 0666;
};

Result<Place> place_of(const std::string& path) {
    struct stat status = {};
    if (::lstat(path.c_str(), &status) != 0) {
        if (errno != ENOENT) return fail(Error::from_errno(errno, path));
        const mode_t mask = ::umask(0);
        ::umask(mask);
        return Place{path, 0666 & ~mask};
    }
    const std::unique_ptr<char, decltype(&std::free)> real(::realpath(path.c_str(), nullptr),
                                                           &std::free);
    if (real == nullptr || ::stat(real.get(), &status) != 0)
        return fail(Error::from_errno(errno, path));
    const auto refuse = [&] {
        return fail(EEXIST, "{}: exists and is no SVG picture: it is left alone, give another name",
                    path);
    };
    if (!S_ISREG(status.st_mode)) return refuse();
    Place place{real.get(), status.st_mode & 07777};
    if (status.st_size == 0) return place;
    const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (!file) return fail(Error::from_errno(errno, path));
    constexpr std::string_view kBegin = "<svg ";
    char begin[kBegin.size()];
    const ssize_t got = ::pread(file.get(), begin, sizeof begin, 0);
    if (got < 0) return fail(Error::from_errno(errno, path));
    if (std::string_view(begin, static_cast<size_t>(got)) != kBegin) return refuse();
    return place;
}

Result<> fill(int fd, const std::string& svg, mode_t mode) {
    A4_CHECK(write_all(fd, std::as_bytes(std::span(svg)), ByteOffset(0)));
    if (::fchmod(fd, mode) != 0) return fail(Error::from_errno(errno, "fchmod"));
    return {};
}

}  // namespace

Result<> store_picture(const std::string& path, const std::string& svg) {
    const Place place = A4_TRY(place_of(path));
    std::string temporary = place.path.substr(0, place.path.rfind('/') + 1) + ".atomic4-XXXXXX";
    const UniqueFd file(::mkostemp(temporary.data(), O_CLOEXEC));
    if (!file) return fail(Error::from_errno(errno, path));
    auto done = fill(file.get(), svg, place.mode);
    if (done && ::rename(temporary.c_str(), place.path.c_str()) != 0)
        done = fail(Error::from_errno(errno, "rename"));
    if (!done) {
        ::unlink(temporary.c_str());
        return std::move(done).context(path);
    }
    return {};
}

}  // namespace atomic4::tools
