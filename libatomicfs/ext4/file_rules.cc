#include "ext4/file_rules.h"

#include <ext2fs/ext2fs.h>

namespace atomic4 {

Result<> check_file_rules(const FileFacts& file) {
    const std::string what = fmt::format("inode {}", file.inode);
    if (LINUX_S_ISDIR(file.mode)) return fail(EISDIR, "{}: is a directory", what);
    if (!LINUX_S_ISREG(file.mode)) return fail(EINVAL, "{}: not a regular file", what);
    if (file.is_log) return fail(EPERM, "{}: this is the redo log", what);
    if (file.is_lock) return fail(EPERM, "{}: this is the volume's lock file", what);
    if ((file.flags & EXT2_APPEND_FL) != 0) return fail(EPERM, "{}: is append-only", what);
    if ((file.flags & EXT2_IMMUTABLE_FL) != 0) return fail(EPERM, "{}: is immutable", what);
    struct Unsupported {
        uint32_t flag;
        const char* name;
    };
    for (const auto& [flag, name] :
         {Unsupported{EXT4_ENCRYPT_FL, "encrypted"}, Unsupported{EXT4_VERITY_FL, "a verity file"},
          Unsupported{EXT2_COMPR_FL, "compressed"}}) {
        if ((file.flags & flag) != 0)
            return fail(EOPNOTSUPP, "{}: is {}: no atomic writes", what, name);
    }
    if ((file.flags & EXT4_INLINE_DATA_FL) != 0) {
        return fail(EOPNOTSUPP,
                    "{}: its data lies in the inode itself (inline_data): no atomic writes before "
                    "it has blocks",
                    what);
    }
    if ((file.flags & EXT3_JOURNAL_DATA_FL) != 0) {
        return fail(EIO,
                    "{}: is in data=journal mode (chattr +j): its data is written twice by ext4",
                    what);
    }
    if (file.volume_journals_data) {
        return fail(EIO,
                    "{}: the volume mounts in data=journal mode by default: tune2fs -o "
                    "^journal_data first",
                    what);
    }
    if (file.generation == 0) {
        return fail(EOPNOTSUPP,
                    "{}: has generation 0, so the log could not tell it from a later file: "
                    "atomic4ctl adopt gives it one",
                    what);
    }
    return {};
}

}  // namespace atomic4
