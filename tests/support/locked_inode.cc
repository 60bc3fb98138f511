#include "support/locked_inode.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "support/other_process.h"

namespace atomic4::test {
namespace {

constexpr size_t kPage = 4096;

UniqueFd new_userfaultfd() {
    // poll(2) tells of faults only where reading wouldn't wait for one.
    UniqueFd fd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
    uffdio_api api{};
    api.api = UFFD_API;
    if (fd && ::ioctl(fd.get(), UFFDIO_API, &api) != 0) fd.reset();
    return fd;
}

}  // namespace

std::optional<std::string> LockedInode::why_not() {
    if (new_userfaultfd()) return std::nullopt;
    return std::string("userfaultfd: ") + std::strerror(errno);
}

LockedInode::LockedInode(int fd, By by, uint64_t offset)
    : faults_(new_userfaultfd()), let_go_(::eventfd(0, EFD_CLOEXEC)) {
    page_ = ::mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uffdio_register missing{};
    missing.range = {reinterpret_cast<uintptr_t>(page_), kPage};
    missing.mode = UFFDIO_REGISTER_MODE_MISSING;
    if (!let_go_ || page_ == MAP_FAILED || ::ioctl(faults_.get(), UFFDIO_REGISTER, &missing) != 0)
        throw std::runtime_error("no page to wait for");
    caller_ = std::thread([this, fd, by, at = static_cast<off_t>(offset)] {
        if (by == By::Write)
            (void)!::pwrite(fd, page_, kPage, at);
        else
            (void)!::pread(fd, page_, kPage, at);
        returned_ = true;
    });
    // The fault is inside the call, and inside the lock.
    const bool faulted = readable(faults_.get(), kPatienceMs);
    keeper_ = std::thread([this] {
        (void)readable(let_go_.get(), kPatienceMs);
        bring_the_page();
    });
    if (!faulted) {
        release();
        throw std::runtime_error("the call didn't come to its page");
    }
}

void LockedInode::bring_the_page() {
    uffdio_zeropage zero{};
    zero.range = {reinterpret_cast<uintptr_t>(page_), kPage};
    (void)::ioctl(faults_.get(), UFFDIO_ZEROPAGE, &zero);
}

void LockedInode::release() {
    if (!caller_.joinable()) return;
    const uint64_t one = 1;
    (void)!::write(let_go_.get(), &one, sizeof one);
    keeper_.join();
    caller_.join();
    ::munmap(page_, kPage);
}

}  // namespace atomic4::test
