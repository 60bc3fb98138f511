// What mount(8) passes to its helpers: DEV DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE], and
// to those of umount(8): DIR [-flnrv] [-N NAMESPACE] [-t TYPE].
#pragma once

#include <string>
#include <vector>

#include "base/result.h"

namespace atomic4::tools {

// The value of -o.
struct MountOptions {
    bool read_only = false;
    bool remount = false;
    bool no_recovery = false;         // noload: ext4's journal isn't to be read
    bool start_daemon = true;         // no "noatomic4d"
    std::vector<std::string> passed;  // ext4's and the kernel's, without ro and rw

    // Commas in double quotes don't separate (SELinux contexts). EINVAL: data=journal, nobarrier:
    // atomic writes can't hold with them.
    static Result<MountOptions> parse(const std::string& text);
    // For mount(8): "rw,noatime,helper=atomic4".
    std::string to_text(const std::vector<std::string>& first) const;
};

struct MountRequest {
    std::string device;
    std::string directory;
    std::string mount_namespace;  // -N: a process id or a path
    MountOptions options;
    bool sloppy = false;
    bool fake = false;
    bool no_mtab = false;
    bool verbose = false;
};

struct UmountRequest {
    std::string target;
    std::string mount_namespace;
    bool force = false;
    bool lazy = false;
    bool no_mtab = false;
    bool read_only = false;  // -r: if it is busy, remount it read-only
    bool verbose = false;
};

// EINVAL with a sentence.
Result<MountRequest> parse_mount(const std::vector<std::string>& arguments);
Result<UmountRequest> parse_umount(const std::vector<std::string>& arguments);

// Goes there, if one was given.
Result<> enter_namespace(const std::string& mount_namespace);

}  // namespace atomic4::tools
