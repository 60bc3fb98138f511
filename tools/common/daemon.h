// How commands reach a daemon, and a file through it.
#pragma once

#include <memory>
#include <string>

#include "client/client.h"
#include "writer/write_rules.h"

namespace atomic4::tools {

// Which daemon: the one at socket, or, if that is empty, the one that listens at the default place
// for the mounted volume that path lies on.
struct DaemonChoice {
    std::string socket;
    std::string path;
};

struct DaemonConnection {
    std::unique_ptr<Client> client;
    std::string socket;  // where it was found
};
Result<DaemonConnection> connect_daemon(const DaemonChoice& choice,
                                        const ClientOptions& options = {});

// Opens a file there: a path in the caller's file system if the daemon's volume is mounted, else
// one inside the volume. No descriptor of ours stays open, so that the file can be exclusive; and
// we say that we write through the daemon only. flags: wire::kOpen*.
Result<File> open_at_daemon(Client& client, const std::string& path, uint32_t flags,
                            Engine engine = Engine::Auto);

const char* to_text(wire::TargetKind target);  // "mounted", "owned"
const char* to_text(wire::WireEngine engine);  // "native", "logged", "auto"
const char* to_text(wire::AckMode ack);        // "exclusive", "strict", "none"

}  // namespace atomic4::tools
