#include "support/device_shadow.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "support/bytes.h"

namespace atomic4::test {

void compare_with_shadow(Device& device, uint64_t seed, int steps, uint64_t max_length) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    std::mt19937_64 random(seed);
    const uint64_t size = device.size().value();
    std::vector<std::byte> shadow = random_bytes(size, random);
    ASSERT_TRUE(device.write(ByteOffset(0), shadow).has_value());
    for (int step = 0; step < steps; ++step) {
        uint64_t begin = random() % size;
        uint64_t length = random() % max_length;
        if (random() % 2 != 0) begin = round_down(begin, 4096);
        if (random() % 2 != 0) length = round_up(length, 4096);
        if (random() % 8 == 0) begin = size - std::min(size, length);  // the odd end of an image
        length = std::min(length, size - begin);
        const ByteOffset offset(begin);
        const size_t skew = random() % 3 == 0 ? random() % 64 : 0;
        std::vector<std::byte> memory = random_bytes(length + skew, random);
        const std::span<std::byte> data = std::span(memory).subspan(skew);
        Result<> result;
        const uint64_t action = random() % 16;
        if (action < 6) {
            result = device.read(offset, data);
            ASSERT_TRUE(std::equal(data.begin(), data.end(), shadow.begin() + begin))
                << "step " << step << ": read of " << length << " at " << begin;
        } else if (action < 14) {
            result = action < 11 ? device.write(offset, data) : device.write_durable(offset, data);
            std::copy(data.begin(), data.end(), shadow.begin() + begin);
        } else if (action == 14) {
            result = device.zero(offset, Bytes(length));
            std::fill_n(shadow.begin() + begin, length, std::byte{0});
        } else {
            result = device.flush();
        }
        ASSERT_TRUE(result.has_value()) << "step " << step << ": " << result.error().message;
    }
    std::vector<std::byte> all(size);
    ASSERT_TRUE(device.read(ByteOffset(0), all).has_value());
    EXPECT_TRUE(all == shadow);
}

}  // namespace atomic4::test
