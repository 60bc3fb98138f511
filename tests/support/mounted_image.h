// An image in a loop device, and what mounts it: for tests of a mounted volume.
#pragma once

#include <fcntl.h>

#include <fstream>
#include <optional>
#include <stdexcept>
#include <string>

#include "support/command.h"
#include "support/image.h"
#include "support/loop.h"

namespace atomic4::test {

// Mounted by mount() and again by mount() after unmount(); everything goes with the object.
class MountedImage {
  public:
    explicit MountedImage(const Image& image) {
        store(image);
        if (run_command({"mkdir", dir()}).status != 0) throw std::runtime_error("mkdir");
        loop_.emplace(path());
    }
    std::string path() const { return temp_.file("image"); }
    std::string dir() const { return temp_.file("mnt"); }
    std::string device() const { return loop_->path(); }
    std::string file(const std::string& name) const { return dir() + "/" + name; }

    void mount(const std::string& options = "rw") {
        mount_.emplace(device(), dir(), std::vector<std::string>{"-t", "ext4", "-o", options});
    }
    void unmount() {
        mount_->unmount();
        mount_.reset();
    }
    // The bytes of the unmounted image, and others in their place.
    Image load() const {
        sync();
        std::ifstream file(path(), std::ios::binary | std::ios::ate);
        Image image(static_cast<size_t>(file.tellg()));
        file.seekg(0);
        file.read(reinterpret_cast<char*>(image.data()),
                  static_cast<std::streamsize>(image.size()));
        return image;
    }

  private:
    void store(const Image& image) const {
        std::ofstream(path(), std::ios::binary)
            .write(reinterpret_cast<const char*>(image.data()),
                   static_cast<std::streamsize>(image.size()));
    }
    void sync() const {
        const UniqueFd fd(::open(device().c_str(), O_RDONLY | O_CLOEXEC));
        if (::fsync(fd.get()) != 0) throw std::runtime_error("fsync " + device());
    }

    TempDir temp_;
    std::optional<LoopDevice> loop_;
    std::optional<Mount> mount_;
};

// Why none can be made here.
inline std::optional<std::string> why_no_mounts() {
    if (::geteuid() != 0) return "root is needed";
    return LoopDevice::why_not();
}

}  // namespace atomic4::test
