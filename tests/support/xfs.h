// An XFS that goes away with the object: a file on it can be written with RWF_ATOMIC, which XFS
// does in software where the device can't.
#pragma once

#include <filesystem>
#include <optional>
#include <stdexcept>
#include <string>

#include "support/command.h"
#include "support/loop.h"

namespace atomic4::test {

class Xfs {
  public:
    // Throws with the words of the program that failed.
    Xfs() {
        make_image(temp_.file("xfs.img"), uint64_t{400} << 20);
        const CommandOutput made = run_command({"mkfs.xfs", "-q", temp_.file("xfs.img")});
        if (made.status != 0) throw std::runtime_error("mkfs.xfs: " + made.output);
        disk_.emplace(temp_.file("xfs.img"), std::vector<std::string>{"--direct-io=on"});
        std::filesystem::create_directory(temp_.file("mnt"));
        mount_.emplace(disk_->path(), temp_.file("mnt"));
    }
    std::string file(const std::string& name) const { return mount_->directory() + "/" + name; }

    static std::optional<std::string> why_not() {
        if (const auto why = LoopDevice::why_not()) return why;
        if (run_command({"mkfs.xfs", "-V"}).status != 0) return "mkfs.xfs is not installed";
        return std::nullopt;
    }

  private:
    TempDir temp_;
    std::optional<LoopDevice> disk_;
    std::optional<Mount> mount_;
};

}  // namespace atomic4::test
