// What the mutants and the fuzzers have found, one by one.
#include <algorithm>

#include "support/damage.h"
#include "unit/volume_fixture.h"
#include "writer/enable.h"
#include "writer/open_volume.h"

namespace atomic4::test {
namespace {

using testing::HasSubstr;

// Recovered, so that nothing but the damage is in the way.
DamageBase recovered(uint64_t block_size) {
    DamageBase base = make_damage_base("recovered", block_size);
    MemoryDevice memory(base.image);
    must(recover(borrowed(memory), OnConflict::Keep));
    base.image = memory.contents();
    return base;
}

class FoundDamage : public testing::Test {
  protected:
    // Flips bits of a field, and makes its checksums right.
    void damage(DamageArea area, const std::string& name, std::vector<uint64_t> bits) {
        const auto places = base.places(area);
        const auto place = std::ranges::find(places, name, &DamagePlace::name);
        if (place == places.end()) throw std::runtime_error("no place " + name);
        Mutant{name, &*place, std::move(bits), true}.apply(base.image);
    }
    Result<std::vector<Mapping>> map_db(Lblk first, Blocks count) {
        MemoryDevice memory(base.image);
        const auto volume = open_volume(memory, OpenFor::Read, true);
        const FileState db = must(read_file(*volume, must(lookup(*volume, "/db"))));
        return map_range(*volume, db.number, db.inode, first, count);
    }
    void expect_unchanged(const MemoryDevice& memory) { EXPECT_EQ(memory.contents(), base.image); }

    DamageBase base = recovered(1024);
};

TEST_F(FoundDamage, AnInodeWithLinksIsNotTakenWhateverTheBitmapSays) {
    // All of group 0's inodes but the reserved ones, free by bitmap, count and checksum.
    const auto places = base.places(DamageArea::Bitmap);
    const auto place =
        std::ranges::find(places, "inode bitmap of group 0: begin", &DamagePlace::name);
    DamagePlace bitmap = *place;
    bitmap.bytes.length = 8;
    std::vector<uint64_t> bits;
    for (uint64_t bit = 11; bit < 64; ++bit) {
        const auto byte = std::to_integer<unsigned>(base.image[bitmap.bytes.offset + bit / 8]);
        if ((byte >> (bit % 8) & 1) != 0) bits.push_back(bit);
    }
    ASSERT_FALSE(bits.empty());
    Mutant{"", &bitmap, bits, true}.apply(base.image);
    MemoryDevice memory(base.image);
    const auto volume = open_volume(memory);
    const auto created = create_atomic_file(*volume, "/new", {Bytes(4096), Bytes(4096)});
    // Another group has room; the inodes that are in use stay what they are.
    ASSERT_TRUE(created) << message_of(created);
    EXPECT_GT(*created, volume->fs()->super->s_inodes_per_group);
    ASSERT_EQ(volume->inode_bitmaps().damaged().size(), 1);
    EXPECT_THAT(volume->inode_bitmaps().damaged().at(0).message,
                HasSubstr("calls inode 12 free, which is in use"));
}

TEST_F(FoundDamage, ADirectoryWhoseTreeCantBeOpenedIsNotEmpty) {
    damage(DamageArea::Inode, "inode of /: i_block 1", {12});  // eh_max
    MemoryDevice memory(base.image);
    const auto volume = open_volume(memory, OpenFor::Write, true);
    EXPECT_EQ(code_of(lookup(*volume, "/db")), EUCLEAN);
    EXPECT_EQ(code_of(lookup_new(*volume, "/new")), EUCLEAN);
    EXPECT_EQ(code_of(disable(*volume, true)), EUCLEAN);
    expect_unchanged(memory);
}

TEST_F(FoundDamage, NoEntryIsAddedNextToOneWithoutAName) {
    base = recovered(4096);
    damage(DamageArea::Directory, "directory the innermost directory, entry 2: name_len", {2});
    MemoryDevice memory(base.image);
    const auto volume = open_volume(memory, OpenFor::Write, true);
    const auto created =
        create_atomic_file(*volume, base.deep_directory + "/new", {Bytes(4096), Bytes(4096)});
    EXPECT_EQ(code_of(created), EUCLEAN);
    EXPECT_THAT(message_of(created), HasSubstr("an entry is damaged: the volume needs e2fsck"));
    expect_unchanged(memory);
}

TEST_F(FoundDamage, DisableFindsOutBeforeItReleasesAnything) {
    damage(DamageArea::Inode, "inode of /.atomic4/lock: i_file_acl", {3});
    MemoryDevice memory(base.image);
    const auto volume = open_volume(memory, OpenFor::Write, true);
    const auto done = disable(*volume, true);
    ASSERT_FALSE(done);
    EXPECT_NE(done.error().code, EIO) << done.error().message;
    expect_unchanged(memory);
}

TEST_F(FoundDamage, AnExtentThatClaimsAnInodeTableIsNotWritten) {
    const auto places = base.places(DamageArea::ExtentNode);
    const auto place =
        std::ranges::find(places, "extent tree of /db: node entry 0: ee_start", &DamagePlace::name);
    uint32_t now = 0;
    std::memcpy(&now, base.image.data() + place->bytes.offset, sizeof now);
    const uint32_t table = [&] {
        MemoryDevice memory(base.image);
        return static_cast<uint32_t>(ext2fs_inode_table_loc(open_volume(memory)->fs(), 0));
    }();
    std::vector<uint64_t> bits;
    for (uint64_t bit = 0; bit < 32; ++bit) {
        if (((now ^ table) >> bit & 1) != 0) bits.push_back(bit);
    }
    Mutant{"", &*place, bits, true}.apply(base.image);
    MemoryDevice memory(base.image);
    auto writer = must(AtomicWriter::open(must(open_for_writing(borrowed(memory)))));
    const ext2_ino_t db = must(lookup(writer->volume(), "/db"));
    const auto page = filled(base.unit, 1);
    const auto written =
        writer->write({db, must(writer->file(db)).generation, ByteOffset(0), page});
    EXPECT_EQ(code_of(written), EUCLEAN);
    EXPECT_THAT(message_of(written), HasSubstr("at impossible block"));
    expect_unchanged(memory);
}

TEST_F(FoundDamage, AnExtentThatCoversOthersIsSeen) {
    damage(DamageArea::ExtentNode, "extent tree of /db: node entry 1: ee_len", {6});
    const auto mapped = map_db(Lblk(0), Blocks(1000));
    EXPECT_EQ(code_of(mapped), EUCLEAN);
    EXPECT_THAT(message_of(mapped), HasSubstr("overlapping extents"));
}

// Skipped as one that had been seen, its blocks would belong to nobody.
TEST_F(FoundDamage, AnExtentOutOfOrderIsSeen) {
    damage(DamageArea::ExtentNode, "extent tree of /db: node entry 1: ee_block", {7});
    const auto mapped = map_db(Lblk(0), kWholeFile);
    EXPECT_EQ(code_of(mapped), EUCLEAN);
    EXPECT_THAT(message_of(mapped), HasSubstr("overlapping extents at 64"));
}

TEST_F(FoundDamage, ATreeWithoutWhatItsHeaderSaysIsDamageAndNoIoError) {
    damage(DamageArea::ExtentNode, "extent tree of /db: node: eh_entries", {3});
    EXPECT_EQ(code_of(map_db(Lblk(0), kWholeFile)), EUCLEAN);
    EXPECT_EQ(code_of(map_db(Lblk(64), Blocks(16))), EUCLEAN);
}

// To libext2fs it is an empty one; an extent put in would be taken for a node.
TEST_F(FoundDamage, NothingIsAddedToATreeWithLevelsAndNoEntry) {
    damage(DamageArea::Inode, "inode of /db: i_block 0", {16});
    MemoryDevice memory(base.image);
    auto writer = must(AtomicWriter::open(must(open_for_writing(borrowed(memory)))));
    const ext2_ino_t db = must(lookup(writer->volume(), "/db"));
    const auto page = filled(base.unit, 1);
    const auto written =
        writer->write({db, must(writer->file(db)).generation, ByteOffset(0), page});
    EXPECT_EQ(code_of(written), EUCLEAN);
    EXPECT_THAT(message_of(written), HasSubstr("it has levels, but no entry"));
    expect_unchanged(memory);
}

TEST_F(FoundDamage, APointerBeyondTheVolumeIsDamageAndNoWrongArgument) {
    damage(DamageArea::Inode, "inode of /.atomic4: i_block 5", {30});
    MemoryDevice memory(base.image);
    const auto volume = open_volume(memory, OpenFor::Read, true);
    const auto found = lookup(*volume, "/.atomic4/log");
    EXPECT_EQ(code_of(found), EUCLEAN);
    EXPECT_THAT(message_of(found), HasSubstr("needs e2fsck"));
}

}  // namespace
}  // namespace atomic4::test
