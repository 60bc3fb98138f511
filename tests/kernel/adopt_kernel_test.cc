// Files that the kernel has written, adopted unmounted, and mounted again: the kernel reads what it
// wrote, and goes on with them.
#include <sys/stat.h>
#include <sys/xattr.h>

#include <algorithm>
#include <random>

#include "support/bytes.h"
#include "support/mounted_image.h"
#include "support/privileged.h"
#include "unit/volume_fixture.h"
#include "writer/adopt.h"

namespace atomic4::test {
namespace {

struct KernelFile {
    std::string name;
    Image bytes;
    struct stat before{};
};

UniqueFd open_or_throw(const std::string& path, int flags) {
    UniqueFd fd(::open(path.c_str(), flags | O_CLOEXEC, 0644));
    if (!fd) throw std::runtime_error("open " + path);
    return fd;
}

void put(int fd, uint64_t offset, const Image& bytes) {
    if (::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset)) !=
        static_cast<ssize_t>(bytes.size()))
        throw std::runtime_error("pwrite");
}

void allocate(int fd, int mode, uint64_t offset, uint64_t length) {
    if (::fallocate(fd, mode, static_cast<off_t>(offset), static_cast<off_t>(length)) != 0)
        throw std::runtime_error("fallocate");
}

constexpr uint64_t kSize = 600'000;

// One file of each sort that programs make.
std::vector<KernelFile> make_files(const MountedImage& image, bool extents) {
    std::mt19937_64 random(7);
    std::vector<KernelFile> files;
    const auto make = [&](const std::string& name, const auto& fill) {
        const UniqueFd fd = open_or_throw(image.file(name), O_CREAT | O_RDWR);
        fill(fd.get());
        if (::fsync(fd.get()) != 0) throw std::runtime_error("fsync");
        files.push_back({name, {}, {}});
    };
    make("empty", [](int) {});
    make("one_byte", [&](int fd) { put(fd, 0, random_bytes(1, random)); });
    make("whole", [&](int fd) { put(fd, 0, random_bytes(kSize, random)); });
    make("sparse", [&](int fd) {
        put(fd, 5000, random_bytes(100, random));
        put(fd, 400'000, random_bytes(70'000, random));
        if (::ftruncate(fd, kSize * 3) != 0) throw std::runtime_error("ftruncate");
    });
    make("far", [&](int fd) { put(fd, 300'000'000, random_bytes(5000, random)); });
    // Appended to in turns: neither gets one run.
    for (int i = 0; i < 40; ++i) {
        for (const char* name : {"turn1", "turn2"}) {
            const UniqueFd fd = open_or_throw(image.file(name), O_CREAT | O_WRONLY | O_APPEND);
            put(fd.get(), static_cast<uint64_t>(i) * 5000, random_bytes(5000, random));
            if (::fsync(fd.get()) != 0) throw std::runtime_error("fsync");
        }
    }
    files.push_back({"turn1", {}, {}});
    files.push_back({"turn2", {}, {}});
    make("shared_xattrs", [&](int fd) { put(fd, 0, random_bytes(9000, random)); });
    // Long and equal: the kernel lets both files share one block of them.
    const std::string value(700, 'x');
    for (const char* name : {"shared_xattrs", "turn1"}) {
        if (::setxattr(image.file(name).c_str(), "user.long", value.data(), value.size(), 0) != 0)
            throw std::runtime_error("setxattr");
    }
    if (extents) {
        make("punched", [&](int fd) {
            put(fd, 0, random_bytes(kSize, random));
            for (uint64_t at = 0; at < kSize; at += 20480)
                allocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, 4096);
        });
        make("allocated", [&](int fd) {
            allocate(fd, 0, 0, kSize);
            put(fd, 100'000, random_bytes(50'000, random));
        });
        make("kept_size", [&](int fd) {
            allocate(fd, FALLOC_FL_KEEP_SIZE, 0, kSize);
            put(fd, 0, random_bytes(70'001, random));
        });
    }
    if (::link(image.file("whole").c_str(), image.file("link").c_str()) != 0)
        throw std::runtime_error("link");
    for (KernelFile& file : files) {
        if (::stat(image.file(file.name).c_str(), &file.before) != 0)
            throw std::runtime_error("stat");
        file.bytes = load_image(image.file(file.name));
    }
    return files;
}

std::string value_of_xattr(const std::string& path) {
    std::string value(1000, '\0');
    const ssize_t n = ::getxattr(path.c_str(), "user.long", value.data(), value.size());
    value.resize(n < 0 ? 0 : static_cast<size_t>(n));
    return value;
}

struct Volumes {
    const char* name;
    std::vector<std::string> arguments;
    bool extents = true;
};

void PrintTo(const Volumes& it, std::ostream* out) {
    *out << it.name;
}

class AdoptKernel : public testing::TestWithParam<Volumes> {};

TEST_P(AdoptKernel, FilesThatTheKernelWrote) {
    A4_REQUIRE_ROOT();
    const Volumes& it = GetParam();
    std::vector<KernelFile> files;
    Image written;
    {
        MountedImage image(make_ext4(64 << 20, it.arguments));
        image.mount();
        files = make_files(image, it.extents);
        image.unmount();
        written = image.load();
    }
    if (!it.extents) {
        const TempDir dir;
        store_image(written, dir.file("image"));
        ASSERT_EQ(run_command({"tune2fs", "-O", "extent", dir.file("image")}).status, 0);
        written = load_image(dir.file("image"));
    }
    {
        MemoryDevice memory(written);
        must(enable(*open_volume(memory), {}));
        written = memory.contents();
    }
    {
        MemoryDevice memory(written);
        const auto volume = open_volume(memory, OpenFor::Read);
        const auto xattr_block = [&](const char* path) {
            const FileState file = must(read_file(*volume, must(lookup(*volume, path))));
            return ext2fs_file_acl_block(volume->fs(), &file.inode);
        };
        ASSERT_NE(xattr_block("/turn1"), 0u);
        ASSERT_EQ(xattr_block("/turn1"), xattr_block("/shared_xattrs"));
    }
    for (const uint64_t unit : {uint64_t{4096}, uint64_t{16384}, uint64_t{262144}}) {
        SCOPED_TRACE(unit);
        MemoryDevice memory(written);
        {
            const auto volume = open_volume(memory);
            for (const KernelFile& file : files) {
                const auto number = must(lookup(*volume, "/" + file.name));
                const ext2_inode inode = must(read_file(*volume, number)).inode;
                EXPECT_EQ((inode.i_flags & (EXT4_EXTENTS_FL | EXT4_INLINE_DATA_FL)) != 0,
                          it.extents);
                const auto report = adopt_file(*volume, number, Bytes(unit));
                ASSERT_TRUE(report) << file.name << ": " << report.error().message;
                EXPECT_TRUE(report->changed);
                const auto state = must(read_file(*volume, number));
                EXPECT_TRUE(state.atomic);
                EXPECT_EQ(must(check_layout(*volume, state, Bytes(unit))).problems, 0u)
                    << file.name;
            }
        }
        ASSERT_EQ(fsck_complaints(memory.contents()), "");

        MountedImage image(memory.contents());
        image.mount();
        for (const KernelFile& file : files) {
            SCOPED_TRACE(file.name);
            const std::string path = image.file(file.name);
            struct stat now{};
            ASSERT_EQ(::stat(path.c_str(), &now), 0);
            EXPECT_TRUE(load_image(path) == file.bytes);
            EXPECT_EQ(now.st_size, file.before.st_size);
            EXPECT_EQ(now.st_nlink, file.before.st_nlink);
            EXPECT_EQ(now.st_mode, file.before.st_mode);
            EXPECT_EQ(now.st_mtim.tv_sec, file.before.st_mtim.tv_sec);
            EXPECT_EQ(now.st_mtim.tv_nsec, file.before.st_mtim.tv_nsec);
            EXPECT_GE(now.st_ctim.tv_sec, file.before.st_ctim.tv_sec);
        }
        for (const char* name : {"shared_xattrs", "turn1"})
            EXPECT_EQ(value_of_xattr(image.file(name)), std::string(700, 'x'));
        // The kernel makes them longer, shorter, and writes into them; and deletes them.
        for (const KernelFile& file : files) {
            const UniqueFd fd = open_or_throw(image.file(file.name), O_RDWR);
            put(fd.get(), file.bytes.size() / 2, filled(10'000, 0x5a));
            put(fd.get(), file.bytes.size() + 5000, filled(30'000, 0xa5));
            ASSERT_EQ(::ftruncate(fd.get(), static_cast<off_t>(file.bytes.size() / 3)), 0);
            ASSERT_EQ(::fsync(fd.get()), 0);
        }
        ASSERT_EQ(::unlink(image.file("turn2").c_str()), 0);
        image.unmount();
        EXPECT_EQ(fsck_complaints(image.load()), "");
    }
}

INSTANTIATE_TEST_SUITE_P(
    Volumes, AdoptKernel,
    testing::Values(Volumes{"block1024", {"-b", "1024"}}, Volumes{"block2048", {"-b", "2048"}},
                    Volumes{"block4096", {"-b", "4096"}},
                    Volumes{"small_inodes", {"-b", "4096", "-I", "128"}},
                    Volumes{"no_checksums", {"-b", "1024", "-O", "^metadata_csum,^64bit"}},
                    Volumes{"inline_data", {"-b", "4096", "-O", "inline_data"}},
                    Volumes{"bigalloc", {"-b", "1024", "-O", "bigalloc", "-C", "16384"}},
                    Volumes{"indirect1024", {"-b", "1024", "-O", "^extent,^64bit"}, false},
                    Volumes{"indirect4096", {"-b", "4096", "-O", "^extent,^64bit"}, false}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace atomic4::test
