// umount.atomic4: parses, calls, translates exit codes (umount(8)'s).
#include "base/standard_streams.h"
#include "mount/helper.h"
#include "mount/umount.h"

int main(int argc, char** argv) {
    atomic4::reserve_standard_streams();
    using namespace atomic4::tools;
    return helper_main<UmountRequest>(
        {.name = "umount.atomic4",
         .usage = "usage: umount.atomic4 DIRECTORY|DEVICE [-flnrv] [-N NAMESPACE] [-t TYPE]\n",
         .parse = parse_umount,
         .carry_out = unmount_volume},
        argc, argv);
}
