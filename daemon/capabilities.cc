#include "daemon/capabilities.h"

#include <linux/capability.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>

namespace atomic4 {

namespace {

constexpr std::array kGivenUp = {CAP_FSETID, CAP_SYS_RESOURCE};

}  // namespace

Result<> drop_client_capabilities() {
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    std::array<__user_cap_data_struct, _LINUX_CAPABILITY_U32S_3> sets{};
    if (::syscall(SYS_capget, &header, sets.data()) != 0)
        return fail(Error::from_errno(errno, "capget"));
    bool any = false;
    for (const unsigned capability : kGivenUp) {
        auto& set = sets[CAP_TO_INDEX(capability)];
        const uint32_t bit = CAP_TO_MASK(capability);
        any = any || ((set.effective | set.permitted | set.inheritable) & bit) != 0;
        set.effective &= ~bit;
        set.permitted &= ~bit;
        set.inheritable &= ~bit;
    }
    if (!any) return {};
    if (::syscall(SYS_capset, &header, sets.data()) != 0)
        return fail(Error::from_errno(errno, "capset"));
    return {};
}

}  // namespace atomic4
