#include <nlohmann/json.hpp>

#include "atomic4ctl/by_daemon.h"
#include "atomic4ctl/commands.h"
#include "base/text.h"
#include "common/json_report.h"
#include "common/open.h"
#include "common/progress.h"
#include "ext4/path.h"
#include "writer/atomic_writer.h"

namespace atomic4::tools {

namespace {

Result<WriteReport> write_to_volume(const Context& context, const WriteCommand& command,
                                    Input& input, std::span<const std::byte> bytes) {
    auto writer = A4_TRY(AtomicWriter::open(A4_TRY(open_to_write(context, command.device))));
    const ext2_ino_t inode = A4_TRY(lookup(writer->volume(), command.path));
    const FileState file = A4_TRY(writer->file(inode).context(command.path));
    WriteReport report;
    report.length = Bytes(bytes.size());
    const auto write = [&]() -> Result<> {
        if (command.plain) {
            const auto put = [&](Bytes done, std::span<const std::byte> piece) {
                return writer->write_plain({inode, file.generation, command.offset + done, piece});
            };
            report.length = A4_TRY(input.for_each_piece(command.length, put));
            return {};
        }
        const WriteOutcome outcome =
            A4_TRY(writer->write({inode, file.generation, command.offset, bytes}, command.engine));
        report.engine = to_text(outcome.engine);
        report.why_not_native = outcome.why_not_native;
        return {};
    };
    auto written = write();
    // A refused write leaves a writer in order; closing it lets stock tools in again. One that is
    // in doubt leaves its log for recovery.
    if (written || !writer->poisoned()) {
        auto closed = writer->close();
        if (written) written = std::move(closed);
    }
    A4_CHECK(std::move(written).context(command.path));
    return report;
}

}  // namespace

Result<int> run(const Context& context, const WriteCommand& command) {
    Progress progress(fmt::format("writing {}", printable(command.path)));
    Input input = A4_TRY(Input::open(command.from));
    std::vector<std::byte> bytes;
    if (!command.plain) bytes = A4_TRY(input.read_atomic(command.length));
    const WriteReport report =
        A4_TRY(command.device.empty() ? write_by_daemon(command, input, bytes)
                                      : write_to_volume(context, command, input, bytes));
    progress.finish();
    if (context.json) {
        nlohmann::json json = {{"path", command.path},
                               {"offset", command.offset.value()},
                               {"length", report.length.value()},
                               {"engine", report.engine},
                               {"why_not_native", report.why_not_native}};
        if (report.ack) {
            json["ack"] = *report.ack;
            json["why_strict"] = report.why_strict;
        }
        print_json(context, json);
        return 0;
    }
    std::string text = fmt::format("{}: {} bytes at {}, {}", printable(command.path), report.length,
                                   command.offset, report.engine);
    if (!report.why_not_native.empty())
        text += fmt::format(" (not native: {})", report.why_not_native);
    if (report.ack && !command.plain) text += fmt::format(", {}", *report.ack);
    if (!report.why_strict.empty()) text += fmt::format(" ({})", report.why_strict);
    context.print(text + "\n");
    return 0;
}

}  // namespace atomic4::tools
