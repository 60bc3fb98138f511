#include "ext4/errcode.h"

#include <et/com_err.h>

namespace atomic4 {

namespace {

int errno_of(errcode_t code) {
    if (code > 0 && code < 256) return static_cast<int>(code);
    switch (code) {
        case EXT2_ET_BLOCK_ALLOC_FAIL:
        case EXT2_ET_INODE_ALLOC_FAIL:
        case EXT2_ET_DIR_NO_SPACE:
        case EXT2_ET_EA_NO_SPACE:
            return ENOSPC;
        case EXT2_ET_FILE_NOT_FOUND:
            return ENOENT;
        case EXT2_ET_NO_DIRECTORY:
            return ENOTDIR;
        case EXT2_ET_SYMLINK_LOOP:
            return ELOOP;
        case EXT2_ET_FILE_EXISTS:
        case EXT2_ET_DIR_EXISTS:
            return EEXIST;
        case EXT2_ET_FILE_TOO_BIG:
            return EFBIG;
        case EXT2_ET_NO_MEMORY:
            return ENOMEM;
        case EXT2_ET_RO_FILSYS:
            return EROFS;
        case EXT2_ET_EA_KEY_NOT_FOUND:
            return ENODATA;
        case EXT2_ET_UNSUPP_FEATURE:
        case EXT2_ET_RO_UNSUPP_FEATURE:
        case EXT2_ET_REV_TOO_HIGH:
        case EXT2_ET_UNKNOWN_CSUM:
            return EOPNOTSUPP;
        case EXT2_ET_BAD_MAGIC:
        case EXT2_ET_CORRUPT_SUPERBLOCK:
        case EXT2_ET_BAD_DESC_SIZE:
        case EXT2_ET_SB_CSUM_INVALID:
        case EXT2_ET_INODE_CSUM_INVALID:
        case EXT2_ET_EXTENT_CSUM_INVALID:
        case EXT2_ET_DIR_CSUM_INVALID:
        case EXT2_ET_EXT_ATTR_CSUM_INVALID:
        case EXT2_ET_INODE_BITMAP_CSUM_INVALID:
        case EXT2_ET_BLOCK_BITMAP_CSUM_INVALID:
        case EXT2_ET_INODE_IS_GARBAGE:
        case EXT2_ET_EXTENT_HEADER_BAD:
        case EXT2_ET_EXTENT_INDEX_BAD:
        case EXT2_ET_EXTENT_LEAF_BAD:
        case EXT2_ET_EXTENT_NO_DOWN:
        case EXT2_ET_EXTENT_NO_UP:
        case EXT2_ET_EXTENT_NO_NEXT:
        case EXT2_ET_EXTENT_NO_PREV:
        case EXT2_ET_EXTENT_NOT_FOUND:
        case EXT2_ET_NO_CURRENT_NODE:
        case EXT2_ET_DIR_CORRUPTED:
        case EXT2_ET_MISSING_INODE_TABLE:
        case EXT2_ET_GDESC_BAD_INODE_TABLE:
        case EXT2_ET_BAD_INODE_NUM:
        case EXT2_ET_BAD_EA_HASH:
        case EXT2_ET_BAD_EA_HEADER:
        case EXT2_ET_EA_BAD_NAME_LEN:
        case EXT2_ET_EA_BAD_VALUE_SIZE:
        case EXT2_ET_EA_BAD_VALUE_OFFSET:
        case EXT2_ET_BAD_BLOCK_NUM:
        case EXT2_ET_BAD_EA_BLOCK_NUM:
        case EXT2_ET_EXPAND_DIR_ERR:
        case EXT2_ET_EXTENT_INVALID_LENGTH:
        case EXT2_ET_EXTENT_CYCLE:
        case EXT2_ET_EXTENT_NOT_SUPPORTED:
        case EXT2_ET_INODE_CORRUPTED:
        case EXT2_ET_EA_INODE_CORRUPTED:
        case EXT2_ET_FILESYSTEM_CORRUPTED:
            return EUCLEAN;
        default:
            return EIO;
    }
}

}  // namespace

Error error_from_errcode(errcode_t code, std::string_view what) {
    const int number = errno_of(code);
    // libext2fs's words for these name its functions.
    if (code == EXT2_ET_FILE_NOT_FOUND || code == EXT2_ET_NO_DIRECTORY)
        return Error::from_errno(number, what);
    return Error{number, fmt::format("{}: {}{}", what, error_message(code),
                                     number == EUCLEAN ? ": the volume needs e2fsck" : "")};
}

Result<> check_errcode(errcode_t code, std::string_view what) {
    if (code == 0) return {};
    return fail(error_from_errcode(code, what));
}

}  // namespace atomic4
