// Live records whose way is lost: no attribute, no log, no superblock in it. Nobody throws them
// away in passing; recover finds what can be found, and --discard gives up the rest.
#include <gmock/gmock.h>

#include "redo/volume_log.h"
#include "unit/writer_fixture.h"
#include "writer/enable.h"

namespace atomic4::test {
namespace {

using testing::HasSubstr;

constexpr uint64_t kUnit = 16384;

class LostLog : public testing::Test {
  protected:
    void SetUp() override {
        image = make_dirty_atomic4(8 << 20, {"-b", "1024"});
        MemoryDevice memory(image);
        auto opened = must(open_for_writing(borrowed(memory)));
        inode = must(create_atomic_file(*opened.volume, "/f", {Bytes(4 * kUnit), Bytes(kUnit)}));
        log = must(locate_range(*opened.volume,
                                must(read_file(*opened.volume, opened.volume->attr()->log_inode)),
                                ByteOffset(0), Bytes(kFirstRecord.value())))
                  .front()
                  .device_offset.value();
        auto writer = must(AtomicWriter::open(std::move(opened)));
        const FileState file = must(writer->file(inode));
        must(writer->write({inode, file.generation, ByteOffset(kUnit), bytes}));
        data = must(locate_range(writer->volume(), file, ByteOffset(kUnit), Bytes(kUnit)))
                   .front()
                   .device_offset.value();
        // No close: the record stays live. Its placement is lost.
        writer.reset();
        image = memory.contents();
        std::memset(image.data() + data, 0, kUnit);
    }

    // Edits the volume as if nobody had to replay anything.
    void edit(const std::vector<std::string>& commands) {
        const auto flip = [](ext2_super_block& super) {
            super.s_feature_incompat ^= kFeatureIncompatNeedsReplay;
        };
        edit_super(image, flip);
        image = debugfs(image, commands);
        edit_super(image, flip);
    }
    template <class Operation>
    Error refused(Operation operation) {
        MemoryDevice memory(image);
        VolumeOptions options;
        options.purpose = OpenFor::Write;
        options.require_atomic4 = false;
        const auto volume = must(Volume::open(borrowed(memory), options));
        const auto done = operation(*volume);
        EXPECT_FALSE(done);
        EXPECT_EQ(memory.contents(), image);
        return done ? Error{} : done.error();
    }
    ReplayReport recovered(OnConflict policy) {
        MemoryDevice memory(image);
        const ReplayReport report = must(recover(borrowed(memory), policy));
        image = memory.contents();
        return report;
    }
    void enable_makes_it_whole() {
        MemoryDevice memory(image);
        must(enable(*open_volume(memory), {}));
        EXPECT_TRUE(open_for_writing(borrowed(memory)));
        EXPECT_EQ(fsck_complaints(memory.contents()), "");
    }
    bool is_there() const { return std::memcmp(image.data() + data, bytes.data(), kUnit) == 0; }

    Image image;
    ext2_ino_t inode = 0;
    uint64_t log = 0;   // where it begins
    uint64_t data = 0;  // where the written range lies
    const std::vector<std::byte> bytes = filled(kUnit, 77);
};

TEST_F(LostLog, WithoutTheAttributeItIsFoundByItsName) {
    for (const char* command :
         {"ea_rm / trusted.atomic4.volume", "ea_set / trusted.atomic4.volume garbage"}) {
        SCOPED_TRACE(command);
        SetUp();
        edit({command});
        for (const Error& error : {refused([](Volume& volume) { return enable(volume, {}); }),
                                   refused([](Volume& volume) { return disable(volume, true); })}) {
            EXPECT_EQ(error.code, EUCLEAN);
            EXPECT_THAT(error.message, HasSubstr("atomic4ctl recover"));
        }
        MemoryDevice memory(image);
        const auto opened = open_for_writing(borrowed(memory));
        ASSERT_FALSE(opened);
        EXPECT_THAT(opened.error().message, HasSubstr("atomic4ctl recover"));
        EXPECT_FALSE(is_there());

        const ReplayReport report = recovered(OnConflict::Keep);
        EXPECT_EQ(report.records, 1u);
        EXPECT_TRUE(report.log_emptied);
        EXPECT_TRUE(is_there());
        EXPECT_EQ(fsck_complaints(image), "");
        MemoryDevice again(image);
        EXPECT_TRUE(open_for_writing(borrowed(again)));
    }
}

TEST_F(LostLog, WithoutSuperblocksOnlyDiscardHelps) {
    for (const uint64_t at : {log, log + 8192}) std::memset(image.data() + at, 0x5a, 512);
    {
        MemoryDevice memory(image);
        for (const OnConflict policy : {OnConflict::Keep, OnConflict::Force}) {
            const auto done = recover(borrowed(memory), policy);
            ASSERT_FALSE(done);
            EXPECT_EQ(done.error().code, EUCLEAN);
            EXPECT_THAT(done.error().message, HasSubstr("--discard"));
        }
        EXPECT_EQ(memory.contents(), image);
    }
    const ReplayReport report = recovered(OnConflict::Discard);
    EXPECT_TRUE(report.log_emptied);
    EXPECT_THAT(report.end_detail, HasSubstr("no valid superblock"));
    EXPECT_EQ(fsck_complaints(image), "");
    MemoryDevice again(image);
    EXPECT_TRUE(open_for_writing(borrowed(again)));
}

// Somebody removed /.atomic4 under a mount. (No needs-replay bit then: the kernel would refuse.)
TEST_F(LostLog, ARemovedLogIsMadeAnew) {
    recovered(OnConflict::Keep);
    image = debugfs(image, {"rm /.atomic4/log", "rm /.atomic4/lock", "rmdir /.atomic4"});
    {
        MemoryDevice memory(image);
        const auto opened = open_for_writing(borrowed(memory));
        ASSERT_FALSE(opened);
        EXPECT_EQ(opened.error().code, ESTALE);
        EXPECT_THAT(opened.error().message, HasSubstr("atomic4ctl enable"));
    }
    enable_makes_it_whole();
}

// The same while records are live, which takes more than a mount: given up on request only.
TEST_F(LostLog, ARemovedLogWithLiveRecordsIsGivenUpOnRequest) {
    edit({"rm /.atomic4/log"});
    {
        MemoryDevice memory(image);
        const auto done = recover(borrowed(memory), OnConflict::Keep);
        ASSERT_FALSE(done);
        EXPECT_THAT(done.error().message, HasSubstr("--discard"));
        EXPECT_EQ(memory.contents(), image);
    }
    const ReplayReport report = recovered(OnConflict::Discard);
    EXPECT_TRUE(report.log_emptied);
    EXPECT_THAT(report.end_detail, HasSubstr("atomic4ctl enable"));
    enable_makes_it_whole();
}

}  // namespace
}  // namespace atomic4::test
