#include <unistd.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "atomic4ctl/by_daemon.h"
#include "common/daemon.h"
#include "common/progress.h"

namespace atomic4::tools {

Result<int> read_by_daemon(const Context& context, const ReadCommand& command) {
    // On a terminal the bytes themselves are the sign of life.
    std::optional<Progress> progress;
    if (isatty(STDOUT_FILENO) == 0) progress.emplace(fmt::format("reading {}", command.path));
    const DaemonConnection daemon = A4_TRY(connect_daemon({command.socket, command.path}));
    Client& client = *daemon.client;
    const File file = A4_TRY(open_at_daemon(client, command.path, wire::kOpenRead));
    std::vector<std::byte> buffer;
    for (uint64_t done = 0; done < command.length.value();) {
        buffer.resize(std::min(wire::kReadMax, command.length.value() - done));
        const Bytes n = A4_TRY(
            client.read(file.handle, command.offset + Bytes(done), buffer).context(command.path));
        if (n.value() == 0) break;  // EOF
        context.out.write(reinterpret_cast<const char*>(buffer.data()),
                          static_cast<std::streamsize>(n.value()));
        done += n.value();
    }
    context.out.flush();
    if (!context.out) return fail(EIO, "standard output: write failed");
    return 0;
}

}  // namespace atomic4::tools
