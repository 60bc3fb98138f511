// Multiple mount protection, on image files: libext2fs reads the MMP block by their names. Claiming
// a volume takes its protocol 11 seconds; so few tests do it, each for several things.
#include <ext2fs/ext2fs.h>

#include "device/file_device.h"
#include "unit/volume_fixture.h"
#include "writer/atomic_writer.h"

namespace atomic4::test {
namespace {

constexpr uint64_t kSize = uint64_t{16} << 20;

class Mmp : public testing::Test {
  protected:
    Mmp() {
        store_image(make_ext4(kSize, {"-b", "1024", "-O", "mmp"}), path());
        const ext2_super_block super = super_of(load_image(path()));
        block_ = super.s_mmp_block * 1024;
    }
    std::string path() const { return dir_.file("image"); }
    std::unique_ptr<Device> device() const {
        return must(FileDevice::open(path(), {Access::ReadWrite, true}));
    }
    Result<std::unique_ptr<Volume>> open(OpenFor purpose, bool clear = false) const {
        VolumeOptions options;
        options.purpose = purpose;
        options.require_atomic4 = false;
        options.clear_mmp = clear;
        return Volume::open(device(), options);
    }
    uint32_t sequence() const {
        mmp_struct mmp{};
        std::memcpy(&mmp, load_image(path()).data() + block_, sizeof mmp);
        return mmp.mmp_seq;
    }
    // As somebody else left it.
    void mark(uint32_t sequence) {
        Image image = load_image(path());
        mmp_struct mmp{};
        std::memcpy(&mmp, image.data() + block_, sizeof mmp);
        mmp.mmp_seq = sequence;
        mmp.mmp_time = 1'700'000'000;
        std::memcpy(mmp.mmp_nodename, "otherhost", sizeof "otherhost");
        const ext2_super_block super = super_of(image);
        const uint32_t seed = crc32c(~0u, std::as_bytes(std::span(super.s_uuid)));
        mmp.mmp_checksum = crc32c(
            seed, std::as_bytes(std::span(&mmp, 1)).first(offsetof(mmp_struct, mmp_checksum)));
        std::memcpy(image.data() + block_, &mmp, sizeof mmp);
        store_image(image, path());
    }

    TempDir dir_;
    uint64_t block_ = 0;
};

TEST_F(Mmp, MarkedWhileOpenForWriting) {
    {
        const auto volume = must(open(OpenFor::Write));
        EXPECT_EQ(sequence(), EXT4_MMP_SEQ_FSCK);
        must(enable(*volume, {}));
        EXPECT_EQ(sequence(), EXT4_MMP_SEQ_FSCK);
    }
    EXPECT_EQ(sequence(), EXT4_MMP_SEQ_CLEAN);
    EXPECT_EQ(fsck_complaints(load_image(path())), "");
    // For reading it need only be free.
    EXPECT_TRUE(open(OpenFor::Read));
    EXPECT_EQ(sequence(), EXT4_MMP_SEQ_CLEAN);
}

TEST_F(Mmp, InUseIsRefusedWithWho) {
    mark(EXT4_MMP_SEQ_FSCK);
    const Image before = load_image(path());
    for (const OpenFor purpose : {OpenFor::Read, OpenFor::Write}) {
        const auto opened = open(purpose);
        EXPECT_EQ(code_of(opened), EBUSY);
        EXPECT_THAT(message_of(opened),
                    testing::AllOf(testing::HasSubstr("host otherhost"),
                                   testing::HasSubstr("last seen 2023-11-14 22:13:20 UTC"),
                                   testing::HasSubstr("tune2fs -f -E clear_mmp")));
    }
    EXPECT_TRUE(open(OpenFor::Inspect));
    EXPECT_TRUE(load_image(path()) == before);
}

// A kernel's mark is nobody's to clear: it may be alive.
TEST_F(Mmp, OnlyACrashedCheckIsCleared) {
    mark(12345);
    const Image before = load_image(path());
    EXPECT_EQ(code_of(open(OpenFor::Write, true)), EBUSY);
    EXPECT_TRUE(load_image(path()) == before);
    mark(EXT4_MMP_SEQ_FSCK);
    {
        const auto volume = open(OpenFor::Write, true);
        ASSERT_TRUE(volume) << message_of(volume);
        // Another host has taken it in spite of all: nothing more is written.
        mark(4711);
        (*volume)->fs()->mmp_last_written = 0;
        Transaction transaction(**volume);
        EXPECT_EQ(code_of(transaction.commit()), EIO);
        EXPECT_EQ(code_of((*volume)->usable()), EIO);
    }
    EXPECT_EQ(sequence(), 4711u);
}

// What only fsck.atomic4 can settle is refused all the same: but it isn't kept out by the mark.
TEST_F(Mmp, ClearedAlsoWhereErrorsAreRecorded) {
    Image image = load_image(path());
    edit_super(image, [](ext2_super_block& super) { super.s_state |= EXT2_ERROR_FS; });
    store_image(image, path());
    mark(EXT4_MMP_SEQ_FSCK);
    const auto opened = open(OpenFor::Write, true);
    EXPECT_EQ(code_of(opened), EUCLEAN);
    EXPECT_THAT(message_of(opened), testing::HasSubstr("fsck.atomic4 -f"));
    EXPECT_EQ(sequence(), EXT4_MMP_SEQ_CLEAN);
}

TEST_F(Mmp, ADamagedBlockIsRefused) {
    Image image = load_image(path());
    image[block_ + offsetof(mmp_struct, mmp_seq)] ^= std::byte{1};
    store_image(image, path());
    const auto opened = open(OpenFor::Write);
    EXPECT_EQ(code_of(opened), EUCLEAN);
    EXPECT_THAT(message_of(opened), testing::HasSubstr("MMP block is damaged"));
}

TEST_F(Mmp, MemoryHasNoName) {
    const auto opened = try_open(load_image(path()), OpenFor::Write);
    EXPECT_EQ(code_of(opened), EOPNOTSUPP);
    EXPECT_THAT(message_of(opened), testing::HasSubstr("MMP block"));
    EXPECT_TRUE(try_open(load_image(path()), OpenFor::Inspect));
}

}  // namespace
}  // namespace atomic4::test
