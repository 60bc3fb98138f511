#include "support/failing_syscalls.h"

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstddef>
#include <cstring>

namespace atomic4::test {
namespace {

bool install(const std::vector<FailingSyscall>& calls) {
    std::vector<sock_filter> program;
    program.push_back(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)));
    for (const FailingSyscall& call : calls) {
        program.push_back(
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<uint32_t>(call.number), 0, 1));
        program.push_back(
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<uint32_t>(call.code)));
    }
    program.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
    const sock_fprog filter{static_cast<unsigned short>(program.size()), program.data()};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}

}  // namespace

std::string run_with_failing_syscalls(const std::vector<FailingSyscall>& calls,
                                      const std::function<std::string()>& body) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) return "pipe2";
    const pid_t child = fork();
    if (child == 0) {
        const std::string complaint =
            install(calls) ? body() : std::string("seccomp: ") + std::strerror(errno);
        const ssize_t written = write(ends[1], complaint.data(), complaint.size());
        _exit(written == static_cast<ssize_t>(complaint.size()) ? 0 : 1);
    }
    close(ends[1]);
    std::string result;
    char buffer[1024];
    for (ssize_t n = 0; (n = read(ends[0], buffer, sizeof buffer)) > 0;)
        result.append(buffer, static_cast<size_t>(n));
    close(ends[0]);
    int status = 0;
    if (waitpid(child, &status, 0) != child || status != 0) result += " (the child died)";
    return result;
}

}  // namespace atomic4::test
