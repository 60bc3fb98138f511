// The commands of atomic4ctl: one file each. A command takes its options, does the work through the
// library, and prints its report, as text or as JSON (documented in atomic4ctl(8)).
//
// The result is the exit status for what the report says (0 fine, 1 problems found); an Error is
// exit 1 with one line on stderr.
#pragma once

#include <optional>
#include <string>

#include "base/units.h"
#include "common/context.h"
#include "redo/replay.h"
#include "writer/write_rules.h"

namespace atomic4::tools {

struct EnableCommand {
    std::string device;
    Bytes unit{0};
    std::optional<Bytes> log_size;
};
Result<int> run(const Context& context, const EnableCommand& command);

struct DisableCommand {
    std::string device;
    bool force = false;
};
Result<int> run(const Context& context, const DisableCommand& command);

struct InfoCommand {
    std::string device;
};
Result<int> run(const Context& context, const InfoCommand& command);

struct RecoverCommand {
    std::string device;
    OnConflict policy = OnConflict::Keep;
    bool clear_mmp = false;
};
Result<int> run(const Context& context, const RecoverCommand& command);

struct LsCommand {
    std::string device;
};
Result<int> run(const Context& context, const LsCommand& command);

struct PreallocCommand {
    std::string device;
    std::string path;
    Bytes size;
    std::optional<Bytes> unit;  // default: the volume's
    uint16_t mode = 0644;
    uint32_t uid = 0;
    uint32_t gid = 0;
};
Result<int> run(const Context& context, const PreallocCommand& command);

struct AdoptCommand {
    std::string device;
    std::string path;
    std::optional<Bytes> unit;  // default: the file's, else the volume's
};
Result<int> run(const Context& context, const AdoptCommand& command);

struct ReleaseCommand {
    std::string device;
    std::string path;
};
Result<int> run(const Context& context, const ReleaseCommand& command);

struct StatusCommand {
    std::string device;  // empty: through a daemon
    std::string path;
    // Of the daemon; empty: at the default place of the volume that path lies on.
    // NOLINTNEXTLINE(readability-redundant-member-init): for -Wmissing-field-initializers
    std::string socket = {};
};
Result<int> run(const Context& context, const StatusCommand& command);

struct CheckCommand {
    std::string device;
    std::optional<std::string> path;  // the whole volume without it
};
Result<int> run(const Context& context, const CheckCommand& command);

struct MapCommand {
    std::string device;
    std::string path;
    std::optional<Bytes> unit;  // seen in such units, whatever the file's own
    std::string svg;            // a file for the picture, or empty
};
Result<int> run(const Context& context, const MapCommand& command);

struct FragCommand {
    std::string device;
    std::string svg;  // a file for the picture, or empty
};
Result<int> run(const Context& context, const FragCommand& command);

// A stock tool, on a view of the volume in which atomic files can't be touched.
struct GuardCommand {
    std::string device;
    bool read_only = false;
    std::vector<std::string> command;  // "{}" is the device
};
Result<int> run(const Context& context, const GuardCommand& command);

struct WriteCommand {
    std::string device;  // empty: through a daemon
    std::string path;
    ByteOffset offset;
    std::optional<Bytes> length;  // default: all of the input
    std::string from = "-";       // a file, or standard input
    bool plain = false;
    Engine engine = Engine::Auto;
    // Of the daemon; empty: at the default place of the volume that path lies on.
    // NOLINTNEXTLINE(readability-redundant-member-init): for -Wmissing-field-initializers
    std::string socket = {};
};
Result<int> run(const Context& context, const WriteCommand& command);

struct ReadCommand {
    std::string device;  // empty: through a daemon
    std::string path;
    ByteOffset offset;
    Bytes length;
    // Of the daemon; empty: at the default place of the volume that path lies on.
    // NOLINTNEXTLINE(readability-redundant-member-init): for -Wmissing-field-initializers
    std::string socket = {};
};
Result<int> run(const Context& context, const ReadCommand& command);

// A daemon, by its socket or by a path on the mounted volume that it serves.
struct StatsCommand {
    std::string socket;
    std::string path;
    bool prometheus = false;
};
Result<int> run(const Context& context, const StatsCommand& command);

struct PingCommand {
    std::string socket;
    std::string path;
    uint32_t count = 10;
    double interval = 0.1;  // seconds; 0: the next as soon as one is answered
};
Result<int> run(const Context& context, const PingCommand& command);

struct FreezeCommand {
    std::string socket;
    std::string path;
    bool freeze = true;  // false: thaw
};
Result<int> run(const Context& context, const FreezeCommand& command);

// An error that is about the volume, and in whose message neither it nor the path is named, with
// its name in front.
template <class Command>
Result<int> naming_volume(const Command& command, Result<int> result) {
    if (result || command.device.empty()) return result;
    const Error& error = result.error();
    const auto names = [&](const std::string& text) {
        return !text.empty() && error.message.find(text) != error.message.npos;
    };
    if (error.code != EUCLEAN && error.code != EIO && error.code != ESTALE &&
        error.code != EOPNOTSUPP)
        return result;
    if (names(command.device)) return result;
    if constexpr (requires { names(command.path); }) {
        if (names(command.path)) return result;
    } else if constexpr (requires { names(*command.path); }) {
        if (command.path && names(*command.path)) return result;
    }
    return std::move(result).context(command.device);
}

}  // namespace atomic4::tools
