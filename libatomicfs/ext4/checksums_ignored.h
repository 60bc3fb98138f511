// ChecksumsIgnored: while it lives libext2fs takes what it reads for right, whatever its checksum
// says. For what is proved otherwise, or only looked at.
#pragma once

#include <ext2fs/ext2fs.h>

namespace atomic4 {

class ChecksumsIgnored {
  public:
    explicit ChecksumsIgnored(ext2_filsys fs)
        : fs_(fs), before_(fs->flags & EXT2_FLAG_IGNORE_CSUM_ERRORS) {
        fs_->flags |= EXT2_FLAG_IGNORE_CSUM_ERRORS;
    }
    ~ChecksumsIgnored() { fs_->flags = (fs_->flags & ~EXT2_FLAG_IGNORE_CSUM_ERRORS) | before_; }
    ChecksumsIgnored(const ChecksumsIgnored&) = delete;
    ChecksumsIgnored& operator=(const ChecksumsIgnored&) = delete;

  private:
    ext2_filsys fs_;
    int before_;
};

}  // namespace atomic4
