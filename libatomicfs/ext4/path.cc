#include "ext4/path.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "ext4/errcode.h"
#include "ext4/extent_map.h"
#include "ext4/inode_time.h"

namespace atomic4 {

namespace {

// Longer paths than PATH_MAX exist only on damaged volumes.
constexpr size_t kMaxPath = 4096;
// As many symbolic links are followed in one lookup: MAXSYMLINKS of the kernel.
constexpr int kMaxLinks = 40;

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

extern "C" {
static int atomic4_measure_dot(ext2_ino_t, int entry, ext2_dir_entry* dirent, int, int, char*,
                               void* length) {
    if (entry == DIRENT_DOT_FILE) *static_cast<unsigned*>(length) = dirent->rec_len;
    return DIRENT_ABORT;
}
}

Result<std::vector<DirectoryEntry>> list(Volume& volume, ext2_ino_t directory) {
    A4_CHECK(check_directory(volume.fs(), directory));
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

// With bigalloc a new block of a directory may lie in a cluster that it had already. It is new all
// the same: to be written before the inode that points at it (transaction.h).
Result<> note_growth(Volume& volume, ext2_ino_t directory, const ext2_inode& before) {
    if (volume.allocator().cluster_order() == 0) return {};
    ext2_inode now{};
    A4_CHECK(check_errcode(ext2fs_read_inode(volume.fs(), directory, &now), "directory"));
    const uint64_t block = volume.block_size().value();
    const Lblk first(EXT2_I_SIZE(&before) / block);
    const Lblk end(EXT2_I_SIZE(&now) / block);
    if (end <= first) return {};
    for (const Mapping& mapping : A4_TRY(map_range(volume, directory, now, first, end - first))) {
        for (uint64_t i = 0; mapping.state != MapState::Hole && i < mapping.length.value(); ++i)
            volume.block_bitmaps().note_newly_mapped(mapping.pblk.value() + i);
    }
    return {};
}

// 0: there is none. A casefolded directory has one name for all that fold to the same, and
// libext2fs's look-up knows only the one that is stored.
Result<ext2_ino_t> find_name(Volume& volume, ext2_ino_t directory, const std::string& name,
                             const std::string& path) {
    ext2_filsys fs = volume.fs();
    ext2_ino_t found = 0;
    const errcode_t code =
        ext2fs_lookup(fs, directory, name.c_str(), static_cast<int>(name.size()), nullptr, &found);
    if (code == 0) return found;
    if (code != EXT2_ET_FILE_NOT_FOUND) return fail(error_from_errcode(code, path));
    ext2_inode inode{};
    A4_CHECK(check_errcode(ext2fs_read_inode(fs, directory, &inode), path));
    if ((inode.i_flags & EXT4_CASEFOLD_FL) == 0) return ext2_ino_t{0};
    if (fs->encoding == nullptr) {
        return fail(EOPNOTSUPP,
                    "{}: inode {} is a casefolded directory, in an encoding ({}) that "
                    "libext2fs does not know: give the name exactly as it is stored",
                    path, directory, fs->super->s_encoding);
    }
    const auto bytes_of = [](const std::string& text) {
        return reinterpret_cast<const unsigned char*>(text.data());
    };
    for (const DirectoryEntry& entry : A4_TRY(list(volume, directory))) {
        // What isn't valid in the encoding is the same only byte by byte.
        if (ext2fs_casefold_cmp(fs->encoding, bytes_of(entry.name), entry.name.size(),
                                bytes_of(name), name.size()) == 0)
            return entry.inode;
    }
    return ext2_ino_t{0};
}

// A name's place in a casefolded directory's hash tree, and whether it may stand there at all, are
// the kernel's to say.
Result<> check_may_link(Volume& volume, ext2_ino_t directory, const std::string& path) {
    ext2_inode inode{};
    A4_CHECK(check_errcode(ext2fs_read_inode(volume.fs(), directory, &inode), path));
    if ((inode.i_flags & EXT4_CASEFOLD_FL) == 0) return {};
    return fail(EOPNOTSUPP,
                "{}: in a casefolded directory only the kernel makes new names: create the file "
                "elsewhere, or under a mount",
                path);
}

// libext2fs would look for the empty name between two slashes.
std::string single_slashes(const std::string& path) {
    std::string text;
    for (const char c : path) {
        if (c != '/' || !text.ends_with('/')) text += c;
    }
    return text;
}

// One lookup: what is left of the path, names of symbolic links replaced by their targets as they
// are met.
class PathWalk {
  public:
    PathWalk(Volume& volume, const std::string& path, const SearchVisitor& search)
        : volume_(volume), path_(path), search_(search) {}

    Result<ext2_ino_t> run() {
        std::string left = path_;
        while (!left.empty()) {
            if (left.front() == '/') {
                // At the beginning, or what a slash follows.
                if (at_beginning_) current_ = EXT2_ROOT_INO;
                A4_CHECK(require_directory());
                at_beginning_ = false;
                left.erase(0, std::min(left.find_first_not_of('/'), left.size()));
                continue;
            }
            at_beginning_ = false;
            const std::string name = left.substr(0, left.find('/'));
            left.erase(0, name.size());
            A4_CHECK(step(name, left));
        }
        return current_;
    }

  private:
    Result<> require_directory() {
        ext2_inode inode{};
        A4_CHECK(check_errcode(ext2fs_read_inode(volume_.fs(), current_, &inode), path_));
        if (!LINUX_S_ISDIR(inode.i_mode)) return fail(ENOTDIR, "{}: not a directory", path_);
        return {};
    }

    Result<> step(const std::string& name, std::string& left) {
        A4_CHECK(search_(current_).context(path_));
        A4_CHECK(check_directory(volume_.fs(), current_).context(path_));
        const ext2_ino_t found = A4_TRY(find_name(volume_, current_, name, path_));
        if (found == 0) return fail(Error::from_errno(ENOENT, path_));
        ext2_inode inode{};
        A4_CHECK(check_errcode(ext2fs_read_inode(volume_.fs(), found, &inode), path_));
        if (!LINUX_S_ISLNK(inode.i_mode)) {
            current_ = found;
            return {};
        }
        if (++links_ > kMaxLinks) return fail(ELOOP, "{}: too many symbolic links", path_);
        const std::string target = A4_TRY(link_target(found, inode).context(path_));
        if (target.empty())
            return fail(ENOENT, "{}: symbolic link inode {} is empty", path_, found);
        left.insert(0, target);
        at_beginning_ = true;
        return {};
    }

    Result<std::string> link_target(ext2_ino_t link, const ext2_inode& inode) {
        if ((inode.i_flags & EXT4_ENCRYPT_FL) != 0) {
            return fail(EOPNOTSUPP, "symbolic link inode {}: encrypted ones are not supported",
                        link);
        }
        const std::string what = fmt::format("symbolic link inode {}", link);
        const uint64_t size = EXT2_I_SIZE(&inode);
        if (size >= kMaxPath) {
            return fail(EUCLEAN, "{}: its {} bytes are too many for one: the volume needs e2fsck",
                        what, size);
        }
        std::string target(size, '\0');
        ext2_inode copy = inode;
        if (ext2fs_is_fast_symlink(&copy) != 0) {
            std::memcpy(target.data(), inode.i_block, target.size());
        } else {
            ext2_file_t file = nullptr;
            A4_CHECK(check_errcode(ext2fs_file_open2(volume_.fs(), link, &copy, 0, &file), what));
            unsigned got = 0;
            const errcode_t code =
                ext2fs_file_read(file, target.data(), static_cast<unsigned>(target.size()), &got);
            (void)ext2fs_file_close(file);
            A4_CHECK(check_errcode(code, what));
            target.resize(got);
        }
        // The kernel's ends at a zero byte too.
        return target.substr(0, target.find('\0'));
    }

    Volume& volume_;
    const std::string& path_;
    const SearchVisitor& search_;
    ext2_ino_t current_ = EXT2_ROOT_INO;
    bool at_beginning_ = true;
    int links_ = 0;
};

}  // namespace

Result<> check_directory(ext2_filsys fs, ext2_ino_t directory) {
    ext2_inode inode{};
    const std::string what = fmt::format("directory inode {}", directory);
    A4_CHECK(check_errcode(ext2fs_read_inode(fs, directory, &inode), what));
    if (!LINUX_S_ISDIR(inode.i_mode) || (inode.i_flags & EXT4_EXTENTS_FL) == 0) return {};
    ext2_extent_handle_t handle = nullptr;
    A4_CHECK(check_errcode(ext2fs_extent_open2(fs, directory, &inode, &handle), what));
    ext2fs_extent_free(handle);
    return {};
}

Result<ext2_ino_t> lookup(Volume& volume, const std::string& path) {
    return lookup(volume, path, [](ext2_ino_t) -> Result<> { return {}; });
}

Result<ext2_ino_t> lookup(Volume& volume, const std::string& path, const SearchVisitor& search) {
    if (path.empty()) return fail(ENOENT, "the path is empty");
    return PathWalk(volume, path, search).run();
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
    A4_CHECK(check_entries(volume, where.directory).context(path));
    const ext2_ino_t existing = A4_TRY(find_name(volume, where.directory, where.name, path));
    if (existing != 0) {
        A4_CHECK(check_errcode(ext2fs_read_inode(volume.fs(), existing, &inode), path));
        if (inode.i_links_count == 0) {
            return fail(EUCLEAN,
                        "{}: the name refers to inode {}, which is not in use: the volume needs "
                        "e2fsck",
                        path, existing);
        }
        return fail(EEXIST, "{}: exists already", path);
    }
    A4_CHECK(check_may_link(volume, where.directory, path));
    return where;
}

// libext2fs's iteration proves the entries' lengths; what it leaves is names of no length, which
// e2fsck takes a block with apart for, and room behind ".", where a name would come before "..".
Result<> check_entries(Volume& volume, ext2_ino_t directory) {
    constexpr unsigned kDotLength = 12;
    const auto damaged = [&] {
        return fail(EUCLEAN, "directory inode {}: an entry is damaged: the volume needs e2fsck",
                    directory);
    };
    for (const DirectoryEntry& entry : A4_TRY(list(volume, directory))) {
        if (entry.name.empty() || entry.inode > volume.fs()->super->s_inodes_count)
            return damaged();
    }
    unsigned dot = kDotLength;
    A4_CHECK(check_errcode(
        ext2fs_dir_iterate2(volume.fs(), directory, 0, nullptr, atomic4_measure_dot, &dot),
        fmt::format("directory inode {}", directory)));
    if (dot != kDotLength) return damaged();
    return {};
}

Result<> link_name(Volume& volume, const NewName& where, ext2_ino_t inode, int file_type) {
    A4_CHECK(check_may_link(volume, where.directory, where.name));
    ext2_inode before{};
    A4_CHECK(check_errcode(ext2fs_read_inode(volume.fs(), where.directory, &before), where.name));
    const auto link = [&] {
        return ext2fs_link(volume.fs(), where.directory, where.name.c_str(), inode, file_type);
    };
    errcode_t code = link();
    if (code == EXT2_ET_DIR_NO_SPACE) {
        A4_CHECK(check_errcode(ext2fs_expand_dir(volume.fs(), where.directory), where.name));
        code = link();
    }
    A4_CHECK(check_errcode(code, where.name));
    A4_CHECK(note_growth(volume, where.directory, before));
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
