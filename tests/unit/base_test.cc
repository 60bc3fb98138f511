#include <gtest/gtest.h>

#include <cstring>

#include "base/crc32c.h"
#include "base/endian.h"
#include "base/random.h"
#include "base/result.h"
#include "base/size_parse.h"
#include "base/units.h"

namespace atomic4 {
namespace {

std::span<const std::byte> bytes_of(std::string_view text) {
    return std::as_bytes(std::span(text.data(), text.size()));
}

// The published check value of CRC-32C is e3069283; without the final xor that is 1cf96d7c.
TEST(Crc32c, MatchesThePublishedVector) {
    EXPECT_EQ(crc32c(~0u, bytes_of("123456789")), 0x1cf96d7cu);
    EXPECT_EQ(crc32c(~0u, bytes_of("123456789")) ^ ~0u, 0xe3069283u);
}

TEST(Crc32c, ContinuesFromASeed) {
    const uint32_t head = crc32c(~0u, bytes_of("1234"));
    EXPECT_EQ(crc32c(head, bytes_of("56789")), 0x1cf96d7cu);
    EXPECT_EQ(crc32c(7, {}), 7u);
}

TEST(Crc32c, Rfc3720Zeros) {
    const std::array<std::byte, 32> zeros{};
    EXPECT_EQ(crc32c(~0u, zeros) ^ ~0u, 0x8a9136aau);
}

TEST(LittleEndian, StoresLowByteFirst) {
    const le32 value = 0x11223344;
    uint8_t raw[4];
    std::memcpy(raw, &value, 4);
    EXPECT_EQ(raw[0], 0x44);
    EXPECT_EQ(raw[3], 0x11);
    EXPECT_EQ(uint32_t{value}, 0x11223344u);
    const le64 wide = 0x8877665544332211ull;
    EXPECT_EQ(uint64_t{wide}, 0x8877665544332211ull);
    const le16 narrow = uint16_t{0xbeef};
    EXPECT_EQ(uint16_t{narrow}, 0xbeef);
}

struct SizeCase {
    const char* text;
    uint64_t value;
};

TEST(ParseSize, AcceptsWhatPeopleType) {
    for (const auto& [text, value] :
         {SizeCase{"0", 0}, SizeCase{"4096", 4096}, SizeCase{"16K", 16384}, SizeCase{"16k", 16384},
          SizeCase{"1M", 1 << 20}, SizeCase{"2GiB", 2ull << 30}, SizeCase{"15T", 15ull << 40},
          SizeCase{"512B", 512}, SizeCase{"18446744073709551615", ~0ull}}) {
        const auto parsed = parse_size(text);
        ASSERT_TRUE(parsed.has_value()) << text;
        EXPECT_EQ(parsed->value(), value) << text;
    }
}

TEST(ParseSize, RefusesEverythingElse) {
    for (const char* text : {"", "K", "-1", "+1", " 1", "1 ", "1.5M", "1KB", "1X", "0x10", "1e3",
                             "18446744073709551616", "16777216T", "1KiBs"}) {
        const auto parsed = parse_size(text);
        ASSERT_FALSE(parsed.has_value()) << text;
        EXPECT_EQ(parsed.error().code, EINVAL);
        EXPECT_NE(parsed.error().message.find(text), std::string::npos);
    }
}

TEST(FormatSize, IsShortAndExact) {
    EXPECT_EQ(format_size(Bytes(16384)), "16K");
    EXPECT_EQ(format_size(Bytes(16385)), "16385");
    EXPECT_EQ(format_size(Bytes(0)), "0");
    EXPECT_EQ(format_size(Bytes(3ull << 40)), "3T");
}

Result<int> odd(int value) {
    if (value % 2 == 0) return fail(EINVAL, "{} is even", value);
    return value;
}
Result<int> twice(int value) {
    return 2 * A4_TRY(odd(value));
}

TEST(Result, CarriesAValueOrAnErrorWithContext) {
    EXPECT_EQ(twice(3).value(), 6);
    const Result<int> error = twice(2).context("doubling");
    ASSERT_FALSE(error.has_value());
    EXPECT_EQ(error.error().code, EINVAL);
    EXPECT_EQ(error.error().message, "doubling: 2 is even");
    EXPECT_EQ(Error::from_errno(EIO, "read").message, "read: Input/output error");
}

TEST(Units, PositionsAndLengthsAreDifferentThings) {
    EXPECT_EQ(Pblk(10) + Blocks(4), Pblk(14));
    EXPECT_EQ(Pblk(14) - Pblk(10), Blocks(4));
    static_assert(!std::is_invocable_v<std::plus<>, Pblk, Pblk>);
    static_assert(!std::is_invocable_v<std::plus<>, Pblk, Bytes>);
    static_assert(!std::is_convertible_v<uint64_t, Pblk>);
    EXPECT_EQ(round_up(4097, 4096), 8192u);
    EXPECT_EQ(round_down(4097, 4096), 4096u);
    EXPECT_FALSE(is_power_of_two(0));
}

TEST(Random, GenerationsAreNeverZero) {
    for (int i = 0; i < 1000; ++i) ASSERT_NE(random_nonzero_u32(), 0u);
    EXPECT_NE(random_id(), random_id());
    EXPECT_NE(random_u64(), random_u64());
}

}  // namespace
}  // namespace atomic4
