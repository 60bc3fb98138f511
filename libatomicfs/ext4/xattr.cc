#include "ext4/xattr.h"

#include <memory>

#include "ext4/errcode.h"
#include "ext4/inode_cache.h"

namespace atomic4 {

namespace {

// RAII: closing writes whatever is dirty, so errors are asked for explicitly (close()).
class Xattrs {
  public:
    static Result<std::unique_ptr<Xattrs>> open(ext2_filsys fs, ext2_ino_t inode) {
        std::unique_ptr<Xattrs> xattrs(new Xattrs);
        A4_CHECK(check_errcode(ext2fs_xattrs_open(fs, inode, &xattrs->handle_), "xattrs"));
        A4_CHECK(check_errcode(mended(fs, ext2fs_xattrs_read(xattrs->handle_)),
                               fmt::format("xattrs of inode {}", inode)));
        return xattrs;
    }
    ~Xattrs() {
        if (handle_ != nullptr) (void)ext2fs_xattrs_close(&handle_);
    }
    ext2_xattr_handle* get() const { return handle_; }
    Result<> close() { return check_errcode(ext2fs_xattrs_close(&handle_), "xattrs"); }

  private:
    Xattrs() = default;
    ext2_xattr_handle* handle_ = nullptr;
};

}  // namespace

Result<std::optional<std::string>> read_xattr(ext2_filsys fs, ext2_ino_t inode, const char* name) {
    const auto xattrs = A4_TRY(Xattrs::open(fs, inode));
    void* value = nullptr;
    size_t length = 0;
    const errcode_t code = ext2fs_xattr_get(xattrs->get(), name, &value, &length);
    if (code == EXT2_ET_EA_KEY_NOT_FOUND) return std::optional<std::string>{};
    A4_CHECK(check_errcode(code, fmt::format("xattr {} of inode {}", name, inode)));
    std::string text(static_cast<const char*>(value), length);
    ext2fs_free_mem(&value);
    return std::optional(std::move(text));
}

Result<> write_xattr(ext2_filsys fs, ext2_ino_t inode, const char* name,
                     const std::optional<std::string>& value) {
    const auto xattrs = A4_TRY(Xattrs::open(fs, inode));
    const errcode_t code = value
                               ? ext2fs_xattr_set(xattrs->get(), name, value->data(), value->size())
                               : ext2fs_xattr_remove(xattrs->get(), name);
    A4_CHECK(check_errcode(code, fmt::format("xattr {} of inode {}", name, inode)));
    return xattrs->close();
}

}  // namespace atomic4
