#include "atomic4ctl/by_daemon.h"
#include "common/daemon.h"

namespace atomic4::tools {

Result<WriteReport> write_by_daemon(const WriteCommand& command, Input& input,
                                    std::span<const std::byte> bytes) {
    const DaemonConnection daemon = A4_TRY(connect_daemon({command.socket, command.path}));
    Client& client = *daemon.client;
    const File file = A4_TRY(
        open_at_daemon(client, command.path,
                       wire::kOpenWrite | (command.plain ? 0 : wire::kOpenAtomic), command.engine));
    WriteReport report;
    if (command.plain) {
        const auto put = [&](Bytes done, std::span<const std::byte> piece) {
            return client.write_plain(file.handle, command.offset + done, piece);
        };
        report.length = A4_TRY(input.for_each_piece(command.length, put).context(command.path));
        A4_CHECK(client.flush(file.handle).context(command.path));
        report.ack = to_text(wire::AckMode::None);
        return report;
    }
    const Written written =
        A4_TRY(client.write(file.handle, command.offset, bytes).context(command.path));
    const FileStatus status = A4_TRY(client.statx(file.handle).context(command.path));
    report.length = Bytes(bytes.size());
    report.engine = to_text(written.engine);
    if (written.engine == wire::WireEngine::Logged && command.engine == Engine::Auto)
        report.why_not_native = status.why_not_native;
    report.ack = to_text(written.ack_mode);
    if (written.ack_mode == wire::AckMode::Strict) report.why_strict = status.why_strict;
    return report;
}

}  // namespace atomic4::tools
