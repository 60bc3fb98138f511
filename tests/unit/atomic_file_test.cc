// Creating and releasing atomic files.
#include "ext4/atomic_file.h"

#include <ctime>
#include <random>
#include <set>

#include "ext4/format.h"
#include "ext4/xattr.h"
#include "redo/log_reader.h"
#include "redo/volume_log.h"
#include "support/fault_device.h"
#include "unit/volume_fixture.h"
#include "writer/open_volume.h"

namespace atomic4::test {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr uint64_t kSize = 16 << 20;

// What debugfs stat says of a path.
std::string debugfs_stat(const Image& image, const std::string& path) {
    const TempDir dir;
    store_image(without_our_bits(image), dir.file("image"));
    return run_command({"debugfs", "-R", "stat " + path, dir.file("image")}).output;
}

// --- Creating ------------------------------------------------------------------------------------

TEST(CreateFile, SizesAndUnits) {
    for (const char* block : {"1024", "2048", "4096"}) {
        Opened o(dirty(block));
        const uint64_t bs = o.volume->block_size().value();
        int n = 0;
        std::set<uint32_t> generations;
        for (const uint64_t unit : {bs, uint64_t{4096}, uint64_t{16384}, uint64_t{1} << 20}) {
            for (const uint64_t size : {uint64_t{0}, uint64_t{1}, bs, unit - 1, unit, unit + 1,
                                        2 * unit + 777, uint64_t{100'000}}) {
                SCOPED_TRACE(testing::Message() << block << ": " << size << " in " << unit);
                if (size > 1 << 21) continue;
                const std::string path = fmt::format("/f{}", n++);
                const uint64_t free = o.free_blocks();
                const auto number =
                    must(create_atomic_file(*o.volume, path, {Bytes(size), Bytes(unit)}));
                EXPECT_EQ(must(lookup(*o.volume, path)), number);
                const FileState file = o.state(number);
                EXPECT_TRUE(file.atomic);
                EXPECT_EQ(file.unit, Bytes(unit));
                EXPECT_EQ(file.size, Bytes(size));
                EXPECT_TRUE(file.extent_mapped());
                EXPECT_NE(file.generation, 0u);
                EXPECT_TRUE(generations.insert(file.generation).second);
                const uint64_t units = (size + unit - 1) / unit;
                const LayoutReport report = must(check_layout(*o.volume, file, Bytes(unit)));
                EXPECT_EQ(report.problems, 0u);
                EXPECT_EQ(report.units_mapped, units);
                EXPECT_LE(free - o.free_blocks(), units * unit / bs + 1);
                // Zeros up to the end, whatever the blocks held.
                const Image content = dump_file(o.image(), path);
                EXPECT_EQ(content.size(), size);
                EXPECT_TRUE(std::all_of(content.begin(), content.end(),
                                        [](std::byte b) { return b == std::byte{0}; }));
                if (o.free_blocks() * bs < 5u << 20) {
                    Transaction transaction(*o.volume);
                    must(unlink_name(*o.volume, {EXT2_ROOT_INO, path.substr(1)}, number));
                    must(stage_delete(*o.volume, number));
                    must(transaction.commit(Transaction::Order::Freeing));
                    EXPECT_EQ(o.free_blocks(), free);
                }
            }
        }
        EXPECT_EQ(fsck_complaints(o.image()), "");
    }
}

// (time(2)'s clock is a coarser one: it can say a second less than what was stamped before.)
uint32_t seconds_now() {
    timespec now{};
    clock_gettime(CLOCK_REALTIME, &now);
    return static_cast<uint32_t>(now.tv_sec);
}

TEST(CreateFile, Attributes) {
    for (const char* inode_size : {"128", "256", "1024"}) {
        SCOPED_TRACE(inode_size);
        Opened o(dirty("1024", {"-I", inode_size}));
        const auto before = seconds_now();
        NewFile file{Bytes(65536), Bytes(16384), 02640, 0x12345678, 0x9abcdef0};
        const auto number = must(create_atomic_file(*o.volume, "/f", file));
        const auto after = seconds_now();
        const ext2_inode inode = o.state(number).inode;
        EXPECT_EQ(inode.i_mode, LINUX_S_IFREG | 02640);
        EXPECT_EQ(inode_uid(inode), 0x12345678u);
        EXPECT_EQ(inode_gid(inode), 0x9abcdef0u);
        EXPECT_EQ(inode.i_links_count, 1);
        for (const uint32_t when : {inode.i_atime, inode.i_ctime, inode.i_mtime}) {
            EXPECT_GE(when, before);
            EXPECT_LE(when, after);
        }
        EXPECT_EQ(inode.i_dtime, 0u);
        EXPECT_EQ(must(read_xattr(o.volume->fs(), number, kUnitXattr)), "16384");
        const std::string stock = debugfs_stat(o.image(), "/f");
        EXPECT_THAT(stock, HasSubstr("User: 305419896"));
        EXPECT_THAT(stock, HasSubstr("Mode:  02640"));
        EXPECT_THAT(stock, HasSubstr("trusted.atomic4.unit (5) = \"16384\""));
        EXPECT_EQ(fsck_complaints(o.image()), "");
        // The directory was touched.
        EXPECT_GE(o.state(EXT2_ROOT_INO).inode.i_mtime, before);
        // Type bits of a mode are not taken.
        file.mode = LINUX_S_IFDIR | 0600;
        EXPECT_EQ(o.state(must(create_atomic_file(*o.volume, "/g", file))).inode.i_mode,
                  LINUX_S_IFREG | 0600);
        must(release_file(*o.volume, number));
        EXPECT_EQ(fsck_complaints(o.image()), "");
    }
}

// As for the kernel: repeated slashes are one, and what a slash follows is a directory.
TEST(Paths, Slashes) {
    Opened o(debugfs(dirty(), {"mkdir /dir", "symlink /to_dir /dir"}));
    const auto file = must(create_atomic_file(*o.volume, "//dir///f", {Bytes(0), Bytes(4096)}));
    for (const char* path : {"/dir/f", "//dir//f", "dir/f", "/to_dir//f", "/./dir/.//f"})
        EXPECT_EQ(must(lookup(*o.volume, path)), file) << path;
    for (const char* path : {"/dir", "/dir/", "//dir//", "/to_dir/"})
        EXPECT_EQ(must(lookup(*o.volume, path)), must(lookup(*o.volume, "/dir"))) << path;
    for (const char* path : {"/", "//", "///"})
        EXPECT_EQ(must(lookup(*o.volume, path)), EXT2_ROOT_INO) << path;
    EXPECT_EQ(code_of(lookup(*o.volume, "/dir/f/")), ENOTDIR);
    EXPECT_EQ(code_of(lookup(*o.volume, "")), ENOENT);
}

// Not even zeros are written through a volume that is in doubt.
TEST(CreateFile, OnAPoisonedVolume) {
    Opened o(dirty());
    const Image before = o.image();
    o.volume->poison(Error{EIO, "in doubt, as after a failed flush"});
    const auto made = create_atomic_file(*o.volume, "/new", {Bytes(65536), Bytes(4096)});
    EXPECT_EQ(code_of(made), EIO);
    EXPECT_THAT(message_of(made), HasSubstr("in doubt"));
    EXPECT_TRUE(o.image() == before);
}

TEST(CreateFile, Errors) {
    Opened o(debugfs(dirty(), {"mkdir /dir", "symlink /loop /loop", "symlink /to_dir /dir",
                               "symlink /dir/up ../dir", "symlink /dangling /nowhere"}));
    must(create_atomic_file(*o.volume, "/file", {Bytes(0), Bytes(4096)}));
    const Image before = o.image();
    const NewFile file{Bytes(4096), Bytes(4096)};
    struct Row {
        std::string path;
        int code;
    };
    for (const Row& row : {Row{"/file", EEXIST},
                           {"/dir", EEXIST},
                           {"/dangling", EEXIST},
                           {"/.atomic4/log", EEXIST},
                           {"/.atomic4/new", EPERM},
                           {"/.atomic4/../.atomic4/new", EPERM},
                           {"/nowhere/f", ENOENT},
                           {"/dangling/f", ENOENT},
                           {"/file/f", ENOTDIR},
                           {"/loop/f", ELOOP},
                           {"/", EINVAL},
                           {"", EINVAL},
                           {"/.", EINVAL},
                           {"/dir/..", EINVAL},
                           {"/new/", EISDIR},
                           {"/new//", EISDIR},
                           {"/dir/", EISDIR},
                           {"/file/", EISDIR},
                           {"//dir//file/f", ENOENT},
                           {"/" + std::string(256, 'x'), ENAMETOOLONG}}) {
        const auto made = create_atomic_file(*o.volume, row.path, file);
        EXPECT_EQ(code_of(made), row.code) << row.path << ": " << message_of(made);
        if (row.path.size() > 1) {
            EXPECT_THAT(message_of(made), HasSubstr(row.path.substr(0, 5)));
        }
    }
    for (const uint64_t unit : {0u, 1u, 512u, 3072u, 5000u, 12288u, 8u << 20}) {
        const auto made = create_atomic_file(*o.volume, "/new", {Bytes(4096), Bytes(unit)});
        EXPECT_EQ(code_of(made), EINVAL) << unit;
        EXPECT_THAT(message_of(made), HasSubstr("want a power of two from 1024"));
    }
    EXPECT_EQ(
        code_of(create_atomic_file(*o.volume, "/new", {Bytes(uint64_t{1} << 43), Bytes(16384)})),
        EFBIG);
    EXPECT_TRUE(o.image() == before);
    // What is allowed.
    must(create_atomic_file(*o.volume, "/" + std::string(255, 'x'), file));
    must(create_atomic_file(*o.volume, "relative", file));
    const auto linked = must(create_atomic_file(*o.volume, "/to_dir/up/f", file));
    EXPECT_EQ(must(lookup(*o.volume, "/dir/f")), linked);
    EXPECT_EQ(must(paths_of(*o.volume, {linked})).at(linked), "/dir/f");
    EXPECT_EQ(fsck_complaints(o.image()), "");
}

TEST(CreateFile, NoSpaceChangesNothing) {
    for (const char* block : {"1024", "4096"}) {
        SCOPED_TRACE(block);
        Opened o(dirty(block));
        const Image empty = o.image();
        EXPECT_EQ(code_of(create_atomic_file(*o.volume, "/f", {Bytes(20 << 20), Bytes(16384)})),
                  ENOSPC);
        EXPECT_TRUE(o.image() == empty);
        fill_up(*o.volume, 1);
        const Image before = o.image();
        EXPECT_EQ(code_of(create_atomic_file(*o.volume, "/f",
                                             {o.volume->block_size() * 2, o.volume->block_size()})),
                  ENOSPC);
        EXPECT_TRUE(o.image() == before);
        EXPECT_EQ(code_of(o.volume->usable()), 0);
        must(create_atomic_file(*o.volume, "/f", {o.volume->block_size(), o.volume->block_size()}));
        must(create_atomic_file(*o.volume, "/g", {Bytes(0), Bytes(16384)}));
        EXPECT_EQ(o.free_blocks(), 0u);
        EXPECT_EQ(fsck_complaints(o.image()), "");
    }
}

// A file of single blocks far apart needs tree blocks; when those are missing it is ENOSPC too.
TEST(CreateFile, NoSpaceForTheTree) {
    Opened o(dirty("1024"));
    {
        Transaction transaction(*o.volume);
        // Every other block of what is free, no more than 40.
        while (o.volume->allocator().allocate(6, Pblk(0))) {
        }
        while (o.volume->allocator().allocate(0, Pblk(0))) {
        }
        for (uint64_t i = 0; i < 40; ++i)
            must(o.volume->allocator().free({Pblk(9000 + 2 * i), Blocks(1)}));
        must(transaction.commit());
    }
    const Image before = o.image();
    EXPECT_EQ(code_of(create_atomic_file(*o.volume, "/f", {Bytes(40 * 1024), Bytes(1024)})),
              ENOSPC);
    EXPECT_TRUE(o.image() == before);
    const auto number = must(create_atomic_file(*o.volume, "/f", {Bytes(39 * 1024), Bytes(1024)}));
    EXPECT_EQ(must(check_layout(*o.volume, o.state(number), Bytes(1024))).problems, 0u);
    EXPECT_EQ(o.free_blocks(), 0u);
}

TEST(CreateFile, NoInodes) {
    Opened o(make_dirty_atomic4(4 << 20, {"-b", "1024", "-N", "32"}));
    const NewFile file{Bytes(1024), Bytes(1024)};
    int made = 0;
    while (create_atomic_file(*o.volume, fmt::format("/f{}", made), file)) ++made;
    EXPECT_GT(made, 5);
    EXPECT_EQ(o.volume->fs()->super->s_free_inodes_count, 0u);
    const Image before = o.image();
    const auto refused = create_atomic_file(*o.volume, "/more", file);
    EXPECT_EQ(code_of(refused), ENOSPC);
    EXPECT_THAT(message_of(refused), HasSubstr("no free inode"));
    EXPECT_TRUE(o.image() == before);
    EXPECT_EQ(fsck_complaints(o.image()), "");
}

// The directory must grow and can't.
TEST(CreateFile, NoSpaceForTheDirectory) {
    Opened o(dirty("1024"));
    const NewFile empty{Bytes(0), Bytes(1024)};
    // Long names fill the first block of the root directory.
    int n = 0;
    const auto name = [&] { return fmt::format("/{:0>200}", n); };
    const auto root_size = [&] { return o.state(EXT2_ROOT_INO).size; };
    const Bytes size = root_size();
    fill_up(*o.volume, 0);
    Result<ext2_ino_t> made = 0u;
    Image before;
    while (made) {
        before = o.image();
        made = create_atomic_file(*o.volume, name(), empty);
        ++n;
        ASSERT_LT(n, 100);
    }
    EXPECT_EQ(code_of(made), ENOSPC) << message_of(made);
    EXPECT_TRUE(o.image() == before);
    EXPECT_EQ(root_size(), size);
    EXPECT_EQ(code_of(o.volume->usable()), 0);
    EXPECT_EQ(fsck_complaints(o.image()), "");
}

TEST(CreateFile, LargeDirectories) {
    // With 128-byte inodes every file takes a block for its unit: libext2fs allocates for itself in
    // two ways in one operation.
    for (const auto& [hashed, inode_size] :
         {std::pair{false, "256"}, std::pair{true, "256"}, std::pair{true, "128"}}) {
        SCOPED_TRACE(testing::Message() << (hashed ? "hashed " : "linear ") << inode_size);
        constexpr int kBefore = 1200;
        constexpr int kAfter = 1800;
        Image image = make_dirty_atomic4(kSize, {"-b", "1024", "-N", "4096", "-I", inode_size, "-O",
                                                 hashed ? "dir_index" : "^dir_index"});
        image = debugfs(image, {"mkdir /dir"});
        const auto path = [](int i) { return fmt::format("/dir/some_longer_name_{}", i * 7919); };
        const NewFile file{Bytes(0), Bytes(1024)};
        {
            Opened o(image);
            for (int i = 0; i < kBefore; ++i) must(create_atomic_file(*o.volume, path(i), file));
            image = o.image();
        }
        if (hashed) {
            // e2fsck makes it a hashed one, as the kernel would have.
            const Fsck optimised = e2fsck(image, {"-fyD"}, &image);
            ASSERT_LE(optimised.status, 1) << optimised.output;
            EXPECT_EQ(fsck_complaints(image), "");
        }
        Opened o(image);
        if (hashed) {
            EXPECT_NE(o.state(must(lookup(*o.volume, "/dir"))).inode.i_flags & EXT2_INDEX_FL, 0u);
        }
        for (int i = kBefore; i < kBefore + kAfter; ++i) {
            const auto made = create_atomic_file(*o.volume, path(i), file);
            ASSERT_TRUE(made) << message_of(made);
        }
        EXPECT_EQ(fsck_complaints(o.image()), "");
        std::set<ext2_ino_t> inodes;
        for (int i = 0; i < kBefore + kAfter; ++i)
            EXPECT_TRUE(inodes.insert(must(lookup(*o.volume, path(i)))).second);
        EXPECT_EQ(code_of(create_atomic_file(*o.volume, path(5), file)), EEXIST);
    }
}

// A failed write or flush at any moment: either all is undone, or the volume says "in doubt".
TEST(CreateFile, FailedWritesAreUndoneOrInDoubt) {
    const Image image = dirty("1024");
    const NewFile file{Bytes(40'000), Bytes(16384)};
    uint64_t calls = 0;
    {
        MemoryDevice memory(image);
        FaultDevice faults(memory);
        faults.count_only({false, true, true, true});
        const auto volume = open_volume(faults, OpenFor::Write, true);
        must(create_atomic_file(*volume, "/f", file));
        calls = faults.calls();
    }
    ASSERT_GE(calls, 6u);
    int undone = 0;
    for (uint64_t n = 0; n < calls; ++n) {
        for (const bool torn : {false, true}) {
            SCOPED_TRACE(testing::Message() << "call " << n << (torn ? " torn" : ""));
            MemoryDevice memory(image);
            FaultDevice faults(memory);
            faults.count_only({false, true, true, true});
            faults.set_torn(torn);
            const auto volume = open_volume(faults, OpenFor::Write, true);
            faults.fail_at(n, EIO, false);
            const auto made = create_atomic_file(*volume, "/f", file);
            ASSERT_EQ(code_of(made), EIO) << message_of(made);
            if (!volume->usable()) {
                EXPECT_THAT(message_of(made), HasSubstr("in doubt"));
                EXPECT_EQ(code_of(create_atomic_file(*volume, "/g", file)), EIO);
                continue;
            }
            ++undone;
            EXPECT_EQ(fsck_complaints(memory.contents()), "");
            EXPECT_EQ(code_of(lookup(*volume, "/f")), ENOENT);
            must(create_atomic_file(*volume, "/f", file));
            EXPECT_EQ(fsck_complaints(memory.contents()), "");
        }
    }
    EXPECT_GT(undone, 0);
}

// Failed reads: an error or, where libext2fs swallows it, a volume that refuses to go on.
TEST(CreateFile, FailedReads) {
    const Image image = dirty("1024");
    const NewFile file{Bytes(40'000), Bytes(16384)};
    MemoryDevice memory(image);
    FaultDevice faults(memory);
    faults.count_only({true, false, false, false});
    uint64_t calls = 0;
    {
        const auto volume = open_volume(faults, OpenFor::Write, true);
        faults.reset();
        must(create_atomic_file(*volume, "/f", file));
        calls = faults.calls();
    }
    for (uint64_t n = 0; n < calls; ++n) {
        SCOPED_TRACE(n);
        memory.contents() = image;
        faults.reset();
        const auto volume = open_volume(faults, OpenFor::Write, true);
        faults.reset();
        faults.fail_at(n, EIO, false);
        const auto made = create_atomic_file(*volume, "/f", file);
        EXPECT_FALSE(made);
        EXPECT_EQ(fsck_complaints(memory.contents()), "");
    }
}

// --- Attributes in the way -----------------------------------------------------------------------

TEST(Xattrs, SetReplaceRemove) {
    for (const char* inode_size : {"128", "256", "512"}) {
        SCOPED_TRACE(inode_size);
        Opened o(dirty("1024", {"-I", inode_size}));
        const auto number = must(create_atomic_file(*o.volume, "/f", {Bytes(0), Bytes(1024)}));
        const uint64_t free = o.free_blocks();
        const auto set = [&](const char* name,
                             const std::optional<std::string>& value) -> Result<> {
            Transaction transaction(*o.volume);
            A4_CHECK(write_xattr(o.volume->fs(), number, name, value));
            return transaction.commit();
        };
        must(set("user.small", "x"));
        must(set("user.large", std::string(700, 'y')));  // needs a block
        EXPECT_EQ(must(read_xattr(o.volume->fs(), number, "user.small")), "x");
        EXPECT_EQ(must(read_xattr(o.volume->fs(), number, "user.large"))->size(), 700u);
        EXPECT_EQ(must(read_xattr(o.volume->fs(), number, kUnitXattr)), "1024");
        EXPECT_EQ(fsck_complaints(o.image()), "");
        const Image before = o.image();
        EXPECT_EQ(code_of(set("user.too_large", std::string(2000, 'z'))), ENOSPC);
        EXPECT_TRUE(o.image() == before);
        must(set("user.large", std::nullopt));
        must(set("user.small", std::nullopt));
        must(set("user.absent", std::nullopt));
        EXPECT_EQ(must(read_xattr(o.volume->fs(), number, "user.large")), std::nullopt);
        // libext2fs may leave what moved to a block in that block.
        EXPECT_GE(o.free_blocks() + 1, free);
        EXPECT_EQ(fsck_complaints(o.image()), "");
    }
}

TEST(Release, KeepsTheDataAndOtherAttributes) {
    for (const char* inode_size : {"128", "256"}) {
        Opened o(dirty("1024", {"-I", inode_size}));
        const auto number =
            must(create_atomic_file(*o.volume, "/f", {Bytes(40'000), Bytes(16384)}));
        {
            Transaction transaction(*o.volume);
            must(write_xattr(o.volume->fs(), number, "user.mine", std::string(600, 'q')));
            must(transaction.commit());
        }
        const auto mappings = [&] {
            return must(map_range(*o.volume, number, o.state(number).inode, Lblk(0), Blocks(64)));
        };
        const auto before = mappings();
        EXPECT_THAT(must(find_atomic_inodes(*o.volume)),
                    ElementsAre(o.volume->attr()->log_inode, number));
        must(release_file(*o.volume, number));
        EXPECT_FALSE(o.state(number).atomic);
        EXPECT_FALSE(o.state(number).unit);
        EXPECT_EQ(mappings(), before);
        EXPECT_EQ(must(read_xattr(o.volume->fs(), number, "user.mine"))->size(), 600u);
        EXPECT_THAT(must(find_atomic_inodes(*o.volume)), ElementsAre(o.volume->attr()->log_inode));
        // Again, and without any attribute: nothing to do.
        must(release_file(*o.volume, number));
        EXPECT_EQ(fsck_complaints(o.image()), "");
    }
}

TEST(ReadFile, Gone) {
    Opened o(dirty());
    const auto number = must(create_atomic_file(*o.volume, "/f", {Bytes(0), Bytes(1024)}));
    const uint32_t generation = o.state(number).generation;
    EXPECT_TRUE(read_file(*o.volume, number, generation));
    EXPECT_EQ(code_of(read_file(*o.volume, number, generation + 1)), ESTALE);
    EXPECT_EQ(code_of(read_file(*o.volume, 0)), ESTALE);
    EXPECT_EQ(code_of(read_file(*o.volume, 1 << 30)), ESTALE);
    EXPECT_EQ(code_of(read_file(*o.volume, number + 1)), ESTALE);
    // A damaged unit is there, but none.
    Transaction transaction(*o.volume);
    for (const char* text : {"", "x", "16K", "3000", "8388608", "-4096", "4096 "}) {
        must(write_xattr(o.volume->fs(), number, kUnitXattr, text));
        EXPECT_EQ(o.state(number).unit, Bytes(0)) << text;
    }
}

}  // namespace
}  // namespace atomic4::test
