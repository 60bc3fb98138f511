// Standard input, output and error, where they are closed: a device that is opened next would take
// their place, and what is printed would be written over it.
#pragma once

#include <fcntl.h>
#include <unistd.h>

namespace atomic4 {

// To be called before anything is opened. Ends the program if it can't be done.
inline void reserve_standard_streams() {
    for (;;) {
        const int fd = ::open("/dev/null", O_RDWR);
        if (fd < 0) ::_exit(127);
        if (fd > STDERR_FILENO) {
            ::close(fd);
            return;
        }
    }
}

}  // namespace atomic4
