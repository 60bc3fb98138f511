// How each of our programs begins and, if it must, ends.
#pragma once

#include <cstdio>
#include <exception>

#include "base/standard_streams.h"

namespace atomic4 {

// The whole of a main(): what throws is said, and answered with this exit status. That is the
// option library or the allocator: nothing of ours does.
inline int run_program(const char* name, int failed, int (*program)(int, char**), int argc,
                       char** argv) {
    reserve_standard_streams();
    try {
        return program(argc, argv);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s: %s\n", name, error.what());
        return failed;
    }
}

}  // namespace atomic4
