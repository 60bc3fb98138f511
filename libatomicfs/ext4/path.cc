#include "ext4/path.h"

#include <vector>

#include "ext4/errcode.h"
#include "ext4/inode_time.h"

namespace atomic4 {

namespace {

// Longer paths than PATH_MAX exist only on damaged volumes.
constexpr size_t kMaxPath = 4096;

struct DirectoryEntry {
    ext2_ino_t inode;
    std::string name;
    int type;  // EXT2_FT_UNKNOWN without the filetype feature
};

struct Listing {
    ext2_filsys fs;
    std::vector<DirectoryEntry> entries;
};

extern "C" {
static int atomic4_list_entry(ext2_ino_t, int entry, ext2_dir_entry* dirent, int, int, char*,
                              void* data) {
    if (entry != DIRENT_OTHER_FILE) return 0;
    auto* listing = static_cast<Listing*>(data);
    listing->entries.push_back(
        {dirent->inode,
         std::string(dirent->name, static_cast<size_t>(ext2fs_dirent_name_len(dirent))),
         ext2fs_has_feature_filetype(listing->fs->super) ? ext2fs_dirent_file_type(dirent)
                                                         : EXT2_FT_UNKNOWN});
    return 0;
}
}

Result<std::vector<DirectoryEntry>> list(Volume& volume, ext2_ino_t directory) {
    Listing listing{volume.fs(), {}};
    A4_CHECK(check_errcode(
        ext2fs_dir_iterate2(volume.fs(), directory, 0, nullptr, atomic4_list_entry, &listing),
        fmt::format("directory inode {}", directory)));
    return std::move(listing.entries);
}

Result<> touch_directory(Volume& volume, ext2_ino_t directory) {
    ext2_inode inode{};
    A4_CHECK(check_errcode(ext2fs_read_inode(volume.fs(), directory, &inode), "directory"));
    return write_inode_now(volume.fs(), directory, inode, kTimeChanged | kTimeModified,
                           "directory");
}

// libext2fs would look for the empty name between two slashes.
std::string single_slashes(const std::string& path) {
    std::string text;
    for (const char c : path) {
        if (c != '/' || !text.ends_with('/')) text += c;
    }
    return text;
}

}  // namespace

Result<ext2_ino_t> lookup(Volume& volume, const std::string& path) {
    ext2_ino_t number = 0;
    if (path.empty()) return fail(ENOENT, "the path is empty");
    const errcode_t code = ext2fs_namei_follow(volume.fs(), EXT2_ROOT_INO, EXT2_ROOT_INO,
                                               single_slashes(path).c_str(), &number);
    A4_CHECK(check_errcode(code, path));
    if (path.ends_with('/')) {
        ext2_inode inode{};
        A4_CHECK(check_errcode(ext2fs_read_inode(volume.fs(), number, &inode), path));
        if (!LINUX_S_ISDIR(inode.i_mode)) return fail(ENOTDIR, "{}: not a directory", path);
    }
    return number;
}

Result<NewName> lookup_new(Volume& volume, const std::string& path) {
    std::string trimmed = single_slashes(path);
    const bool directory = trimmed.size() > 1 && trimmed.ends_with('/');
    if (directory) trimmed.pop_back();
    const size_t slash = trimmed.rfind('/');
    const std::string parent = slash == trimmed.npos ? "/" : trimmed.substr(0, slash + 1);
    NewName where;
    where.name = slash == trimmed.npos ? trimmed : trimmed.substr(slash + 1);
    if (where.name.empty() || where.name == "." || where.name == "..")
        return fail(EINVAL, "{}: not a name for a file", path);
    if (directory)
        return fail(EISDIR, "{}: names a directory, because of the slash at its end", path);
    if (where.name.size() > EXT2_NAME_LEN)
        return fail(ENAMETOOLONG, "{}: a name has at most {} bytes", path, EXT2_NAME_LEN);
    where.directory = A4_TRY(lookup(volume, parent).context(path));
    ext2_inode inode{};
    A4_CHECK(check_errcode(ext2fs_read_inode(volume.fs(), where.directory, &inode), parent));
    if (!LINUX_S_ISDIR(inode.i_mode)) return fail(ENOTDIR, "{}: not a directory", parent);
    if ((inode.i_flags & EXT4_ENCRYPT_FL) != 0)
        return fail(EOPNOTSUPP, "{}: encrypted directories are not supported", parent);
    ext2_ino_t existing = 0;
    const errcode_t code = ext2fs_lookup(volume.fs(), where.directory, where.name.c_str(),
                                         static_cast<int>(where.name.size()), nullptr, &existing);
    if (code == 0) {
        A4_CHECK(check_errcode(ext2fs_read_inode(volume.fs(), existing, &inode), path));
        if (inode.i_links_count == 0) {
            return fail(EUCLEAN,
                        "{}: the name refers to inode {}, which is not in use: the volume needs "
                        "e2fsck",
                        path, existing);
        }
        return fail(EEXIST, "{}: exists already", path);
    }
    if (code != EXT2_ET_FILE_NOT_FOUND) return fail(error_from_errcode(code, path));
    return where;
}

Result<> link_name(Volume& volume, const NewName& where, ext2_ino_t inode, int file_type) {
    const auto link = [&] {
        return ext2fs_link(volume.fs(), where.directory, where.name.c_str(), inode, file_type);
    };
    errcode_t code = link();
    if (code == EXT2_ET_DIR_NO_SPACE) {
        A4_CHECK(check_errcode(ext2fs_expand_dir(volume.fs(), where.directory), where.name));
        code = link();
    }
    A4_CHECK(check_errcode(code, where.name));
    return touch_directory(volume, where.directory);
}

Result<> unlink_name(Volume& volume, const NewName& where, ext2_ino_t inode) {
    A4_CHECK(check_errcode(
        ext2fs_unlink(volume.fs(), where.directory, where.name.c_str(), inode, 0), where.name));
    return touch_directory(volume, where.directory);
}

Result<std::map<ext2_ino_t, std::string>> paths_of(Volume& volume, std::set<ext2_ino_t> inodes) {
    std::map<ext2_ino_t, std::string> paths;
    std::set<ext2_ino_t> seen;  // damaged trees have loops
    std::vector<std::pair<ext2_ino_t, std::string>> to_visit{{EXT2_ROOT_INO, ""}};
    while (!to_visit.empty() && !inodes.empty()) {
        const auto [directory, prefix] = std::move(to_visit.back());
        to_visit.pop_back();
        if (!seen.insert(directory).second || prefix.size() > kMaxPath) continue;
        const auto entries = list(volume, directory);
        if (!entries && entries.error().code == EUCLEAN) continue;
        A4_CHECK(entries);
        for (const DirectoryEntry& entry : *entries) {
            const std::string path = prefix + "/" + entry.name;
            if (inodes.erase(entry.inode) > 0) paths[entry.inode] = path;
            if (entry.inode == 0 || entry.inode > volume.fs()->super->s_inodes_count) continue;
            if (entry.type != EXT2_FT_DIR && entry.type != EXT2_FT_UNKNOWN) continue;
            ext2_inode inode{};
            const auto read =
                check_errcode(ext2fs_read_inode(volume.fs(), entry.inode, &inode), path);
            if (!read && read.error().code == EUCLEAN) continue;
            A4_CHECK(read);
            if (LINUX_S_ISDIR(inode.i_mode)) to_visit.emplace_back(entry.inode, path);
        }
    }
    return paths;
}

}  // namespace atomic4
