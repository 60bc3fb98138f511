// A directory where a mount can be made that nobody else sees, and from where it can be moved: a
// tmpfs, closed to others than root, that propagates nothing to other mount namespaces.
#pragma once

#include <string>

#include "base/result.h"

namespace atomic4::tools {

class PrivatePlace {
  public:
    PrivatePlace() = default;
    // Unmounts what is there still.
    ~PrivatePlace();
    PrivatePlace(const PrivatePlace&) = delete;
    PrivatePlace& operator=(const PrivatePlace&) = delete;

    Result<> make();
    std::string volume() const { return directory_ + "/volume"; }
    // Something is mounted on volume(), or no longer.
    void set_mounted(bool mounted) { mounted_ = mounted; }

  private:
    std::string directory_;
    bool tmpfs_ = false;
    bool mounted_ = false;
};

}  // namespace atomic4::tools
