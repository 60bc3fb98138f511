// daemon/example.py, which speaks the protocol with Python's standard library.
#include <gmock/gmock.h>

#include "support/command.h"
#include "support/fake_daemon.h"

namespace atomic4::test {
namespace {

using testing::HasSubstr;

TEST(ProtocolExample, WritesAndReadsBack) {
    const TempDir dir;
    FakeDaemon daemon(dir.file("sock"), {});
    const auto result = run_command(
        {"python3", ATOMIC4_SOURCE "/daemon/example.py", dir.file("sock"), "/dev/null"});
    EXPECT_EQ(result.status, 0) << result.output;
    EXPECT_THAT(result.output, HasSubstr("version 1, volume ab"));
    EXPECT_THAT(result.output, HasSubstr("16384 bytes are durable, all or nothing: logged strict"));
    EXPECT_THAT(result.output, HasSubstr("read back: the same"));
    EXPECT_EQ(daemon.file().size(), 16384u);
}

}  // namespace
}  // namespace atomic4::test
