// An I/O error at any moment of a run of fsck.atomic4 -fy: it is said by the exit status, the gate
// stays, and when the device works again the next run brings the volume back.
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "device/forwarding_device.h"
#include "support/fault_device.h"
#include "support/fsck_run.h"
#include "support/privileged.h"
#include "support/results.h"

namespace atomic4::test {
namespace {

struct Fault {
    const char* name;
    FaultKinds kinds;
    bool persistent;
};
constexpr FaultKinds kReads{true, false, false, false};
constexpr FaultKinds kWrites{false, true, true, false};
constexpr FaultKinds kFlushes{false, false, false, true};
constexpr Fault kFaults[] = {{"read", kReads, false},
                             {"write", kWrites, false},
                             {"every_write_from_then_on", kWrites, true},
                             {"flush", kFlushes, false}};

class FsckFaults : public testing::TestWithParam<Fault> {
  protected:
    void SetUp() override { A4_REQUIRE_ROOT(); }
};

TEST_P(FsckFaults, AtAnyMoment) {
    const DirtyVolume dirty = make_dirty_volume(1024);
    uint64_t calls = 0;
    {
        Image image = dirty.image;
        ImageDevice memory(image);
        FaultDevice device(memory);
        device.count_only(GetParam().kinds);
        ASSERT_EQ(run_fsck(device, FsckMode::Yes).status, tools::kFsckCorrected);
        calls = device.calls();
    }
    ASSERT_GT(calls, 5u);
    const uint64_t moments =
        std::getenv("ATOMIC4_LONG") != nullptr ? calls : std::min<uint64_t>(calls, 20);
    for (uint64_t i = 0; i < moments; ++i) {
        const uint64_t nth = i * calls / moments;
        SCOPED_TRACE(nth);
        Image image = dirty.image;
        ImageDevice memory(image);
        FaultDevice device(memory);
        device.count_only(GetParam().kinds);
        device.fail_at(nth, EIO, GetParam().persistent);
        const FsckRun run = run_fsck(device, FsckMode::Yes);
        ASSERT_TRUE(device.fired());
        EXPECT_EQ(run.status & ~0x2f, 0) << run.output;
        // A failed flush is final: what was written before it may be anywhere.
        if (!GetParam().kinds.reads && !GetParam().kinds.writes) {
            EXPECT_GT(run.status, tools::kFsckCorrected) << run.output;
        }
        // A read may be tried again, or be of what doesn't matter (a look whether there is a copy).
        // What should have been written or flushed, and wasn't, is never called done.
        if (run.status <= tools::kFsckCorrected) {
            EXPECT_EQ(fsck_complaints(image), "") << run.output;
            EXPECT_EQ(content_of_file(image, "/db"), dirty.db_content) << run.output;
        }
        ASSERT_EQ(superblock_complaint(image), "") << run.output;

        const FsckRun next = run_fsck(image, FsckMode::Yes);
        ASSERT_LE(next.status, tools::kFsckCorrected) << run.output << next.output;
        EXPECT_EQ(mapping_of_file(image, "/db"), dirty.db) << run.output << next.output;
        EXPECT_EQ(content_of_file(image, "/db"), dirty.db_content) << run.output << next.output;
        EXPECT_EQ(fsck_complaints(image), "") << run.output << next.output;
        if (HasFailure()) return;
    }
}

INSTANTIATE_TEST_SUITE_P(Faults, FsckFaults, testing::ValuesIn(kFaults),
                         [](const auto& info) { return info.param.name; });

// What could not be written is not called repaired, and nothing goes on from there.
TEST(FsckBadSector, UnderThePrimaryWhenItIsToBeRepaired) {
    A4_REQUIRE_ROOT();
    Image image = make_dirty_volume(1024).image;
    image[SUPERBLOCK_OFFSET + offsetof(ext2_super_block, s_checksum)] ^= std::byte{1};
    const Image before = image;
    ImageDevice memory(image);
    FaultDevice device(memory);
    device.count_only(kWrites);
    device.fail_at(0, EIO, true);
    const FsckRun run = run_fsck(device, FsckMode::Yes);
    ASSERT_TRUE(device.fired());
    EXPECT_EQ(run.status, tools::kFsckOperational) << run.output;
    EXPECT_EQ(run.output.find("agrees with a copy: repaired"), std::string::npos) << run.output;
    EXPECT_EQ(image, before);
}

// A sector that nobody can read.
class BadSector final : public ForwardingDevice {
  public:
    BadSector(Device& below, uint64_t at) : ForwardingDevice(below), at_(at) {}
    Result<> read(ByteOffset offset, std::span<std::byte> into) override {
        if (offset.value() < at_ + 512 && at_ < offset.value() + into.size())
            return fail(EIO, "bad sector at {}", at_);
        return below_.read(offset, into);
    }

  private:
    uint64_t at_;
};

// That a copy of the superblock can't be read doesn't mean that the volume has none: nothing is
// done, rather than without protection.
TEST(FsckBadSector, UnderACopyOfTheSuperblock) {
    A4_REQUIRE_ROOT();
    for (const uint64_t block_size : {1024, 4096}) {
        const DirtyVolume dirty = make_dirty_volume(block_size);
        ext2_super_block super{};
        std::memcpy(&super, dirty.image.data() + SUPERBLOCK_OFFSET, sizeof super);
        const uint64_t copy =
            (uint64_t{super.s_first_data_block} + super.s_blocks_per_group) * block_size;
        ASSERT_LT(copy, dirty.image.size());
        Image image = dirty.image;
        ImageDevice memory(image);
        BadSector device(memory, copy);
        const FsckRun run = run_fsck(device, FsckMode::Yes);
        EXPECT_EQ(run.status, tools::kFsckOperational) << run.output;
        EXPECT_NE(run.output.find("bad sector at"), std::string::npos) << run.output;
        EXPECT_EQ(image, dirty.image) << run.output;
    }
}

}  // namespace
}  // namespace atomic4::test
