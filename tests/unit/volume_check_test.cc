// The check of a volume that is damaged elsewhere.
#include "check/volume_check.h"

#include "device/forwarding_device.h"
#include "ext4/block_claims.h"
#include "ext4/format.h"
#include "ext4/xattr.h"
#include "unit/volume_fixture.h"

namespace atomic4::test {
namespace {

using testing::HasSubstr;

// Where an inode lies in the image.
size_t inode_offset(Volume& volume, ext2_ino_t number) {
    ext2_filsys fs = volume.fs();
    const uint64_t index = (number - 1) % fs->super->s_inodes_per_group;
    return ext2fs_inode_table_loc(fs, ext2fs_group_of_ino(fs, number)) * fs->blocksize +
           index * EXT2_INODE_SIZE(fs->super);
}

bool has(const CheckReport& report, FindingId id, const std::string& where) {
    return std::any_of(report.findings.begin(), report.findings.end(),
                       [&](const Finding& it) { return it.id == id && it.where == where; });
}

// One inode with a bad checksum is a finding; the others are checked all the same. Only disable,
// which must know that no atomic file is left, refuses.
TEST(VolumeCheck, DamagedInode) {
    for (const char* victim : {"/plain", "/dir", "/atomic"}) {
        SCOPED_TRACE(victim);
        MemoryDevice memory(debugfs(make_atomic4(16 << 20, {"-b", "1024"}), {"mkdir /dir"}));
        {
            const auto volume = open_volume(memory);
            create_plain_file(*volume, "/plain");
            for (const char* path : {"/atomic", "/dir/inner", "/last"})
                must(create_atomic_file(*volume, path, {Bytes(32768), Bytes(16384)}));
            EXPECT_TRUE(must(check_volume(*volume)).clean());
            const auto at = inode_offset(*volume, must(lookup(*volume, victim)));
            memory.contents()[at + 8] ^= std::byte{1};  // its access time
        }
        const auto volume = open_volume(memory);
        const auto report = must(check_volume(*volume));
        EXPECT_FALSE(report.clean());
        EXPECT_TRUE(has(report, FindingId::InodeUnreadable, victim));
        EXPECT_EQ(report.findings.size(), 1u);
        EXPECT_EQ(report.files, victim == std::string("/atomic") ? 2u : 3u);
        const Image before = memory.contents();
        const auto refused = disable(*volume, true);
        EXPECT_EQ(code_of(refused), EUCLEAN);
        EXPECT_THAT(message_of(refused), HasSubstr("e2fsck"));
        EXPECT_TRUE(memory.contents() == before);
    }
}

// Which ranges are said to be read soon.
class HintedDevice final : public ForwardingDevice {
  public:
    using ForwardingDevice::ForwardingDevice;
    void will_read(ByteOffset offset, Bytes length) override {
        hints.emplace_back(offset.value(), length.value());
    }
    std::vector<std::pair<uint64_t, uint64_t>> hints;
};

// For e2fsck, which reads them one by one.
TEST(VolumeCheck, DirectoriesComeIntoTheCache) {
    MemoryDevice memory(debugfs(make_atomic4(16 << 20, {"-b", "1024"}), {"mkdir /dir"}));
    HintedDevice device(memory);
    const auto volume = open_volume(device, OpenFor::Read);
    must(check_volume(*volume));
    for (const char* path : {"/", "/dir"}) {
        const auto claims = claims_of(*volume, must(lookup(*volume, path)));
        const PblkRun run = claims.front().run;
        EXPECT_THAT(device.hints, testing::Contains(std::pair(run.start.value() * 1024,
                                                              run.length.value() * 1024)))
            << path;
    }
}

// Of a file that the damage doesn't concern nothing is missed.
TEST(VolumeCheck, DamageBesideAnother) {
    MemoryDevice memory(make_atomic4(16 << 20, {"-b", "1024"}));
    const auto volume = open_volume(memory);
    const auto plain = create_plain_file(*volume, "/plain");
    const auto atomic = must(create_atomic_file(*volume, "/atomic", {Bytes(32768), Bytes(16384)}));
    memory.contents()[inode_offset(*volume, plain) + 8] ^= std::byte{1};
    {
        // The unit goes, the flag stays.
        Transaction transaction(*volume);
        must(write_xattr(volume->fs(), atomic, kUnitXattr, std::nullopt));
        must(transaction.commit());
    }
    const auto report = must(check_volume(*open_volume(memory)));
    EXPECT_TRUE(has(report, FindingId::InodeUnreadable, "/plain"));
    EXPECT_TRUE(has(report, FindingId::FlagWithoutUnit, "/atomic"));
}

}  // namespace
}  // namespace atomic4::test
