// mount.atomic4: parses, calls, translates exit codes (mount(8)'s).
#include "base/standard_streams.h"
#include "mount/helper.h"
#include "mount/mount.h"

int main(int argc, char** argv) {
    atomic4::reserve_standard_streams();
    using namespace atomic4::tools;
    return helper_main<MountRequest>({.name = "mount.atomic4",
                                      .usage = "usage: mount.atomic4 DEVICE DIRECTORY [-sfnrvw] "
                                               "[-N NAMESPACE] [-o OPTIONS] [-t TYPE]\n",
                                      .parse = parse_mount,
                                      .carry_out = mount_volume},
                                     argc, argv);
}
