// What tools see of superblocks, and what lies on the device, after every single write.
#include "guard/superblock_mask.h"

#include <gmock/gmock.h>

#include <cstring>
#include <random>

#include "base/crc32c.h"
#include "device/forwarding_device.h"
#include "ext4/format.h"
#include "support/bytes.h"
#include "support/command.h"
#include "support/fault_device.h"
#include "support/image.h"
#include "support/results.h"
#include "unit/volume_fixture.h"

namespace atomic4::test {
namespace {

constexpr uint64_t kPrimary = 1024;

ext2_super_block super_at(std::span<const std::byte> image, uint64_t offset) {
    ext2_super_block super;
    std::memcpy(&super, image.data() + offset, sizeof super);
    return super;
}
bool checksum_holds(const ext2_super_block& super) {
    if ((super.s_feature_ro_compat & EXT4_FEATURE_RO_COMPAT_METADATA_CSUM) == 0) return true;
    const auto bytes = std::as_bytes(std::span(&super, 1));
    return super.s_checksum == crc32c(~0U, bytes.first(offsetof(ext2_super_block, s_checksum)));
}
bool has_our_bits(const ext2_super_block& super) {
    return (super.s_feature_compat & kFeatureCompatAtomic4) != 0 ||
           (super.s_feature_incompat & kFeatureIncompatNeedsReplay) != 0;
}

// Holds the rule after every write: each copy has the gate and a right checksum.
class Witness final : public ForwardingDevice {
  public:
    Witness(MemoryDevice& below, std::vector<uint64_t> copies)
        : ForwardingDevice(below), memory_(below), copies_(std::move(copies)) {}
    Result<> write(ByteOffset offset, std::span<const std::byte> from) override {
        auto done = below_.write(offset, from);
        look();
        return done;
    }
    void look() const {
        for (const uint64_t at : copies_) {
            const ext2_super_block super = super_at(memory_.contents(), at);
            EXPECT_EQ(super.s_magic, EXT2_SUPER_MAGIC);
            EXPECT_NE(super.s_feature_compat & kFeatureCompatAtomic4, 0u) << "at " << at;
            EXPECT_TRUE(checksum_holds(super)) << "at " << at;
        }
    }

  private:
    MemoryDevice& memory_;
    std::vector<uint64_t> copies_;
};

struct Shape {
    const char* name;
    uint64_t block;
    std::vector<std::string> arguments;
    std::vector<uint64_t> copies;  // where they lie, as dumpe2fs says
};
void PrintTo(const Shape& shape, std::ostream* out) {
    *out << shape.name;
}

class SuperblockMaskTest : public testing::TestWithParam<Shape> {
  protected:
    SuperblockMaskTest()
        : memory_(make_atomic4(32 << 20, GetParam().arguments)),
          witness_(memory_, GetParam().copies),
          mask_(must(SuperblockMask::make(witness_))) {
        witness_.look();
    }
    ext2_super_block shown(uint64_t at) {
        ext2_super_block super;
        must(mask_->read(ByteOffset(at), std::as_writable_bytes(std::span(&super, 1))));
        return super;
    }
    void write(uint64_t at, const void* bytes, size_t size) {
        must(mask_->write(ByteOffset(at), std::span(static_cast<const std::byte*>(bytes), size)));
    }

    MemoryDevice memory_;
    Witness witness_;
    std::unique_ptr<SuperblockMask> mask_;
};

TEST_P(SuperblockMaskTest, ShowsEveryCopyWithoutTheBits) {
    for (const uint64_t at : GetParam().copies) {
        const ext2_super_block super = shown(at);
        EXPECT_EQ(super.s_magic, EXT2_SUPER_MAGIC);
        EXPECT_FALSE(has_our_bits(super)) << "at " << at;
        EXPECT_TRUE(checksum_holds(super)) << "at " << at;
    }
    // In a read of everything as in one of a few bytes.
    Image all(memory_.contents().size());
    must(mask_->read(ByteOffset(0), all));
    for (const uint64_t at : GetParam().copies) EXPECT_FALSE(has_our_bits(super_at(all, at)));
    Image piece(8);
    must(mask_->read(ByteOffset(kPrimary + offsetof(ext2_super_block, s_feature_compat)), piece));
    EXPECT_EQ(std::memcmp(piece.data(), all.data() + kPrimary + 0x5c, piece.size()), 0);
}

// Where a first copy may lie there are mostly other things, and some can perhaps not be read.
TEST_P(SuperblockMaskTest, LearnsWhereCopiesAreAlthoughSomethingCantBeRead) {
    FaultDevice failing(memory_);
    must(SuperblockMask::make(failing));
    const uint64_t reads = failing.calls();
    ASSERT_GT(reads, 1u);
    for (uint64_t nth = 1; nth < reads; ++nth) {  // the first one is the primary
        failing.reset();
        failing.fail_at(nth, EIO, false);
        mask_ = must(SuperblockMask::make(failing));
        EXPECT_TRUE(failing.fired());
        for (const uint64_t at : GetParam().copies)
            EXPECT_FALSE(has_our_bits(shown(at))) << "at " << at << ", read " << nth;
    }
    failing.reset();
    failing.fail_at(0, EIO, false);
    EXPECT_EQ(code_of(SuperblockMask::make(failing)), EIO);
}

// libext2fs writes changed 16-bit words, the checksum last (F5).
TEST_P(SuperblockMaskTest, TakesUpdatesInPieces) {
    for (const uint64_t at : GetParam().copies) {
        ext2_super_block wanted = shown(at);
        const ext2_super_block before = wanted;
        wanted.s_mnt_count = static_cast<uint16_t>(wanted.s_mnt_count + 7);
        wanted.s_free_inodes_count -= 1;
        std::memcpy(wanted.s_volume_name, "renamed", 8);
        const auto bytes = std::as_bytes(std::span(&wanted, 1));
        if (checksum_holds(before) && wanted.s_checksum != 0)
            wanted.s_checksum = crc32c(~0U, bytes.first(offsetof(ext2_super_block, s_checksum)));
        const auto old = std::as_bytes(std::span(&before, 1));
        for (size_t i = 0; i < sizeof wanted; i += 2) {
            if (std::memcmp(&bytes[i], &old[i], 2) == 0) continue;
            write(at + i, &bytes[i], 2);
            // The tool reads back what it wrote.
            const ext2_super_block now = shown(at);
            EXPECT_EQ(std::memcmp(&now, bytes.data(), i + 2), 0);
        }
        const ext2_super_block now = shown(at);
        EXPECT_EQ(std::memcmp(&now, &wanted, sizeof now), 0);
        EXPECT_EQ(super_at(memory_.contents(), at).s_mnt_count, wanted.s_mnt_count);
    }
}

// A journal that holds a superblock with our bits, or one from before them, is replayed.
TEST_P(SuperblockMaskTest, TakesWholeSuperblocksWithAndWithoutTheBits) {
    for (const uint64_t at : GetParam().copies) {
        for (const bool with_bits : {true, false}) {
            ext2_super_block super = with_bits ? super_at(memory_.contents(), at) : shown(at);
            super.s_wtime += 1;
            const auto bytes = std::as_bytes(std::span(&super, 1));
            if (super.s_checksum != 0)
                super.s_checksum = crc32c(~0U, bytes.first(offsetof(ext2_super_block, s_checksum)));
            write(at, &super, sizeof super);
            EXPECT_FALSE(has_our_bits(shown(at)));
            EXPECT_TRUE(checksum_holds(shown(at)));
            EXPECT_EQ(shown(at).s_wtime, super.s_wtime);
        }
    }
}

TEST_P(SuperblockMaskTest, TheNeedsReplayBitStaysAsItIsOnTheDevice) {
    for (const bool set : {true, false}) {
        ext2_super_block raw = super_at(memory_.contents(), kPrimary);
        raw.s_feature_incompat = set ? raw.s_feature_incompat | kFeatureIncompatNeedsReplay
                                     : raw.s_feature_incompat & ~kFeatureIncompatNeedsReplay;
        const auto bytes = std::as_bytes(std::span(&raw, 1));
        if (raw.s_checksum != 0)
            raw.s_checksum = crc32c(~0U, bytes.first(offsetof(ext2_super_block, s_checksum)));
        must(witness_.write(ByteOffset(kPrimary), bytes));
        EXPECT_FALSE(has_our_bits(shown(kPrimary)));
        const uint16_t count = 99;
        write(kPrimary + offsetof(ext2_super_block, s_mnt_count), &count, sizeof count);
        const ext2_super_block after = super_at(memory_.contents(), kPrimary);
        EXPECT_EQ((after.s_feature_incompat & kFeatureIncompatNeedsReplay) != 0, set);
        // Live records go by it.
        EXPECT_EQ(after.s_mnt_count, set ? raw.s_mnt_count : count);
    }
}

TEST_P(SuperblockMaskTest, RecordsThatAreLiveAlthoughThePrimaryIsGone) {
    const std::vector<std::byte> nothing(1024);
    const ext2_super_block before = super_at(memory_.contents(), kPrimary);
    must(memory_.write(ByteOffset(kPrimary), nothing));
    mask_->records_are_live({1700000000, 7});
    write(kPrimary, &before, sizeof before);
    const ext2_super_block after = super_at(memory_.contents(), kPrimary);
    EXPECT_NE(after.s_feature_incompat & kFeatureIncompatNeedsReplay, 0u);
    EXPECT_NE(after.s_feature_compat & kFeatureCompatAtomic4, 0u);
    EXPECT_EQ(after.s_mnt_count, 7);
    EXPECT_EQ(after.s_mtime, 1700000000u);
}

TEST_P(SuperblockMaskTest, LetsEverythingElseThrough) {
    std::mt19937_64 random(5);
    const uint64_t block = GetParam().block;
    const uint64_t size = memory_.contents().size();
    for (int i = 0; i < 300; ++i) {
        const uint64_t at = random() % (size / block) * block;
        if (at < 2 * block) continue;
        Image bytes = random_bytes(block, random);
        bytes[0x38] = std::byte{0};  // no superblock's magic number
        if (std::ranges::any_of(GetParam().copies,
                                [&](uint64_t copy) { return copy >= at && copy < at + block; }))
            continue;
        must(mask_->write(ByteOffset(at), bytes));
        EXPECT_EQ(std::memcmp(memory_.contents().data() + at, bytes.data(), block), 0);
        Image back(block);
        must(mask_->read(ByteOffset(at), back));
        EXPECT_TRUE(back == bytes);
    }
    witness_.look();
}

TEST_P(SuperblockMaskTest, ThePrimaryIsNotDestroyed) {
    const Image before = memory_.contents();
    const auto refused = mask_->write(ByteOffset(0), Image(4096));
    EXPECT_EQ(code_of(refused), EPERM);
    EXPECT_EQ(code_of(mask_->zero(ByteOffset(0), Bytes(65536))), EPERM);
    EXPECT_TRUE(memory_.contents() == before);
}

// Stock tools on what is shown: nothing of ours is there, and all checksums hold.
TEST_P(SuperblockMaskTest, StockE2fsckIsContent) {
    Image all(memory_.contents().size());
    must(mask_->read(ByteOffset(0), all));
    const TempDir dir;
    store_image(all, dir.file("shown"));
    const CommandOutput judged = run_command({"e2fsck", "-fn", dir.file("shown")});
    EXPECT_EQ(judged.status, 0) << judged.output;
}

const Shape kShapes[] = {
    {"blocks_4k", 4096, {"-b", "4096", "-g", "1024"}, {1024, 1024 * 4096, 3 * 1024 * 4096}},
    {"blocks_1k", 1024, {"-b", "1024"}, {1024, 8193 * 1024, (3 * 8192 + 1) * 1024}},
    {"no_checksums",
     1024,
     {"-b", "1024", "-O", "^metadata_csum"},
     {1024, 8193 * 1024, (3 * 8192 + 1) * 1024}},
    {"no_sparse_super",
     1024,
     {"-b", "1024", "-O", "^sparse_super,^resize_inode"},
     {1024, 8193 * 1024, (2 * 8192 + 1) * 1024, (3 * 8192 + 1) * 1024}},
    {"sparse_super2",
     1024,
     {"-b", "1024", "-O", "sparse_super2,^resize_inode"},
     {1024, 8193 * 1024, (3 * 8192 + 1) * 1024}},
    {"meta_bg",
     1024,
     {"-b", "1024", "-O", "meta_bg,^resize_inode"},
     {1024, 8193 * 1024, (3 * 8192 + 1) * 1024}}};
INSTANTIATE_TEST_SUITE_P(All, SuperblockMaskTest, testing::ValuesIn(kShapes),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(SuperblockMask, NeedsAnExt4) {
    MemoryDevice nothing(Image(1 << 20));
    const auto made = SuperblockMask::make(nothing);
    EXPECT_EQ(code_of(made), EINVAL);
    MemoryDevice tiny(Image(512));
    EXPECT_EQ(code_of(SuperblockMask::make(tiny)), EINVAL);
}

}  // namespace
}  // namespace atomic4::test
