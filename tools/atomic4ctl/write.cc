#include <nlohmann/json.hpp>

#include "atomic4ctl/by_daemon.h"
#include "atomic4ctl/commands.h"
#include "atomic4ctl/input.h"
#include "common/open.h"
#include "common/progress.h"
#include "ext4/path.h"
#include "writer/atomic_writer.h"

namespace atomic4::tools {

Result<int> run(const Context& context, const WriteCommand& command) {
    if (command.device.empty()) return write_by_daemon(context, command);
    Progress progress(fmt::format("writing {}", command.path));
    Input input = A4_TRY(Input::open(command.from));
    std::vector<std::byte> bytes;
    if (!command.plain) bytes = A4_TRY(input.read_atomic(command.length));
    auto writer = A4_TRY(AtomicWriter::open(A4_TRY(open_to_write(context, command.device))));
    const ext2_ino_t inode = A4_TRY(lookup(writer->volume(), command.path));
    const FileState file = A4_TRY(writer->file(inode).context(command.path));
    WriteOutcome outcome;
    uint64_t length = bytes.size();
    const auto write = [&]() -> Result<> {
        if (command.plain) {
            const auto put = [&](Bytes done, std::span<const std::byte> piece) {
                return writer->write_plain({inode, file.generation, command.offset + done, piece});
            };
            length = A4_TRY(input.for_each_piece(command.length, put)).value();
        } else {
            outcome = A4_TRY(
                writer->write({inode, file.generation, command.offset, bytes}, command.engine));
        }
        return {};
    };
    auto written = write();
    // A refused write leaves a writer in order; closing it lets stock tools in again. One that is
    // in doubt leaves its log for recovery.
    if (written || !writer->poisoned()) {
        auto closed = writer->close();
        if (written) written = std::move(closed);
    }
    progress.finish();
    A4_CHECK(std::move(written).context(command.path));
    const char* engine = command.plain ? "plain" : to_text(outcome.engine);
    if (context.json) {
        const nlohmann::json json = {{"path", command.path},
                                     {"offset", command.offset.value()},
                                     {"length", length},
                                     {"engine", engine},
                                     {"why_not_native", outcome.why_not_native}};
        context.print(json.dump(2) + "\n");
    } else {
        context.print(fmt::format("{}: {} bytes at {}, {}{}\n", command.path, length,
                                  command.offset, engine,
                                  outcome.why_not_native.empty()
                                      ? ""
                                      : fmt::format(" (not native: {})", outcome.why_not_native)));
    }
    return 0;
}

}  // namespace atomic4::tools
