// Tests that need root, loop devices or a kernel feature: they skip with a reason where they can't
// run. With CI=true in the environment a skip is a failure, so that nothing is lost silently.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <string_view>

namespace atomic4::test {

inline bool skip_is_failure() {
    const char* ci = std::getenv("CI");
    return ci != nullptr && std::string_view(ci) == "true";
}

}  // namespace atomic4::test

// These return from the calling function, as GTEST_SKIP does.
#define A4_SKIP(reason)                                            \
    do {                                                           \
        if (::atomic4::test::skip_is_failure())                    \
            FAIL() << "can't run here, and CI=true: " << (reason); \
        GTEST_SKIP() << (reason);                                  \
    } while (false)

#define A4_REQUIRE_ROOT()                                \
    do {                                                 \
        if (::geteuid() != 0) A4_SKIP("root is needed"); \
    } while (false)
