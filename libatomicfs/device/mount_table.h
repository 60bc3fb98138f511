// What is mounted, by /proc/self/mountinfo: this mount namespace only.
#pragma once

#include <string>
#include <vector>

namespace atomic4 {

struct MountEntry {
    unsigned major_number = 0;  // of the mounted device; 0 for file systems without one
    unsigned minor_number = 0;
    std::string root;         // the part of the file system that is mounted: "/"
    std::string mount_point;  // as path, escapes undone
    std::string type;         // "ext4"
    std::string source;       // "/dev/sda1", as told to mount(2)
    bool read_only = false;   // the file system, not only this mount of it
};

// In the order of mounting. Lines that can't be read are left out; no file, no entries.
std::vector<MountEntry> read_mount_table(const std::string& path = "/proc/self/mountinfo");

}  // namespace atomic4
