#include "atomic4ctl/by_daemon.h"
#include "common/daemon.h"

namespace atomic4::tools {

Result<int> read_by_daemon(const Context& context, const ReadCommand& command) {
    const DaemonConnection daemon = A4_TRY(connect_daemon({command.socket, command.path}));
    Client& client = *daemon.client;
    const File file = A4_TRY(open_at_daemon(client, command.path, wire::kOpenRead));
    return put_out(context, command, wire::kReadMax,
                   [&](ByteOffset offset, std::span<std::byte> into) {
                       return client.read(file.handle, offset, into);
                   });
}

}  // namespace atomic4::tools
