#include "atomic4ctl/commands.h"
#include "common/daemon.h"

namespace atomic4::tools {

Result<int> run(const Context& context, const StatsCommand& command) {
    const DaemonConnection daemon =
        A4_TRY(connect_daemon({command.socket, command.path}, {.arena = Bytes(0)}));
    context.print(A4_TRY(
        daemon.client
            ->stats(command.prometheus ? wire::StatsFormat::Prometheus : wire::StatsFormat::Json)
            .context(daemon.socket)));
    return 0;
}

}  // namespace atomic4::tools
