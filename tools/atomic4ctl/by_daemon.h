// The commands on a file, carried out by a daemon instead of on an unmounted volume, and what both
// ways of carrying them out share.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "atomic4ctl/commands.h"
#include "atomic4ctl/input.h"

namespace atomic4::tools {

// What was written, for the report.
struct WriteReport {
    Bytes length;
    std::string engine = "plain";
    std::string why_not_native;
    // A daemon's answer; "none" to a plain write.
    std::optional<std::string> ack;
    std::string why_strict;
};
// bytes: of an atomic write; a plain one takes the input piece by piece.
Result<WriteReport> write_by_daemon(const WriteCommand& command, Input& input,
                                    std::span<const std::byte> bytes);

// Reads at an offset: how many bytes, 0 at EOF.
using ReadPiece = std::function<Result<Bytes>(ByteOffset offset, std::span<std::byte> into)>;
// Puts the command's range out, in pieces of at most that length.
Result<int> put_out(const Context& context, const ReadCommand& command, uint64_t piece,
                    const ReadPiece& read);
Result<int> read_by_daemon(const Context& context, const ReadCommand& command);

Result<int> status_by_daemon(const Context& context, const StatusCommand& command);

}  // namespace atomic4::tools
