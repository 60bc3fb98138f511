#include "device/slice_device.h"

#include <gtest/gtest.h>

#include "device/memory_device.h"
#include "support/bytes.h"
#include "support/device_shadow.h"
#include "support/fault_device.h"

namespace atomic4::test {
namespace {

Run run(uint64_t start, uint64_t length) {
    return {ByteOffset(start), Bytes(length)};
}

TEST(SliceDevice, IsItsRunsEndToEnd) {
    MemoryDevice below(Bytes(100'000));
    SliceDevice slice(below, {run(50'000, 10), run(0, 5), run(20, 1)}, "redo log");
    EXPECT_EQ(slice.size(), Bytes(16));
    EXPECT_EQ(slice.name(), "redo log");
    std::vector<std::byte> data;
    for (int i = 0; i < 16; ++i) data.push_back(static_cast<std::byte>(i + 1));
    ASSERT_TRUE(slice.write(ByteOffset(0), data).has_value());
    EXPECT_EQ(below.contents()[50'000], std::byte{1});
    EXPECT_EQ(below.contents()[50'009], std::byte{10});
    EXPECT_EQ(below.contents()[50'010], std::byte{0});
    EXPECT_EQ(below.contents()[0], std::byte{11});
    EXPECT_EQ(below.contents()[20], std::byte{16});
    ASSERT_TRUE(slice.zero(ByteOffset(9), Bytes(2)).has_value());
    EXPECT_EQ(below.contents()[50'009], std::byte{0});
    EXPECT_EQ(below.contents()[0], std::byte{0});
}

TEST(SliceDevice, RandomCallsAcrossManyRuns) {
    MemoryDevice below(Bytes(200'000));
    std::vector<atomic4::Run> runs;  // testing::Test has a Run too
    for (uint64_t i = 0; i < 40; ++i) runs.push_back(run((i * 7 % 40) * 5000, 100 + 97 * i));
    SliceDevice slice(below, runs, "slice");
    compare_with_shadow(slice, 2, 2000, 30'000);
}

TEST(SliceDevice, OneCallBelowPerRun) {
    MemoryDevice memory(Bytes(100'000));
    FaultDevice below(memory);
    // The middle two touch; the empty one is nothing.
    SliceDevice slice(below, {run(0, 4096), run(8192, 4096), run(12288, 4096), run(50'000, 0)},
                      "slice");
    EXPECT_EQ(slice.size(), Bytes(12288));
    auto data = filled(12288, 1);
    ASSERT_TRUE(slice.read(ByteOffset(0), data).has_value());
    EXPECT_EQ(below.calls(), 2u);
    ASSERT_TRUE(slice.write_durable(ByteOffset(4096), filled(8192, 3)).has_value());
    EXPECT_EQ(below.calls(), 3u);
    ASSERT_TRUE(slice.flush().has_value());
    EXPECT_EQ(below.calls(), 4u);
    ASSERT_TRUE(slice.write(ByteOffset(12288), {}).has_value());
    EXPECT_EQ(below.calls(), 4u);
}

TEST(SliceDevice, AtomicWritesStayInsideOneRun) {
    MemoryDevice below(Bytes(1 << 20));
    AtomicLimits limits;
    limits.unit_min = Bytes(4096);
    limits.unit_max = Bytes(65536);
    below.set_atomic_limits(limits);
    SliceDevice slice(below, {run(8192, 8192), run(65536, 8192), run(4096, 4096)}, "slice");
    EXPECT_TRUE(slice.atomic_limits().supported());
    EXPECT_TRUE(slice.write_atomic(ByteOffset(8192), filled(8192, 1)).has_value());
    EXPECT_EQ(below.contents()[65536 + 8191], std::byte{1});
    const auto crossing = slice.write_atomic(ByteOffset(0), filled(16384, 2));
    EXPECT_EQ(crossing.error().code, EIO);
    EXPECT_NE(crossing.error().message.find("contiguous"), std::string::npos);
    EXPECT_EQ(below.contents()[8192], std::byte{0});
    // Aligned in the slice or not: the device below decides.
    EXPECT_TRUE(slice.write_atomic(ByteOffset(16384), filled(4096, 2)).has_value());
    SliceDevice skewed(below, {run(4096, 65536)}, "skewed");
    EXPECT_EQ(skewed.write_atomic(ByteOffset(0), filled(8192, 2)).error().code, EINVAL);
}

TEST(SliceDevice, ErrorsNameTheSliceAndStopTheCall) {
    MemoryDevice memory(Bytes(100'000));
    FaultDevice below(memory);
    SliceDevice slice(below, {run(0, 512), run(8192, 512), run(20'000, 512)}, "redo log");
    below.fail_at(1, EIO, false);
    const auto result = slice.write(ByteOffset(0), filled(1536, 9));
    EXPECT_EQ(result.error().code, EIO);
    EXPECT_EQ(result.error().message.find("redo log: memory: write at 8192"), 0u);
    EXPECT_EQ(memory.contents()[511], std::byte{9});
    EXPECT_EQ(memory.contents()[8192], std::byte{0});
    EXPECT_EQ(memory.contents()[20'000], std::byte{0});
    EXPECT_EQ(
        slice.read(ByteOffset(1536), std::span<std::byte>(memory.contents()).first(1)).error().code,
        EINVAL);
    // A run beyond the end of the device below is that device's error.
    SliceDevice outside(memory, {run(99'999, 2)}, "outside");
    EXPECT_EQ(outside.write(ByteOffset(0), filled(2, 1)).error().code, EINVAL);
    below.fail_at(below.calls(), EIO, true);
    EXPECT_EQ(slice.flush().error().code, EIO);
}

TEST(SliceDevice, ReadOnlyIsWhatTheDeviceBelowIs) {
    MemoryDevice below(Bytes(4096));
    below.set_read_only(true);
    SliceDevice slice(below, {run(0, 512)}, "slice");
    EXPECT_TRUE(slice.read_only());
    EXPECT_EQ(slice.zero(ByteOffset(0), Bytes(512)).error().code, EROFS);
}

TEST(SliceDevice, MayBeEmpty) {
    MemoryDevice below(Bytes(4096));
    SliceDevice slice(below, {}, "slice");
    EXPECT_EQ(slice.size(), Bytes(0));
    EXPECT_TRUE(slice.write(ByteOffset(0), {}).has_value());
    EXPECT_EQ(slice.write(ByteOffset(0), filled(1, 1)).error().code, EINVAL);
}

}  // namespace
}  // namespace atomic4::test
