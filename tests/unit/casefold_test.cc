// Casefolded directories: one name for all spellings that fold to the same.
#include "unit/volume_fixture.h"

namespace atomic4::test {
namespace {

constexpr uint64_t kSize = uint64_t{16} << 20;

// /Folded is casefolded, /plain is not; both hold Straße.txt and MixedCase.
Image folded() {
    const TempDir dir;
    store_image(filled(10, 0x41), dir.file("a"));
    std::vector<std::string> commands;
    for (const char* directory : {"/Folded", "/plain"}) {
        commands.push_back(fmt::format("mkdir {}", directory));
        for (const char* name : {"MixedCase", "Stra\u00dfe.txt", "sub"})
            commands.push_back(fmt::format("write {} {}/{}", dir.file("a"), directory, name));
    }
    // EXT4_CASEFOLD_FL
    commands.emplace_back("set_inode_field /Folded flags 0x40080000");
    MemoryDevice memory(debugfs(make_ext4(kSize, {"-b", "1024", "-O", "casefold"}), commands));
    const auto volume = open_volume(memory);
    must(enable(*volume, {}));
    return memory.contents();
}

TEST(Casefold, AnySpellingIsFound) {
    MemoryDevice memory(folded());
    ASSERT_EQ(fsck_complaints(memory.contents()), "");
    const auto volume = open_volume(memory);
    const ext2_ino_t mixed = must(lookup(*volume, "/Folded/MixedCase"));
    for (const char* name : {"mixedcase", "MIXEDCASE", "mixedCASE"})
        EXPECT_EQ(must(lookup(*volume, fmt::format("/Folded/{}", name))), mixed) << name;
    const ext2_ino_t street = must(lookup(*volume, "/Folded/Stra\u00dfe.txt"));
    EXPECT_EQ(must(lookup(*volume, "/Folded/STRASSE.TXT")), street);
    EXPECT_EQ(code_of(lookup(*volume, "/Folded/MixedCases")), ENOENT);
    EXPECT_EQ(code_of(lookup(*volume, "/Folded/Mixed")), ENOENT);
    // What is no UTF-8 equals nothing.
    EXPECT_EQ(code_of(lookup(*volume, "/Folded/mixedcas\xff")), ENOENT);
    // The flag is a directory's own.
    EXPECT_EQ(code_of(lookup(*volume, "/folded/MixedCase")), ENOENT);
    EXPECT_EQ(code_of(lookup(*volume, "/plain/mixedcase")), ENOENT);
    EXPECT_TRUE(lookup(*volume, "/plain/MixedCase"));
    EXPECT_EQ(must(lookup(*volume, "/Folded/..")), static_cast<ext2_ino_t>(EXT2_ROOT_INO));
}

TEST(Casefold, OnlyTheKernelMakesNamesThere) {
    MemoryDevice memory(folded());
    const auto volume = open_volume(memory);
    const Image before = memory.contents();
    const NewFile file{Bytes(1024), Bytes(1024)};
    const auto made = create_atomic_file(*volume, "/Folded/new", file);
    EXPECT_EQ(code_of(made), EOPNOTSUPP);
    EXPECT_THAT(message_of(made), testing::HasSubstr("casefolded directory"));
    EXPECT_EQ(code_of(create_atomic_file(*volume, "/Folded/MIXEDCASE", file)), EEXIST);
    EXPECT_TRUE(memory.contents() == before);
    EXPECT_TRUE(create_atomic_file(*volume, "/plain/new", file));
    EXPECT_EQ(fsck_complaints(memory.contents()), "");
}

// enable would have to make /.atomic4.
TEST(Casefold, ARootDirectoryIsRefused) {
    MemoryDevice memory(debugfs(make_ext4(kSize, {"-b", "1024", "-O", "casefold"}),
                                {"set_inode_field / flags 0x40080000"}));
    const auto volume = open_volume(memory);
    const Image before = memory.contents();
    EXPECT_EQ(code_of(enable(*volume, {})), EOPNOTSUPP);
    EXPECT_TRUE(memory.contents() == before);
}

}  // namespace
}  // namespace atomic4::test
