// freeze and thaw.
#include <nlohmann/json.hpp>

#include "atomic4ctl/commands.h"
#include "common/daemon.h"
#include "common/json_report.h"
#include "common/progress.h"

namespace atomic4::tools {

Result<int> run(const Context& context, const FreezeCommand& command) {
    const DaemonConnection daemon =
        A4_TRY(connect_daemon({command.socket, command.path}, {.arena = Bytes(0)}));
    Progress progress(command.freeze ? "freezing" : "thawing");
    auto done = command.freeze ? daemon.client->freeze() : daemon.client->thaw();
    progress.finish();
    A4_CHECK(std::move(done).context(daemon.socket));
    if (context.json) {
        const nlohmann::json json = {{"socket", daemon.socket}, {"frozen", command.freeze}};
        print_json(context, json);
    } else {
        context.print(
            fmt::format("{}: {}\n", daemon.socket,
                        command.freeze ? "frozen: writes wait until atomic4ctl thaw" : "thawed"));
    }
    return 0;
}

}  // namespace atomic4::tools
