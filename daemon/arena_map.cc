#include "daemon/arena_map.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

namespace atomic4 {

Result<std::shared_ptr<ArenaMap>> ArenaMap::map(const UniqueFd& memfd, Bytes size) {
    const int seals = ::fcntl(memfd.get(), F_GET_SEALS);
    if (seals < 0) return fail(EINVAL, "the arena must be a memfd (memfd_create(2))");
    if ((seals & F_SEAL_SHRINK) == 0)
        return fail(EINVAL, "the arena must be sealed with F_SEAL_SHRINK, so that it can't shrink");
    struct statfs fs{};
    // Huge pages can run out when they are touched.
    if (::fstatfs(memfd.get(), &fs) != 0 || fs.f_type != TMPFS_MAGIC)
        return fail(EINVAL, "the arena must be in ordinary memory (no MFD_HUGETLB)");
    struct stat st{};
    if (::fstat(memfd.get(), &st) != 0) return fail(Error::from_errno(errno, "the arena"));
    if (static_cast<uint64_t>(st.st_size) < size.value())
        return fail(EINVAL, "the arena has {} bytes, not the {} that were announced", st.st_size,
                    size);
    void* memory =
        ::mmap(nullptr, size.value(), PROT_READ | PROT_WRITE, MAP_SHARED, memfd.get(), 0);
    if (memory == MAP_FAILED && (errno == EACCES || errno == EPERM))
        return fail(EINVAL, "the arena must be open and unsealed for writing");
    if (memory == MAP_FAILED) return fail(Error::from_errno(errno, "mapping the arena"));
    return std::shared_ptr<ArenaMap>(new ArenaMap(static_cast<std::byte*>(memory), size));
}

ArenaMap::~ArenaMap() {
    ::munmap(memory_, size_.value());
}

}  // namespace atomic4
