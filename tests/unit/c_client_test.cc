// The C interface: a C program on the shared library, and what the library shows to a linker.
#include <gmock/gmock.h>

#include <sstream>

#include "support/command.h"
#include "support/fake_daemon.h"

namespace atomic4::test {
namespace {

TEST(CClient, ACProgram) {
    const TempDir dir;
    FakeDaemon daemon(dir.file("sock"), {});
    const auto result = run_command({ATOMIC4_C_CLIENT_PROGRAM, dir.file("sock")});
    EXPECT_EQ(result.status, 0) << result.output;
    EXPECT_EQ(result.output, "");
}

TEST(CClient, LibraryExportsItsInterfaceOnly) {
    const auto result = run_command({"nm", "-D", "--defined-only", ATOMIC4_CLIENT_LIBRARY});
    ASSERT_EQ(result.status, 0) << result.output;
    std::istringstream lines(result.output);
    int functions = 0;
    for (std::string address, kind, name; lines >> address >> kind >> name;) {
        if (name.starts_with("a4_"))
            ++functions;
        else
            EXPECT_EQ(kind, "A") << name;  // the version's own name
    }
    EXPECT_EQ(functions, 27);
}

// It needs the C++ runtime, but nothing that a program would have to ship with it.
TEST(CClient, LibraryNeedsNoOtherLibraries) {
    const auto result = run_command({"readelf", "-d", ATOMIC4_CLIENT_LIBRARY});
    ASSERT_EQ(result.status, 0) << result.output;
    EXPECT_THAT(result.output, testing::HasSubstr("[libatomic4client.so.0]"));
    for (const char* other : {"libext2fs", "libfmt", "libblkid", "libisal", "libcom_err"})
        EXPECT_THAT(result.output, testing::Not(testing::HasSubstr(other)));
}

}  // namespace
}  // namespace atomic4::test
