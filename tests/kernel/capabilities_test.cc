#include "daemon/capabilities.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <string>

#include "base/unique_fd.h"
#include "support/command.h"
#include "support/failing_syscalls.h"
#include "support/privileged.h"

namespace atomic4::test {
namespace {

std::string mode_after_a_write(const std::string& path) {
    const UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    if (!fd || ::fchown(fd.get(), 12345, 12345) != 0 || ::fchmod(fd.get(), 06777) != 0)
        return "can't prepare " + path;
    if (::pwrite(fd.get(), "x", 1, 0) != 1) return "can't write";
    struct stat status{};
    if (::fstat(fd.get(), &status) != 0) return "can't stat";
    return fmt::format("{:o}", status.st_mode & 07777u);
}

TEST(Capabilities, AWriteForAClientTakesSetuidAway) {
    A4_REQUIRE_ROOT();
    const TempDir dir;
    const std::string path = dir.file("program");
    EXPECT_EQ(mode_after_a_write(path), "6777") << "root writes";
    // In a child: what is dropped is gone for good.
    EXPECT_EQ(run_with_failing_syscalls({},
                                        [&]() -> std::string {
                                            for (int i = 0; i < 2; ++i) {
                                                const auto dropped = drop_client_capabilities();
                                                if (!dropped) return dropped.error().message;
                                            }
                                            return mode_after_a_write(path);
                                        }),
              "777");
}

TEST(Capabilities, AfterTheStartNoFileIsGivenAway) {
    A4_REQUIRE_ROOT();
    const TempDir dir;
    const std::string path = dir.file("file");
    EXPECT_EQ(run_with_failing_syscalls(
                  {},
                  [&]() -> std::string {
                      const UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
                      if (::fchown(fd.get(), 12345, 12345) != 0) return "can't prepare " + path;
                      const auto dropped = drop_start_capabilities();
                      if (!dropped) return dropped.error().message;
                      return ::fchown(fd.get(), 0, 0) == 0 ? "given away" : "kept";
                  }),
              "kept");
}

TEST(Capabilities, NothingToGiveUpWithoutRoot) {
    A4_REQUIRE_ROOT();
    EXPECT_EQ(run_with_failing_syscalls({},
                                        [&]() -> std::string {
                                            if (::setresuid(12345, 12345, 12345) != 0)
                                                return "can't become another user";
                                            const auto dropped = drop_client_capabilities();
                                            const auto start = drop_start_capabilities();
                                            if (!start) return start.error().message;
                                            return dropped ? "" : dropped.error().message;
                                        }),
              "");
}

}  // namespace
}  // namespace atomic4::test
