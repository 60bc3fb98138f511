// What an unprivileged user may do through the daemon, compared with what the kernel lets it do.
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/xattr.h>

#include "daemon/volume_fixture.h"
#include "support/acl.h"

namespace atomic4::test {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

const Identity kUser{12345, 12345, {}};
constexpr uint32_t kRead = wire::kOpenRead;
constexpr uint32_t kWrite = wire::kOpenWrite;

class DaemonAuthority : public DaemonTest {
  protected:
    void make_file(const std::string& name, uid_t owner, mode_t mode, const std::string& acl = "") {
        const std::string path = volume().file(name);
        const UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
        ASSERT_TRUE(fd) << path << ": " << std::strerror(errno);
        ASSERT_EQ(::ftruncate(fd.get(), 65536), 0);
        ASSERT_EQ(::fchown(fd.get(), owner, owner), 0);
        ASSERT_EQ(::fchmod(fd.get(), mode), 0);
        if (!acl.empty()) {
            ASSERT_EQ(::fsetxattr(fd.get(), "system.posix_acl_access", acl.data(), acl.size(), 0),
                      0)
                << std::strerror(errno);
        }
        names_.push_back(name);
    }
    void prepare() override {
        fs::permissions(volume().file(""), fs::perms(0755));
        make_file("roots", 0, 0644);
        make_file("secret", 0, 0600);
        make_file("mine", 12345, 0600);
        make_file("mine_sealed", 12345, 0444);
        make_file("anybodys", 0, 0666);
        make_file("write_only", 0, 0622);
        // The mode bits say that everybody may; the list says that this user may not.
        make_file("acl_denies", 0, 0666, acl_value(0666, 6, {AclEntry::user(12345, 4)}));
        make_file("acl_denies_all", 0, 0666, acl_value(0666, 6, {AclEntry::user(12345, 0)}));
        // And the other way round.
        make_file("acl_allows", 0, 0660, acl_value(0660, 0, {AclEntry::user(12345, 6)}));
        make_file("acl_masked", 0, 0640, acl_value(0640, 0, {AclEntry::user(12345, 6)}));
        ASSERT_EQ(::mkdir(volume().file("closed").c_str(), 0700), 0);
        make_file("closed/inside", 0, 0666);
        ASSERT_EQ(::mkdir(volume().file("listed").c_str(), 0744), 0);
        make_file("listed/inside", 0, 0666);
        ASSERT_EQ(::mkdir(volume().file("open").c_str(), 0711), 0);
        make_file("open/inside", 0, 0666);
        ASSERT_EQ(::symlink("closed/inside", volume().file("into_closed").c_str()), 0);
        ASSERT_EQ(::symlink("open/../open/inside", volume().file("into_open").c_str()), 0);
        names_.insert(names_.end(), {"into_closed", "into_open", "data", ".atomic4/log"});
        for (const std::string& name : names_) {
            for (const int mode : {O_RDONLY, O_WRONLY, O_RDWR})
                kernel_says_[{name, mode}] = open_as(kUser, volume().file(name), mode).error;
        }
    }
    static uint32_t flags_of(int mode) {
        return mode == O_RDONLY ? kRead : mode == O_WRONLY ? kWrite : kRead | kWrite;
    }
    std::vector<std::byte> stored(const std::string& name) const {
        std::ifstream in(volume_file(name), std::ios::binary);
        std::vector<std::byte> bytes(65536);
        in.read(reinterpret_cast<char*>(bytes.data()), 65536);
        return bytes;
    }
    std::string volume_file(const std::string& name) const {
        return const_cast<DaemonAuthority*>(this)->volume().file(name);
    }

    std::vector<std::string> names_;
    std::map<std::pair<std::string, int>, int> kernel_says_;  // 0 or errno of open(2)
    const std::vector<std::byte> page_ = filled(4096, 0x77);
};

class OnMounted : public DaemonAuthority {};
class OnOwned : public DaemonAuthority {};

// Whatever the kernel lets the user open, and by whatever weaker descriptor it comes.
TEST_P(OnMounted, ADescriptorGivesWhatItsUserCouldOpenAndNoMore) {
    WireClient client = volume().client(kUser);
    size_t granted = 0, refused = 0;
    for (const std::string& name : names_) {
        if (name == ".atomic4/log") continue;
        for (const int have : {O_RDONLY, O_WRONLY, O_RDWR}) {
            const OpenedFile opened = open_as(kUser, volume().file(name), have);
            if (!opened.fd) continue;
            for (const int want : {O_RDONLY, O_WRONLY, O_RDWR}) {
                const Answer answer = client.open(opened.fd.get(), flags_of(want));
                const int expected = kernel_says_.at({name, want});
                EXPECT_EQ(answer.error, static_cast<uint32_t>(expected))
                    << name << " opened with " << have << " for " << want << ": " << answer.reason;
                ++(expected == 0 ? granted : refused);
            }
        }
    }
    EXPECT_GE(granted, 20u);
    EXPECT_GE(refused, 10u);
}

TEST_P(OnMounted, ItWritesWhereItMay) {
    WireClient client = volume().client(kUser);
    for (const char* const name : {"mine", "anybodys", "acl_allows"}) {
        const OpenedFile file = open_as(kUser, volume().file(name), O_RDONLY);
        ASSERT_TRUE(file.fd) << name;
        const uint64_t handle = client.must_open(file.fd.get(), kRead | kWrite);
        const Answer written = client.write(handle, 8192, page_);
        EXPECT_EQ(written.error, 0u) << written.reason;
        const std::vector<std::byte> now = stored(name);
        EXPECT_TRUE(std::equal(page_.begin(), page_.end(), now.begin() + 8192)) << name;
    }
    // Somebody who may can give the right away, as with any descriptor.
    const UniqueFd proof(::open(volume().file("roots").c_str(), O_RDWR | O_CLOEXEC));
    const uint64_t handle = client.must_open(proof.get(), kWrite);
    EXPECT_EQ(client.write(handle, 0, page_).error, 0u);
}

// Files without a name, before and after the daemon has them open.
TEST_P(OnMounted, AFileWithoutANameIsAFile) {
    WireClient client = volume().client();
    const UniqueFd nameless = open_path(volume().file(""), O_RDWR | O_TMPFILE);
    ASSERT_EQ(::ftruncate(nameless.get(), 65536), 0);
    const uint64_t handle = client.must_open(nameless.get(), kRead | kWrite);
    EXPECT_EQ(client.write(handle, 0, page_).error, 0u);
    std::vector<std::byte> read(4096);
    ASSERT_EQ(::pread(nameless.get(), read.data(), read.size(), 0), 4096);
    EXPECT_EQ(read, page_);

    UniqueFd removed = open_path(volume().file("roots"), O_RDWR);
    const uint64_t second = client.must_open(removed.get(), kRead | kWrite);
    EXPECT_EQ(client.write(second, 0, page_).error, 0u);
    ASSERT_EQ(::unlink(volume().file("roots").c_str()), 0);
    removed.reset();
    EXPECT_EQ(client.write(second, 4096, page_).error, 0u);
    EXPECT_EQ(client.with_handle(wire::Type::Flush, second).error, 0u);
}

TEST_P(OnMounted, ADescriptorThatProvesNothingIsRefused) {
    WireClient client = volume().client(kUser);
    const auto refused = [&](int fd, uint32_t flags, uint32_t error, const char* what) {
        const Answer answer = client.open(fd, flags);
        EXPECT_EQ(answer.error, error) << what << ": " << answer.reason;
    };
    const TempDir elsewhere;
    fs::permissions(elsewhere.path(), fs::perms(0777));
    const OpenedFile other = open_as(kUser, elsewhere.file("f"), O_RDWR | O_CREAT);
    refused(other.fd.get(), kWrite, EXDEV, "another filesystem");
    const UniqueFd memory(::memfd_create("m", MFD_CLOEXEC));
    refused(memory.get(), kWrite, EXDEV, "memory");
    for (const char* const name : {"mine", "roots", "secret", "data"})
        refused(open_as(kUser, volume().file(name), O_PATH).fd.get(), kWrite, EBADF, name);
    refused(open_as(kUser, volume().file("mine"), O_PATH).fd.get(), kRead, EBADF, "O_PATH");
    // Neither reading nor writing: the kernel's mode 3, for ioctls.
    if (const OpenedFile third = open_as(kUser, volume().file("mine_sealed"), 3); third.fd)
        refused(third.fd.get(), kWrite, EACCES, "mode 3");
    refused(open_as(kUser, volume().file(""), O_RDONLY).fd.get(), kRead, EISDIR, "a directory");
    int ends[2];
    ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    const UniqueFd read_end(ends[0]), write_end(ends[1]);
    refused(write_end.get(), kWrite, EINVAL, "a pipe");
    const UniqueFd device(::open("/dev/null", O_RDWR | O_CLOEXEC));
    refused(device.get(), kWrite, EINVAL, "a device");
    refused(client.fd(), kWrite, EINVAL, "a socket");
    // By path: on a mounted volume there is nothing that proves.
    EXPECT_EQ(client.open(-1, kWrite, wire::WireEngine::Auto, "/roots").error, uint32_t{EINVAL});
    EXPECT_EQ(client
                  .open(open_as(kUser, volume().file("mine"), O_RDWR).fd.get(), kWrite,
                        wire::WireEngine::Auto, "/roots")
                  .error,
              uint32_t{EINVAL});
    // A file handle made up from an inode number: the kernel opens none for this user.
    as_user(kUser, [&] {
        struct {
            file_handle head;
            char bytes[MAX_HANDLE_SZ];
        } number{};
        number.head.handle_bytes = MAX_HANDLE_SZ;
        int mount = 0;
        ASSERT_EQ(
            ::name_to_handle_at(AT_FDCWD, volume().file("secret").c_str(), &number.head, &mount, 0),
            0);
        const UniqueFd directory(::open(volume().file("").c_str(), O_RDONLY | O_CLOEXEC));
        EXPECT_FALSE(UniqueFd(::open_by_handle_at(directory.get(), &number.head, O_RDWR)));
    });
}

TEST_P(OnMounted, FilesThatNobodyMayWriteThroughTheDaemon) {
    WireClient client = volume().client(kUser);
    WireClient root = volume().client();
    const auto write_error = [](WireClient& who, const OpenedFile& file) {
        EXPECT_TRUE(file.fd) << file.error;
        return who.open(file.fd.get(), kWrite).error;
    };
    for (const char* const name : {".atomic4/log", ".atomic4/lock"}) {
        EXPECT_FALSE(open_as(kUser, volume().file(name), O_RDWR).fd);
        const OpenedFile file = open_as({}, volume().file(name), O_RDWR);
        EXPECT_EQ(write_error(root, file), uint32_t{EPERM}) << name;
        EXPECT_EQ(root.open(file.fd.get(), kRead).error, uint32_t{EPERM}) << name;
        EXPECT_EQ(write_error(client, file), uint32_t{EPERM}) << name;
    }
    const OpenedFile program = open_as(kUser, volume().file("mine"), O_RDWR);
    ASSERT_EQ(::fchmod(program.fd.get(), 04700), 0);
    EXPECT_EQ(write_error(client, program), uint32_t{EPERM});
    ASSERT_EQ(::fchmod(program.fd.get(), 0600), 0);
    EXPECT_EQ(write_error(client, program), 0u);

    for (const int flag : {FS_APPEND_FL, FS_IMMUTABLE_FL}) {
        const OpenedFile before = open_as(kUser, volume().file("anybodys"), O_RDWR);
        int flags = 0;
        ASSERT_EQ(::ioctl(before.fd.get(), FS_IOC_GETFLAGS, &flags), 0);
        int with = flags | flag;
        ASSERT_EQ(::ioctl(before.fd.get(), FS_IOC_SETFLAGS, &with), 0);
        EXPECT_EQ(write_error(client, before), uint32_t{EPERM});
        EXPECT_EQ(write_error(root, open_as({}, volume().file("anybodys"), O_RDONLY)),
                  uint32_t{EPERM});
        ASSERT_EQ(::ioctl(before.fd.get(), FS_IOC_SETFLAGS, &flags), 0);
    }
    // The same file by another way in, which is for reading only.
    const TempDir place;
    fs::permissions(place.path(), fs::perms(0711));
    fs::create_directory(place.file("ro"));
    const Mount read_only(volume().file(""), place.file("ro"), {"--bind", "-o", "ro"});
    EXPECT_EQ(write_error(client, open_as(kUser, place.file("ro/anybodys"), O_RDONLY)),
              uint32_t{EROFS});
    EXPECT_EQ(
        client.open(open_as(kUser, place.file("ro/anybodys"), O_RDONLY).fd.get(), kRead).error, 0u);
}

// Each path component counts, and those that links lead through.
TEST_P(OnOwned, APathGivesWhatTheKernelWouldAndNoMore) {
    WireClient client = volume().client(kUser);
    for (const std::string& name : names_) {
        if (name == ".atomic4/log") continue;
        for (const int want : {O_RDONLY, O_WRONLY, O_RDWR}) {
            const Answer answer =
                client.open(-1, flags_of(want), wire::WireEngine::Auto, "/" + name);
            EXPECT_EQ(answer.error, static_cast<uint32_t>(kernel_says_.at({name, want})))
                << name << " for " << want << ": " << answer.reason;
        }
    }
    for (const char* const path : {"/open/../closed/inside", "/closed/../open/inside",
                                   "//closed//inside", "/./closed/./inside"})
        EXPECT_EQ(client.open(-1, kWrite, wire::WireEngine::Auto, path).error, uint32_t{EACCES})
            << path;
    EXPECT_EQ(client.open(-1, kRead, wire::WireEngine::Auto, "/open").error, uint32_t{EISDIR});
    EXPECT_EQ(client.open(-1, kRead, wire::WireEngine::Auto, "/mine/x").error, uint32_t{ENOTDIR});
    // A descriptor proves nothing on a volume that isn't mounted.
    const UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
    EXPECT_EQ(client.open(null.get(), kWrite, wire::WireEngine::Auto, "/mine").error,
              uint32_t{EINVAL});

    WireClient root = volume().client();
    for (const char* const path : {"/.atomic4/log", "/.atomic4/lock"}) {
        for (const uint32_t flags : {kRead, kWrite}) {
            EXPECT_EQ(root.open(-1, flags, wire::WireEngine::Auto, path).error, uint32_t{EPERM});
            EXPECT_NE(client.open(-1, flags, wire::WireEngine::Auto, path).error, 0u);
        }
    }
}

TEST_P(OnOwned, ItWritesWhereItMay) {
    WireClient client = volume().client(kUser);
    for (const char* const path : {"/mine", "/anybodys", "/acl_allows", "/open/inside"}) {
        const uint64_t handle = client.must_open(-1, kRead | kWrite, path);
        const Answer written = client.write(handle, 8192, page_);
        EXPECT_EQ(written.error, 0u) << written.reason;
        const Answer read = client.read(handle, 8192, 4096);
        ASSERT_EQ(read.body.size(), sizeof(wire::ReadReply) + 4096);
        EXPECT_TRUE(
            std::equal(page_.begin(), page_.end(), read.body.begin() + sizeof(wire::ReadReply)));
    }
}

class OnBoth : public DaemonAuthority {};

TEST_P(OnBoth, AHandleIsItsConnectionsAndWhatWasProved) {
    WireClient root = volume().client();
    WireClient client = volume().client(kUser);
    uint64_t roots = 0;
    // So that the number isn't one that the other has too.
    for (int i = 0; i < 8; ++i) roots = volume().open(root, "roots", kRead | kWrite);
    EXPECT_EQ(client.write(roots, 0, page_).error, uint32_t{EBADF});
    EXPECT_EQ(client.read(roots, 0, 4096).error, uint32_t{EBADF});
    EXPECT_EQ(client.with_handle(wire::Type::Statx, roots).error, uint32_t{EBADF});
    EXPECT_EQ(client.with_handle(wire::Type::Close, roots).error, uint32_t{EBADF});
    EXPECT_EQ(client.with_handle(wire::Type::Flush, roots).error, uint32_t{EBADF});

    const uint64_t mine = volume().open(client, "mine", kRead | kWrite);
    const uint64_t reading = volume().open(client, "mine", kRead);
    const uint64_t writing = volume().open(client, "mine", kWrite);
    EXPECT_EQ(client.write(reading, 0, page_).error, uint32_t{EBADF});
    EXPECT_EQ(client.write(reading, 0, page_, wire::kWritePlain).error, uint32_t{EBADF});
    EXPECT_EQ(client.read(writing, 0, 4096).error, uint32_t{EBADF});
    // Numbers that are none: inode numbers among them.
    for (uint64_t number = 0; number < 200; ++number) {
        if (number == mine || number == reading || number == writing) continue;
        EXPECT_EQ(client.write(number, 0, page_).error, uint32_t{EBADF}) << number;
    }
    for (const uint64_t number : {uint64_t{1} << 32 | mine, ~uint64_t{0}, uint64_t{1} << 63})
        EXPECT_EQ(client.write(number, 0, page_).error, uint32_t{EBADF}) << number;

    // In a batch, one that isn't right is too many.
    std::vector<wire::BatchRange> ranges(2);
    ranges[0].handle = mine;
    ranges[0].length = 4096;
    ranges[1].handle = reading;
    ranges[1].offset = 4096;
    ranges[1].length = 4096;
    wire::BatchRequest head{};
    head.count = 2;
    Packet body;
    for (const auto bytes : {bytes_of(head), std::as_bytes(std::span(ranges))})
        body.insert(body.end(), bytes.begin(), bytes.end());
    EXPECT_EQ(client.ask(wire::Type::Batch, body, filled(8192, 1)).error, uint32_t{EBADF});
    const Answer untouched = client.read(mine, 0, 4096);
    EXPECT_TRUE(std::all_of(untouched.body.begin() + sizeof(wire::ReadReply), untouched.body.end(),
                            [](std::byte byte) { return byte == std::byte{0}; }));

    EXPECT_EQ(client.write(mine, 0, page_).error, 0u);
    EXPECT_EQ(client.with_handle(wire::Type::Close, mine).error, 0u);
    EXPECT_EQ(client.write(mine, 0, page_).error, uint32_t{EBADF});
    EXPECT_EQ(client.with_handle(wire::Type::Close, mine).error, uint32_t{EBADF});
    EXPECT_EQ(root.write(roots, 0, page_).error, 0u);
}

TEST_P(OnBoth, OnlyRootFreezes) {
    WireClient root = volume().client();
    WireClient client = volume().client(kUser);
    EXPECT_EQ(client.ask(wire::Type::Freeze).error, uint32_t{EPERM});
    EXPECT_EQ(client.ask(wire::Type::Thaw).error, uint32_t{EPERM});
    const uint64_t handle = volume().open(client, "anybodys", kWrite);
    EXPECT_EQ(client.write(handle, 0, page_).error, 0u);
    EXPECT_EQ(root.ask(wire::Type::Freeze).error, 0u);
    ASSERT_TRUE(client.send(write_packet(99, handle, 0, page_)));
    EXPECT_EQ(client.ask(wire::Type::Thaw).error, uint32_t{EPERM});
    EXPECT_EQ(client.ask(wire::Type::Ping).error, 0u);
    EXPECT_FALSE(readable(client.fd(), 0));  // the write still waits
    EXPECT_EQ(root.ask(wire::Type::Thaw).error, 0u);
    const auto written = client.receive();
    ASSERT_TRUE(written);
    EXPECT_EQ(written->tag, 99u);
    EXPECT_EQ(written->error, 0u);
}

TEST_P(OnBoth, ARefusalIsLoggedWithWhoWhichAndWhy) {
    WireClient client = volume().client(kUser);
    const OpenedFile file =
        volume().mounted() ? open_as(kUser, volume().file("roots"), O_RDONLY) : OpenedFile{};
    const Answer answer = client.open(volume().mounted() ? file.fd.get() : -1, kWrite,
                                      wire::WireEngine::Auto, volume().mounted() ? "" : "/roots");
    EXPECT_EQ(answer.error, uint32_t{EACCES});
    EXPECT_EQ(client.ask(wire::Type::Freeze).error, uint32_t{EPERM});
    const std::string said = volume().daemon().said();
    EXPECT_THAT(said, HasSubstr("open by user 12345 (process "));
    EXPECT_THAT(said, HasSubstr("may not be written by user 12345"));
    EXPECT_THAT(said, HasSubstr("it is owned by 0:0, mode 0644"));
    EXPECT_THAT(said, HasSubstr("may not freeze the volume: only root may"));
    EXPECT_THAT(said, HasSubstr(volume().mounted() ? "inode " : "/roots"));
}

TEST_P(OnBoth, SoAreRefusedRequests) {
    WireClient client = volume().client(kUser);
    const uint64_t both = volume().open(client, "mine", kRead | kWrite);
    const uint64_t reading = volume().open(client, "mine", kRead);
    const uint64_t writing = volume().open(client, "mine", kWrite);
    std::string subject = fmt::format(" by user 12345 (process {}), inode ", ::getpid());
    if (volume().mounted()) {
        struct stat st{};
        ASSERT_EQ(::stat(volume().file("mine").c_str(), &st), 0);
        subject += fmt::format("{}: ", st.st_ino);
    }
    const auto said = [&](const std::string& what) {
        EXPECT_THAT(volume().daemon().said(), HasSubstr("refused: " + what));
    };
    EXPECT_EQ(client.write(reading, 0, page_).error, uint32_t{EBADF});
    said("write" + subject);
    EXPECT_THAT(volume().daemon().said(),
                HasSubstr(fmt::format("handle {} is not open for writing", reading)));
    EXPECT_EQ(client.read(writing, 0, 4096).error, uint32_t{EBADF});
    said("read" + subject);
    EXPECT_EQ(client.write(both, 512, page_).error, uint32_t{EINVAL});
    EXPECT_THAT(volume().daemon().said(),
                HasSubstr("the offset 512 is not a multiple of the length 4096"));
    EXPECT_EQ(client.with_handle(wire::Type::Flush, 77).error, uint32_t{EBADF});
    said(fmt::format("flush by user 12345 (process {}), handle 77: ", ::getpid()));
    wire::BatchRange range{};
    range.handle = both;
    range.offset = 512;
    range.length = 4096;
    wire::BatchRequest head{};
    head.count = 1;
    Packet body;
    for (const auto bytes : {bytes_of(head), bytes_of(range)})
        body.insert(body.end(), bytes.begin(), bytes.end());
    EXPECT_EQ(client.ask(wire::Type::Batch, body, page_).error, uint32_t{EINVAL});
    said("batch" + subject);
    const UniqueFd unsealed(::memfd_create("arena", MFD_CLOEXEC));
    EXPECT_EQ(client.arena(unsealed.get(), 4096).error, uint32_t{EINVAL});
    said("arena by user 12345 (process ");
    EXPECT_EQ(client.hello().error, uint32_t{EPROTO});
    said("hello by user 12345 (process ");
    WireClient headless = volume().client(kUser);
    ASSERT_TRUE(headless.send(Packet(7)));
    EXPECT_TRUE(headless.ends());
    said("a packet of 7 bytes by user 12345 (process ");
}

// A client can have as much refused as it likes, and fills no disk with it.
TEST_P(OnBoth, ManyRefusalsAreCounted) {
    constexpr uint64_t kMany = 3000;
    const auto lines = [&] {
        const std::string said = volume().daemon().said();
        size_t n = 0;
        for (size_t at = 0; (at = said.find("refused: ", at)) != std::string::npos; ++at) ++n;
        return n;
    };
    {
        // Connecting anew gives no new allowance.
        for (int connection = 0; connection < 3; ++connection) {
            WireClient client = volume().client(kUser);
            for (uint64_t i = 0; i < kMany / 3; ++i)
                ASSERT_EQ(client.write(77, 0, page_).error, uint32_t{EBADF});
        }
    }
    // One more each ten seconds, that the machine may be slow.
    EXPECT_GE(lines(), 20u);
    EXPECT_LT(lines(), 100u);
    WireClient root = volume().client();
    EXPECT_EQ(root.write(78, 0, page_).error, uint32_t{EBADF});
    EXPECT_THAT(volume().daemon().said(), HasSubstr("handle 78 is not open on this connection"));
    root.close();
    stop();
    EXPECT_THAT(volume().daemon().said(),
                HasSubstr(" more of user 12345, the last: write by user"));
}

INSTANTIATE_TEST_SUITE_P(Volume, OnMounted, ::testing::Values(true), volume_name);
INSTANTIATE_TEST_SUITE_P(Volume, OnOwned, ::testing::Values(false), volume_name);
INSTANTIATE_TEST_SUITE_P(Volume, OnBoth, ::testing::Bool(), volume_name);

}  // namespace
}  // namespace atomic4::test
