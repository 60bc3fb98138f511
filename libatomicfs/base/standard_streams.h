// Standard input, output and error, where they are closed: a device that is opened next would take
// their place, and what is printed would be written over it.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <string_view>

namespace atomic4 {

// To be called before anything is opened. Ends the program, with status 127 and a message if there
// is somewhere to say it, where one is closed and there is no /dev/null for it.
inline void reserve_standard_streams() {
    for (int stream = STDIN_FILENO; stream <= STDERR_FILENO; ++stream) {
        if (::fcntl(stream, F_GETFD) >= 0) continue;
        // It becomes the lowest number that is free, which is this one.
        if (::open("/dev/null", O_RDWR) == stream) continue;
        constexpr std::string_view kMessage =
            "a standard stream is closed, and there is no /dev/null in its place\n";
        (void)!::write(STDERR_FILENO, kMessage.data(), kMessage.size());
        ::_exit(127);
    }
}

}  // namespace atomic4
