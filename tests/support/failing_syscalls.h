// Makes system calls fail, as a broken disk would, in a child process: "what if fdatasync says
// EIO?" without a broken disk.
#pragma once

#include <functional>
#include <string>
#include <vector>

namespace atomic4::test {

struct FailingSyscall {
    long number;  // SYS_fdatasync
    int code;     // EIO
};

// Runs body in a child in which these system calls do nothing but fail (seccomp). body returns what
// went wrong, or nothing; that comes back, also if the child died. Descriptors are shared with
// the child, memory is not.
std::string run_with_failing_syscalls(const std::vector<FailingSyscall>& calls,
                                      const std::function<std::string()>& body);

}  // namespace atomic4::test
