#include "support/fault_device.h"

#include <gtest/gtest.h>

#include "device/memory_device.h"
#include "support/bytes.h"

namespace atomic4::test {
namespace {

// Six calls, one of each kind and the read once more. Returns a bit for each that failed.
unsigned six_calls(Device& device) {
    auto data = filled(4096, 5);
    unsigned failed = 0;
    failed |= device.read(ByteOffset(0), data).has_value() ? 0u : 1u;
    failed |= device.write(ByteOffset(0), filled(4096, 1)).has_value() ? 0u : 2u;
    failed |= device.write_durable(ByteOffset(4096), filled(4096, 2)).has_value() ? 0u : 4u;
    failed |= device.zero(ByteOffset(8192), Bytes(4096)).has_value() ? 0u : 8u;
    failed |= device.flush().has_value() ? 0u : 16u;
    failed |= device.read(ByteOffset(0), data).has_value() ? 0u : 32u;
    return failed;
}

TEST(FaultDevice, FailsExactlyTheNthCall) {
    for (uint64_t nth = 0; nth < 8; ++nth) {
        MemoryDevice memory(filled(12288, 9));
        FaultDevice device(memory);
        device.fail_at(nth, ENOSPC, false);
        EXPECT_EQ(six_calls(device), nth < 6 ? 1u << nth : 0u);
        EXPECT_EQ(device.fired(), nth < 6);
        EXPECT_EQ(device.calls(), 6u);
        EXPECT_EQ(memory.contents()[0] == std::byte{9}, nth == 1);
        EXPECT_EQ(memory.contents()[4096] == std::byte{9}, nth == 2);
        EXPECT_EQ(memory.contents()[8192] == std::byte{9}, nth == 3);
    }
}

TEST(FaultDevice, PersistentFaultsStay) {
    MemoryDevice memory(Bytes(12288));
    FaultDevice device(memory);
    device.fail_at(2, EIO, true);
    EXPECT_EQ(six_calls(device), 0b111100u);
    EXPECT_EQ(six_calls(device), 0b111111u);
    device.reset();
    EXPECT_FALSE(device.fired());
    EXPECT_EQ(six_calls(device), 0u);
    EXPECT_EQ(device.calls(), 6u);
}

TEST(FaultDevice, CountsOnlyTheSelectedKinds) {
    MemoryDevice memory(Bytes(12288));
    FaultDevice device(memory);
    device.count_only({.reads = false, .writes = false, .zeros = false, .flushes = true});
    device.fail_at(0, EIO, true);
    EXPECT_EQ(six_calls(device), 16u);
    EXPECT_EQ(device.calls(), 1u);
    device.reset();
    device.count_only({.reads = true, .writes = false, .zeros = false, .flushes = false});
    device.fail_at(1, EIO, false);
    EXPECT_EQ(six_calls(device), 32u);
    device.reset();
    device.count_only({.reads = false, .writes = true, .zeros = true, .flushes = false});
    device.fail_at(2, EIO, false);
    EXPECT_EQ(six_calls(device), 8u);
}

TEST(FaultDevice, TearsWritesOnRequest) {
    MemoryDevice memory(filled(12288, 9));
    AtomicLimits limits;
    limits.unit_min = limits.unit_max = Bytes(4096);
    memory.set_atomic_limits(limits);
    FaultDevice device(memory);
    EXPECT_TRUE(device.atomic_limits().supported());
    device.set_torn(true);
    device.fail_at(0, EIO, true);
    EXPECT_FALSE(device.write(ByteOffset(0), filled(1536, 1)).has_value());
    EXPECT_EQ(memory.contents()[511], std::byte{1});
    EXPECT_EQ(memory.contents()[512], std::byte{9});
    EXPECT_FALSE(device.write_durable(ByteOffset(0), filled(10, 2)).has_value());
    EXPECT_EQ(memory.contents()[4], std::byte{2});
    EXPECT_EQ(memory.contents()[5], std::byte{1});
    EXPECT_FALSE(device.zero(ByteOffset(4096), Bytes(4096)).has_value());
    EXPECT_EQ(memory.contents()[6143], std::byte{0});
    EXPECT_EQ(memory.contents()[6144], std::byte{9});
    EXPECT_FALSE(device.write_atomic(ByteOffset(8192), filled(4096, 3)).has_value());
    EXPECT_EQ(memory.contents()[8192], std::byte{9});
}

TEST(FaultDevice, MessageAndErrno) {
    MemoryDevice memory(Bytes(4096));
    FaultDevice device(memory);
    device.fail_at(0, EIO, false);
    const auto result = device.write(ByteOffset(512), filled(1, 1));
    EXPECT_EQ(result.error().message, "memory: write at 512: injected fault: Input/output error");
}

}  // namespace
}  // namespace atomic4::test
