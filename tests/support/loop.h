// Loop devices and mounts that go away with the object, whatever becomes of the test.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/unique_fd.h"

namespace atomic4::test {

// An image attached by losetup(8). Detaches on destruction; and should the program die, the
// kernel does it: the device is set to detach at its last close, and a descriptor is held here.
class LoopDevice {
  public:
    // options: more for losetup, such as "--direct-io=on", "--offset=1048576", "--partscan".
    // Throws std::runtime_error with losetup's words.
    explicit LoopDevice(const std::string& image, const std::vector<std::string>& options = {});
    ~LoopDevice();
    LoopDevice(const LoopDevice&) = delete;
    LoopDevice& operator=(const LoopDevice&) = delete;

    const std::string& path() const { return path_; }  // "/dev/loop3"
    // Can loop devices be made here? If not, why.
    static std::optional<std::string> why_not();

  private:
    std::string path_;
    UniqueFd keep_;
};

// A mounted file system. The mount point must exist; it is unmounted on destruction, lazily if
// something still sits in it.
class Mount {
  public:
    // options: for mount(8), such as {"-t", "ext4", "-o", "ro"}. Throws with mount's words.
    Mount(const std::string& source, const std::string& directory,
          const std::vector<std::string>& options = {});
    ~Mount();
    Mount(const Mount&) = delete;
    Mount& operator=(const Mount&) = delete;

    const std::string& directory() const { return directory_; }
    void unmount();                    // now; throws with umount's words
    void gone() { mounted_ = false; }  // somebody else has unmounted it

  private:
    std::string directory_;
    bool mounted_ = true;
};

// A sparse file of zeros.
void make_image(const std::string& path, uint64_t size);

}  // namespace atomic4::test
