#include <nlohmann/json.hpp>

#include "atomic4ctl/by_daemon.h"
#include "atomic4ctl/input.h"
#include "common/daemon.h"
#include "common/progress.h"

namespace atomic4::tools {

Result<int> write_by_daemon(const Context& context, const WriteCommand& command) {
    Progress progress(fmt::format("writing {}", command.path));
    Input input = A4_TRY(Input::open(command.from));
    std::vector<std::byte> bytes;
    if (!command.plain) bytes = A4_TRY(input.read_atomic(command.length));
    const DaemonConnection daemon = A4_TRY(connect_daemon({command.socket, command.path}));
    Client& client = *daemon.client;
    const File file = A4_TRY(
        open_at_daemon(client, command.path,
                       wire::kOpenWrite | (command.plain ? 0 : wire::kOpenAtomic), command.engine));

    Written written;
    FileStatus status;
    Bytes length(bytes.size());
    const auto write = [&]() -> Result<> {
        if (command.plain) {
            length = A4_TRY(input.for_each_piece(
                command.length, [&](Bytes done, std::span<const std::byte> piece) {
                    return client.write_plain(file.handle, command.offset + done, piece);
                }));
            return client.flush(file.handle);
        }
        written = A4_TRY(client.write(file.handle, command.offset, bytes));
        status = A4_TRY(client.statx(file.handle));
        return {};
    };
    auto done = write();
    progress.finish();
    A4_CHECK(std::move(done).context(command.path));

    const char* engine = command.plain ? "plain" : to_text(written.engine);
    const std::string why_not_native =
        written.engine == wire::WireEngine::Logged && command.engine == Engine::Auto
            ? status.why_not_native
            : "";
    const std::string why_strict =
        written.ack_mode == wire::AckMode::Strict ? status.why_strict : "";
    if (context.json) {
        const nlohmann::json json = {{"path", command.path},
                                     {"offset", command.offset.value()},
                                     {"length", length.value()},
                                     {"engine", engine},
                                     {"why_not_native", why_not_native},
                                     {"ack", to_text(written.ack_mode)},
                                     {"why_strict", why_strict}};
        context.print(json.dump(2) + "\n");
        return 0;
    }
    std::string text =
        fmt::format("{}: {} bytes at {}, {}", command.path, length, command.offset, engine);
    if (!why_not_native.empty()) text += fmt::format(" (not native: {})", why_not_native);
    if (!command.plain) text += fmt::format(", {}", to_text(written.ack_mode));
    if (!why_strict.empty()) text += fmt::format(" ({})", why_strict);
    context.print(text + "\n");
    return 0;
}

}  // namespace atomic4::tools
