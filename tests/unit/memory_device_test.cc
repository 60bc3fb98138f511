#include "device/memory_device.h"

#include <gtest/gtest.h>

#include "device/read_only_device.h"
#include "support/bytes.h"
#include "support/device_shadow.h"
#include "support/fault_device.h"

namespace atomic4::test {
namespace {

AtomicLimits limits_4k_64k(uint64_t boundary = 0) {
    AtomicLimits limits;
    limits.unit_min = Bytes(4096);
    limits.unit_max = Bytes(65536);
    limits.boundary = Bytes(boundary);
    limits.segments_max = 1;
    return limits;
}

TEST(MemoryDevice, KeepsWhatIsWritten) {
    MemoryDevice device(Bytes(100'001));
    compare_with_shadow(device, 1, 2000, 20'000);
}

TEST(MemoryDevice, RefusesWhatIsBeyondItsEnd) {
    MemoryDevice device(filled(4096, 7));
    auto data = filled(2, 1);
    EXPECT_EQ(device.read(ByteOffset(4095), data).error().code, EINVAL);
    EXPECT_EQ(device.write(ByteOffset(4095), data).error().code, EINVAL);
    EXPECT_EQ(device.write_durable(ByteOffset(4097), {}).error().code, EINVAL);
    EXPECT_EQ(device.zero(ByteOffset(1), Bytes(~0ull)).error().code, EINVAL);
    EXPECT_EQ(device.zero(ByteOffset(~0ull), Bytes(2)).error().code, EINVAL);
    EXPECT_TRUE(device.read(ByteOffset(4096), {}).has_value());
    EXPECT_EQ(device.contents(), filled(4096, 7));
}

TEST(MemoryDevice, WritesAtomicallyOnlyInsideTheLimits) {
    MemoryDevice device(Bytes(1 << 20));
    const auto page = filled(4096, 1);
    const auto refused = device.write_atomic(ByteOffset(0), page);
    EXPECT_EQ(refused.error().code, EOPNOTSUPP);
    EXPECT_NE(refused.error().message.find("this is memory"), std::string::npos);

    device.set_atomic_limits(limits_4k_64k(16384));
    EXPECT_TRUE(device.write_atomic(ByteOffset(4096), page).has_value());
    EXPECT_EQ(device.contents()[8191], std::byte{1});
    EXPECT_EQ(device.write_atomic(ByteOffset(0), filled(2048, 1)).error().code, EINVAL);
    EXPECT_EQ(device.write_atomic(ByteOffset(0), filled(131072, 1)).error().code, EINVAL);
    EXPECT_EQ(device.write_atomic(ByteOffset(0), filled(12288, 1)).error().code, EINVAL);
    EXPECT_EQ(device.write_atomic(ByteOffset(4096), filled(8192, 1)).error().code, EINVAL);
    const auto crossing = device.write_atomic(ByteOffset(0), filled(32768, 1));
    EXPECT_EQ(crossing.error().code, EINVAL);
    EXPECT_NE(crossing.error().message.find("boundary"), std::string::npos);
}

TEST(MemoryDevice, ReadOnly) {
    MemoryDevice device(filled(4096, 7));
    device.set_read_only(true);
    EXPECT_TRUE(device.read_only());
    EXPECT_EQ(device.write(ByteOffset(0), filled(1, 1)).error().code, EROFS);
    EXPECT_EQ(device.write_durable(ByteOffset(0), filled(1, 1)).error().code, EROFS);
    EXPECT_EQ(device.write_atomic(ByteOffset(0), filled(1, 1)).error().code, EROFS);
    EXPECT_EQ(device.zero(ByteOffset(0), Bytes(1)).error().code, EROFS);
    EXPECT_EQ(device.contents(), filled(4096, 7));
}

TEST(ReadOnlyDevice, LetsNothingThroughButReads) {
    MemoryDevice below(filled(4096, 7));
    below.set_atomic_limits(limits_4k_64k());
    FaultDevice watched(below);
    ReadOnlyDevice device(watched);
    EXPECT_TRUE(device.read_only());
    EXPECT_EQ(device.size(), Bytes(4096));
    EXPECT_EQ(device.name(), "memory");
    EXPECT_TRUE(device.atomic_limits().supported());
    EXPECT_EQ(device.write(ByteOffset(0), filled(1, 1)).error().code, EROFS);
    EXPECT_EQ(device.write_durable(ByteOffset(0), filled(1, 1)).error().code, EROFS);
    EXPECT_EQ(device.write_atomic(ByteOffset(0), filled(4096, 1)).error().code, EROFS);
    EXPECT_EQ(device.zero(ByteOffset(0), Bytes(4096)).error().code, EROFS);
    EXPECT_TRUE(device.flush().has_value());
    EXPECT_EQ(watched.calls(), 0u);
    auto data = filled(16, 0);
    EXPECT_TRUE(device.read(ByteOffset(8), data).has_value());
    EXPECT_EQ(data, filled(16, 7));
    EXPECT_EQ(watched.calls(), 1u);
}

}  // namespace
}  // namespace atomic4::test
