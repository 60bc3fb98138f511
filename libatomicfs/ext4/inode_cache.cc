#include "ext4/inode_cache.h"

namespace atomic4 {

namespace {

extern "C" errcode_t atomic4_read_inode(ext2_filsys fs, ext2_ino_t number, ext2_inode* inode) {
    fs->read_inode = nullptr;
    const errcode_t code = ext2fs_read_inode(fs, number, inode);
    fs->read_inode = atomic4_read_inode;
    // Where checksums are ignored a wrong one is no error.
    if ((fs->flags & EXT2_FLAG_IGNORE_CSUM_ERRORS) != 0) (void)ext2fs_flush_icache(fs);
    return mended(fs, code);
}

}  // namespace

void mend_inode_cache(ext2_filsys fs) {
    fs->read_inode = atomic4_read_inode;
}

errcode_t mended(ext2_filsys fs, errcode_t code) {
    if (code != 0) (void)ext2fs_flush_icache(fs);
    return code;
}

}  // namespace atomic4
