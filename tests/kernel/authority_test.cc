// Who may do what, compared with what the kernel lets the same user open.
#include "daemon/authority.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <grp.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>

#include <array>
#include <filesystem>
#include <fstream>

#include "ext4/path.h"
#include "support/acl.h"
#include "support/command.h"
#include "support/image.h"
#include "support/loop.h"
#include "support/privileged.h"
#include "support/results.h"

namespace atomic4::test {
namespace {

namespace fs = std::filesystem;

constexpr std::array kModes = {O_RDONLY, O_WRONLY, O_RDWR};
constexpr std::array kModeNames = {"read", "write", "read and write"};

bool reads(int mode) {
    return mode != O_WRONLY;
}
bool writes(int mode) {
    return mode != O_RDONLY;
}

UniqueFd open_as_root(const std::string& path, int flags) {
    UniqueFd fd(::open(path.c_str(), flags | O_CLOEXEC));
    EXPECT_TRUE(fd) << path << ": " << std::strerror(errno);
    return fd;
}

Peer peer(uid_t uid, gid_t gid, std::vector<gid_t> groups = {}) {
    return {0, uid, gid, std::move(groups)};
}

// An ext4 on a loop device, mounted.
class Authority : public testing::Test {
  protected:
    void SetUp() override {
        A4_REQUIRE_ROOT();
        if (const auto why = LoopDevice::why_not()) A4_SKIP(*why);
        image_ = dir_.file("image");
        root_ = dir_.file("mnt");
        make_image(image_, uint64_t{32} << 20);
        const CommandOutput mkfs =
            run_command({"mke2fs", "-q", "-t", "ext4", "-N", "16384", image_});
        ASSERT_EQ(mkfs.status, 0) << mkfs.output;
        fs::create_directory(root_);
        loop_.emplace(image_);
        mount_.emplace(loop_->path(), root_);
        fs::permissions(root_, fs::perms(0755));
        struct stat status{};
        ASSERT_EQ(::stat(root_.c_str(), &status), 0);
        filesystem_ = status.st_dev;
    }
    std::string path(const std::string& name) const { return root_ + "/" + name; }

    void make_file(const std::string& name, uid_t uid, gid_t gid, mode_t mode,
                   const std::string& acl = "") {
        const UniqueFd fd(::open(path(name).c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
        ASSERT_TRUE(fd) << name << ": " << std::strerror(errno);
        set(fd.get(), name, uid, gid, mode, acl);
    }
    void make_directory(const std::string& name, uid_t uid, gid_t gid, mode_t mode,
                        const std::string& acl = "") {
        ASSERT_EQ(::mkdir(path(name).c_str(), 0700), 0) << name << ": " << std::strerror(errno);
        set(open_as_root(path(name), O_RDONLY).get(), name, uid, gid, mode, acl);
    }
    static void set(int fd, const std::string& name, uid_t uid, gid_t gid, mode_t mode,
                    const std::string& acl) {
        ASSERT_EQ(::fchown(fd, uid, gid), 0) << name;
        ASSERT_EQ(::fchmod(fd, mode), 0) << name;
        if (acl.empty()) return;
        ASSERT_EQ(::fsetxattr(fd, "system.posix_acl_access", acl.data(), acl.size(), 0), 0)
            << name << ": " << std::strerror(errno);
        struct stat status{};
        ASSERT_EQ(::fstat(fd, &status), 0);
        ASSERT_EQ(status.st_mode & 07777, mode) << name;
    }

    struct Opened {
        Peer peer;                                          // from the socket that it connected to
        std::vector<std::array<int, kModes.size()>> codes;  // 0 or errno: one a path and mode
    };
    // A child process becomes this user, with the volume as its root directory, connects to a
    // socket and opens each path each way.
    Opened open_all_as(const Peer& identity, const std::vector<std::string>& paths) {
        Opened opened;
        const size_t size = paths.size() * sizeof(opened.codes[0]);
        void* shared =
            ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        EXPECT_NE(shared, MAP_FAILED);
        auto* codes = static_cast<std::array<int, kModes.size()>*>(shared);
        const UniqueFd listener(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
        sockaddr_un address{AF_UNIX, {}};
        const std::string socket = path("socket");
        socket.copy(address.sun_path, sizeof address.sun_path - 1);
        EXPECT_EQ(::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
        EXPECT_EQ(::listen(listener.get(), 1), 0);
        EXPECT_EQ(::chmod(socket.c_str(), 0777), 0);

        const pid_t child = ::fork();
        if (child == 0) {
            sockaddr_un inside{AF_UNIX, "/socket"};
            const UniqueFd connection(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
            if (::chroot(root_.c_str()) != 0 || ::chdir("/") != 0 ||
                ::setgroups(identity.groups.size(), identity.groups.data()) != 0 ||
                ::setresgid(identity.gid, identity.gid, identity.gid) != 0 ||
                ::setresuid(identity.uid, identity.uid, identity.uid) != 0 ||
                ::connect(connection.get(), reinterpret_cast<sockaddr*>(&inside), sizeof inside) !=
                    0)
                ::_exit(1);
            for (size_t i = 0; i < paths.size(); ++i) {
                for (size_t mode = 0; mode < kModes.size(); ++mode) {
                    const UniqueFd fd(::open(paths[i].c_str(), kModes[mode] | O_CLOEXEC));
                    codes[i][mode] = fd ? 0 : errno;
                }
            }
            ::_exit(0);
        }
        int status = -1;
        EXPECT_EQ(::waitpid(child, &status, 0), child);
        EXPECT_EQ(status, 0);
        opened.codes.assign(codes, codes + paths.size());
        ::munmap(shared, size);

        const UniqueFd connection(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
        const auto credentials = peer_of(connection.get());
        EXPECT_TRUE(credentials) << credentials.error().message;
        if (credentials) opened.peer = *credentials;
        EXPECT_EQ(opened.peer.pid, child);
        EXPECT_EQ(opened.peer.uid, identity.uid);
        EXPECT_EQ(opened.peer.gid, identity.gid);
        EXPECT_THAT(opened.peer.groups, testing::UnorderedElementsAreArray(identity.groups));
        fs::remove(socket);
        return opened;
    }

    // As an owned volume, by its image.
    std::unique_ptr<Volume> unmounted() {
        mount_->unmount();
        mount_.reset();
        loop_.reset();
        std::ifstream file(image_, std::ios::binary);
        bytes_.resize(fs::file_size(image_));
        file.read(reinterpret_cast<char*>(bytes_.data()),
                  static_cast<std::streamsize>(bytes_.size()));
        device_.emplace(bytes_);
        VolumeOptions options;
        options.require_atomic4 = false;
        auto volume = Volume::open(borrowed(*device_), options);
        EXPECT_TRUE(volume) << volume.error().message;
        return volume ? std::move(*volume) : nullptr;
    }
    // What the kernel said, and what is said of an owned volume, path by path.
    static void compare(Volume& volume, const Opened& kernel,
                        const std::vector<std::string>& paths) {
        int differences = 0;
        for (size_t i = 0; i < paths.size() && differences < 10; ++i) {
            for (size_t mode = 0; mode < kModes.size(); ++mode) {
                const auto ours = authorize_path(volume, kernel.peer, paths[i], reads(kModes[mode]),
                                                 writes(kModes[mode]));
                if (code_of(ours) == kernel.codes[i][mode]) continue;
                ++differences;
                ADD_FAILURE() << to_text(kernel.peer) << ", " << kModeNames[mode] << " " << paths[i]
                              << ": the kernel says " << kernel.codes[i][mode] << ", we say "
                              << code_of(ours) << " " << (ours ? "" : ours.error().message);
            }
        }
    }

    TempDir dir_;
    std::string image_;
    std::string root_;
    std::optional<LoopDevice> loop_;
    std::optional<Mount> mount_;
    dev_t filesystem_ = 0;
    Image bytes_;
    std::optional<ImageDevice> device_;
};

constexpr uid_t kUser = 12345;
constexpr gid_t kGroup = 12346;
constexpr gid_t kOther = 54321;

std::vector<Peer> identities() {
    std::vector<gid_t> many{kGroup + 2};
    for (gid_t group = 20000; group < 20050; ++group) many.push_back(group);
    return {peer(kUser, kGroup, {kGroup + 1, kGroup + 2}), peer(kUser + 1, kGroup, many),
            peer(kUser + 2, kOther + 1, {kGroup}), peer(kUser + 3, kOther + 1), peer(0, 0)};
}

// ACLs in which the identities find themselves, or don't.
struct AclShape {
    unsigned owning_group;
    std::vector<AclEntry> named;
};
const std::vector<AclShape>& acl_shapes() {
    static const std::vector<AclShape> shapes = {
        {7, {}},
        {0, {}},
        {0, {AclEntry::user(kUser, 7)}},
        {7, {AclEntry::user(kUser, 4)}},
        {6, {AclEntry::user(kUser, 0), AclEntry::user(kUser + 2, 2)}},
        {0, {AclEntry::group(kGroup + 1, 4), AclEntry::group(kGroup + 2, 2)}},
        {4, {AclEntry::group(kGroup, 2)}},
        {0, {AclEntry::user(kUser + 1, 5), AclEntry::group(kGroup, 6)}},
        {1, {AclEntry::user(kOther, 6), AclEntry::group(kOther, 6)}},
    };
    return shapes;
}

TEST_F(Authority, DescriptorsAndPathsAsTheKernelJudges) {
    std::vector<std::string> paths;
    int number = 0;
    for (const uid_t uid : {kUser, kUser + 7, uid_t{0}}) {
        for (const gid_t gid : {kGroup, kGroup + 1, kOther}) {
            make_directory(fmt::format("d{}", ++number), 0, 0, 0755);
            for (mode_t bits = 0; bits < 64; ++bits) {
                // Reading and writing for owner, group and others.
                const mode_t mode =
                    (bits & 3) << 1 | ((bits >> 2) & 3) << 4 | ((bits >> 4) & 3) << 7;
                for (size_t shape = 0; shape <= acl_shapes().size(); ++shape) {
                    paths.push_back(fmt::format("/d{}/{:03o}_acl{}", number, mode, shape));
                    std::string acl;
                    if (shape > 0) {
                        const AclShape& s = acl_shapes()[shape - 1];
                        acl = acl_value(mode, s.owning_group, s.named);
                    }
                    make_file(paths.back(), uid, gid, mode, acl);
                    if (HasFatalFailure()) return;
                }
            }
        }
    }
    std::vector<Opened> all;
    for (const Peer& identity : identities()) {
        SCOPED_TRACE(identity.uid);
        const Opened& kernel = all.emplace_back(open_all_as(identity, paths));
        int allowed = 0;
        int differences = 0;
        for (size_t i = 0; i < paths.size() && differences < 10; ++i) {
            // A descriptor that doesn't prove what is wanted.
            const std::array proofs = {open_as_root(path(paths[i]), O_WRONLY),
                                       open_as_root(path(paths[i]), O_RDONLY),
                                       open_as_root(path(paths[i]), O_ACCMODE)};
            for (size_t mode = 0; mode < kModes.size(); ++mode) {
                const auto ours = authorize_descriptor(kernel.peer, proofs[mode].get(), filesystem_,
                                                       reads(kModes[mode]), writes(kModes[mode]));
                allowed += kernel.codes[i][mode] == 0;
                if (code_of(ours) == kernel.codes[i][mode]) continue;
                ++differences;
                ADD_FAILURE() << kModeNames[mode] << " " << paths[i] << ": the kernel says "
                              << kernel.codes[i][mode] << ", we say " << code_of(ours) << " "
                              << (ours ? "" : ours.error().message);
            }
        }
        // The comparison has both sorts.
        const auto asked = static_cast<int>(paths.size() * kModes.size());
        EXPECT_GT(allowed, asked / 10);
        EXPECT_LT(allowed, identity.uid == 0 ? asked + 1 : asked * 9 / 10);
    }
    const auto volume = unmounted();
    ASSERT_TRUE(volume);
    for (const Opened& kernel : all) compare(*volume, kernel, paths);
}

// Directories on the way, and those behind symbolic links, need search permission.
TEST_F(Authority, PathsAsTheKernelWalks) {
    std::vector<std::string> paths;
    make_directory("open", 0, 0, 0755);
    make_directory("closed", 0, 0, 0700);
    make_file("open/f", 0, 0, 0666);
    make_file("closed/f", 0, 0, 0666);
    int number = 0;
    for (const uid_t uid : {kUser, kOther}) {
        for (const gid_t gid : {kGroup + 1, kOther}) {
            for (const mode_t mode : {0000, 0700, 0070, 0010, 0007, 0001, 0666, 0751}) {
                for (size_t shape = 0; shape <= acl_shapes().size(); ++shape) {
                    const std::string name = fmt::format("d{}", ++number);
                    std::string acl;
                    if (shape > 0) {
                        const AclShape& s = acl_shapes()[shape - 1];
                        acl = acl_value(mode, s.owning_group, s.named);
                    }
                    make_directory(name, uid, gid, mode, acl);
                    make_file(name + "/f", kUser, kGroup, 0666);
                    if (HasFatalFailure()) return;
                    const std::string links[][2] = {
                        {"../" + name + "/f", "open/r" + name},                 // relative
                        {"/" + name + "/f", "open/a" + name},                   // absolute
                        {"a" + name, "open/n" + name},                          // to another
                        {"../" + name + "/../open/f", "open/t" + name},         // only through it
                        {"/open//./f", name + "/out"},                          // kept in it
                        {"/" + std::string(100, '/') + name, "open/d" + name},  // slow, a directory
                    };
                    for (const auto& [target, link] : links) {
                        fs::create_symlink(target, path(link));
                        paths.push_back("/" + link);
                    }
                    for (const char* text : {"/{}/f", "/{}/./f", "/{}/../open/f", "/{}/", "/{}/.",
                                             "/{}/nothing", "/{}/f/x", "/open/d{}/f", "/{}"})
                        paths.push_back(fmt::format(fmt::runtime(text), name));
                }
            }
        }
    }
    // ELOOP, ENOENT, ENOTDIR, and as many links as the kernel follows.
    fs::create_symlink("loop", path("loop"));
    fs::create_symlink("nowhere", path("dangling"));
    fs::create_symlink("f", path("open/l1"));
    for (int i = 2; i <= 42; ++i)
        fs::create_symlink(fmt::format("l{}", i - 1), path(fmt::format("open/l{}", i)));
    for (const char* text :
         {"/loop", "/loop/f", "/dangling", "/dangling/f", "/open/l8", "/open/l9", "/open/l40",
          "/open/l41", "/open/l42", "/open/f/", "/open/l1/", "/open/f/..", "/..",
          "/../open/../../open/f", "//open///f", "/closed/f", "/closed/../open/f", "/closed", "/"})
        paths.emplace_back(text);

    std::vector<Opened> all;
    for (const Peer& identity : identities()) all.push_back(open_all_as(identity, paths));
    const auto volume = unmounted();
    ASSERT_TRUE(volume);
    for (Opened& kernel : all) {
        // The kernel opens a directory for reading; the daemon doesn't.
        for (size_t i = 0; i < paths.size(); ++i) {
            if (kernel.codes[i][1] == EISDIR) kernel.codes[i][0] = EISDIR;
        }
        compare(*volume, kernel, paths);
    }
}

TEST_F(Authority, AsSetfaclMakesThem) {
    const Peer who = peer(kUser, kOther);
    make_file("f", 0, 0, 0666);
    const UniqueFd read_only = open_as_root(path("f"), O_RDONLY);
    const auto write = [&] {
        return authorize_descriptor(who, read_only.get(), filesystem_, true, true);
    };
    EXPECT_TRUE(write());
    // Mode bits that lie: others may, the group may, this user may not.
    ASSERT_EQ(run_command({"setfacl", "-m", fmt::format("u:{}:r", kUser), path("f")}).status, 0);
    const auto refused = write();
    ASSERT_EQ(code_of(refused), EACCES);
    struct stat status{};
    ASSERT_EQ(::fstat(read_only.get(), &status), 0);
    EXPECT_EQ(refused.error().message,
              fmt::format("inode {} may not be written by user 12345 (process 0): it is owned by "
                          "0:0, mode 0666, with an access control list",
                          status.st_ino));
    // A large one.
    std::string entries = fmt::format("u:{}:rw", kUser);
    for (int i = 0; i < 60; ++i) entries += fmt::format(",u:{}:r", 30000 + i);
    ASSERT_EQ(run_command({"setfacl", "-m", entries, path("f")}).status, 0);
    EXPECT_TRUE(write());
}

TEST_F(Authority, WhatADescriptorProves) {
    const Peer stranger = peer(kUser, kOther);
    make_file("f", 0, 0, 0600);
    struct Row {
        int flags;
        int read;
        int write;
        int both;
    };
    for (const Row& row :
         {Row{O_RDONLY, 0, EACCES, EACCES}, Row{O_WRONLY, EACCES, 0, EACCES}, Row{O_RDWR, 0, 0, 0},
          Row{O_RDWR | O_APPEND, 0, 0, 0}, Row{O_WRONLY | O_DIRECT, EACCES, 0, EACCES},
          Row{O_ACCMODE, EACCES, EACCES, EACCES}, Row{O_PATH, EBADF, EBADF, EBADF}}) {
        const UniqueFd fd = open_as_root(path("f"), row.flags);
        const auto code = [&](bool read, bool write) {
            return code_of(authorize_descriptor(stranger, fd.get(), filesystem_, read, write));
        };
        EXPECT_EQ(code(true, false), row.read) << row.flags;
        EXPECT_EQ(code(false, true), row.write) << row.flags;
        EXPECT_EQ(code(true, true), row.both) << row.flags;
    }
    const UniqueFd fd = open_as_root(path("f"), O_RDWR);
    const auto grant = authorize_descriptor(stranger, fd.get(), filesystem_, true, false);
    ASSERT_TRUE(grant);
    EXPECT_TRUE(grant->read);
    EXPECT_FALSE(grant->write);
}

TEST_F(Authority, WhatIsNoFileOfThisVolume) {
    const Peer root = peer(0, 0);
    const auto code = [&](int fd) {
        return code_of(authorize_descriptor(root, fd, filesystem_, true, true));
    };
    EXPECT_EQ(code(-1), EBADF);
    EXPECT_EQ(code(open_as_root(root_, O_RDONLY).get()), EISDIR);
    int pipe[2];
    ASSERT_EQ(::pipe2(pipe, O_CLOEXEC), 0);
    const UniqueFd ends[] = {UniqueFd(pipe[0]), UniqueFd(pipe[1])};
    EXPECT_EQ(code(ends[0].get()), EINVAL);
    EXPECT_EQ(code(open_as_root("/dev/null", O_RDWR).get()), EINVAL);
    EXPECT_EQ(code(open_as_root(loop_->path(), O_RDONLY).get()), EINVAL);
    EXPECT_EQ(code(UniqueFd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)).get()), EINVAL);
    EXPECT_EQ(code(UniqueFd(::memfd_create("arena", MFD_CLOEXEC)).get()), EXDEV);
    EXPECT_EQ(code(open_as_root(image_, O_RDWR).get()), EXDEV);
}

TEST_F(Authority, AppendOnlyImmutableSetuid) {
    const Peer owner = peer(kUser, kOther);
    const Peer root = peer(0, 0);
    make_file("f", kUser, kOther, 0666);
    UniqueFd fd = open_as_root(path("f"), O_RDWR);
    const auto code = [&](const Peer& who, bool write) {
        return code_of(authorize_descriptor(who, fd.get(), filesystem_, !write, write));
    };
    for (const int flag : {FS_APPEND_FL, FS_IMMUTABLE_FL}) {
        int flags = 0;
        ASSERT_EQ(::ioctl(fd.get(), FS_IOC_GETFLAGS, &flags), 0);
        int changed = flags | flag;
        ASSERT_EQ(::ioctl(fd.get(), FS_IOC_SETFLAGS, &changed), 0);
        EXPECT_EQ(code(owner, true), EPERM);
        EXPECT_EQ(code(root, true), EPERM);
        EXPECT_EQ(code(owner, false), 0);
        ASSERT_EQ(::ioctl(fd.get(), FS_IOC_SETFLAGS, &flags), 0);
        EXPECT_EQ(code(owner, true), 0);
    }
    for (const auto& [mode, expected] : std::vector<std::pair<mode_t, int>>{
             {04666, EPERM}, {02676, EPERM}, {02666, 0}, {01666, 0}, {0777, 0}}) {
        ASSERT_EQ(::fchmod(fd.get(), mode), 0);
        EXPECT_EQ(code(owner, true), expected) << mode;
        EXPECT_EQ(code(root, true), 0) << mode;
        EXPECT_EQ(code(owner, false), 0) << mode;
    }
    // The same on an owned volume.
    make_file("setuid", kUser, kOther, 04666);
    make_file("immutable", kUser, kOther, 0666);
    make_file("append", kUser, kOther, 0666);
    for (const auto& [name, flag] :
         {std::pair{"immutable", FS_IMMUTABLE_FL}, std::pair{"append", FS_APPEND_FL}}) {
        const UniqueFd file = open_as_root(path(name), O_RDWR);
        int flags = 0;
        ASSERT_EQ(::ioctl(file.get(), FS_IOC_GETFLAGS, &flags), 0);
        flags |= flag;
        ASSERT_EQ(::ioctl(file.get(), FS_IOC_SETFLAGS, &flags), 0);
    }
    fd.reset();
    const auto volume = unmounted();
    ASSERT_TRUE(volume);
    for (const char* name : {"/setuid", "/immutable", "/append"}) {
        EXPECT_EQ(code_of(authorize_path(*volume, owner, name, false, true)), EPERM) << name;
        EXPECT_EQ(code_of(authorize_path(*volume, owner, name, true, false)), 0) << name;
    }
    EXPECT_EQ(code_of(authorize_path(*volume, root, "/setuid", false, true)), 0);
    const auto grant = authorize_path(*volume, owner, "/f", true, true);
    ASSERT_TRUE(grant) << grant.error().message;
    EXPECT_EQ(grant->inode, lookup(*volume, "/f").value());
    EXPECT_TRUE(grant->grant.read && grant->grant.write);
}

TEST_F(Authority, ReadOnlyMounts) {
    make_file("f", kUser, kOther, 0666);
    const auto code = [&](const std::string& name, bool write) {
        return code_of(authorize_descriptor(peer(0, 0), open_as_root(name, O_RDONLY).get(),
                                            filesystem_, !write, write));
    };
    {
        const std::string bound = dir_.file("bound");
        fs::create_directory(bound);
        const Mount bind(root_, bound, {"--bind", "-o", "ro"});
        EXPECT_EQ(code(bound + "/f", true), EROFS);
        EXPECT_EQ(code(bound + "/f", false), 0);
        EXPECT_EQ(code(path("f"), true), 0);
    }
    ASSERT_EQ(run_command({"mount", "-o", "remount,ro", root_}).status, 0);
    EXPECT_EQ(code(path("f"), true), EROFS);
    EXPECT_EQ(code(path("f"), false), 0);
}

}  // namespace
}  // namespace atomic4::test
