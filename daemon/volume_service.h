// The volume that a daemon serves: found, recovered, opened; and who may open its files.
//
// TARGET is a mount point or a mounted device (mounted_target.h), or an unmounted device or image
// (owned_target.h). In both cases the redo log is replayed before anything is served.
// Threads: the event loop's.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "client/wire_format.h"
#include "daemon/authority.h"
#include "writer/openers.h"
#include "writer/target.h"

namespace atomic4 {

struct ServiceOptions {
    std::string target;
    // Mounted: who else opens files; null: every file is strict, and why.
    std::unique_ptr<Openers> openers;
    std::string why_no_openers;
    // Who opens files was held all the time since the log's last session.
    bool guard_unbroken = false;
};

// What a client wants to open: a descriptor (mounted) or a path (owned).
struct OpenWish {
    UniqueFd descriptor;
    std::string path;
    bool read = false;
    bool write = false;
    bool cooperative = false;
};

class VolumeService {
  public:
    // What recovery found and did, and other things that the log should say: one line each.
    using Report = std::function<void(const std::string&)>;

    static Result<std::unique_ptr<VolumeService>> open(EventLoop& loop, ServiceOptions options,
                                                       const Report& report);
    virtual ~VolumeService() = default;

    virtual Target& target() = 0;
    virtual wire::TargetKind kind() const = 0;
    virtual const std::array<uint8_t, 16>& uuid() const = 0;
    virtual void open_file(const Peer& peer, OpenWish wish,
                           std::function<void(Result<FileRef>)> done) = 0;
};

// The volume's UUID, before it is opened: for the socket's default name. TARGET as above.
Result<std::array<uint8_t, 16>> uuid_of_target(const std::string& target);
// For when a daemon is gone and nobody holds openers any more: its live records may be older than
// what somebody writes from now on.
Result<> note_unguarded(const std::string& mounted_target);
// A mount point or mounted device.
bool is_mounted_target(const std::string& target);

}  // namespace atomic4
