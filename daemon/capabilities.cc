#include "daemon/capabilities.h"

#include <linux/capability.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <initializer_list>

namespace atomic4 {
namespace {

Result<> drop(std::initializer_list<unsigned> capabilities) {
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    std::array<__user_cap_data_struct, _LINUX_CAPABILITY_U32S_3> sets{};
    if (::syscall(SYS_capget, &header, sets.data()) != 0)
        return fail(Error::from_errno(errno, "capget"));
    bool any = false;
    for (const unsigned capability : capabilities) {
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

}  // namespace

Result<> drop_client_capabilities() {
    return drop({CAP_FSETID, CAP_SYS_RESOURCE});
}

Result<> drop_start_capabilities() {
    return drop({CAP_CHOWN});
}

}  // namespace atomic4
