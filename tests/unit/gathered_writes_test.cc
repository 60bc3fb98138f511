// Many small writes as few large ones.
#include "redo/gathered_writes.h"

#include <gtest/gtest.h>

#include <random>

#include "device/file_device.h"
#include "support/bytes.h"
#include "support/command.h"
#include "support/loop.h"
#include "unit/volume_fixture.h"

namespace atomic4::test {
namespace {

TEST(GatheredWrites, LaterOnesCount) {
    for (uint64_t seed = 0; seed < 50; ++seed) {
        std::mt19937_64 random(seed);
        MemoryDevice memory(Bytes(64 << 10));
        Image want = memory.contents();
        GatheredWrites gathered(memory);
        std::vector<Image> data;
        for (int i = 0; i < 200; ++i)
            data.push_back(random_bytes(1 + random() % (i % 10 == 0 ? 16384 : 600), random));
        for (const Image& bytes : data) {
            const uint64_t at = random() % (want.size() - bytes.size() + 1);
            gathered.add(ByteOffset(at), bytes);
            std::ranges::copy(bytes, want.begin() + static_cast<ptrdiff_t>(at));
            if (random() % 100 == 0) must(gathered.write());
        }
        must(gathered.write());
        EXPECT_TRUE(memory.contents() == want) << "seed " << seed;
        // Nothing is left.
        memory.contents().assign(want.size(), std::byte{0});
        must(gathered.write());
        EXPECT_TRUE(memory.contents() == Image(want.size()));
    }
}

TEST(GatheredWrites, NeighboursAreOneWrite) {
    MemoryDevice memory(Bytes(64 << 20));
    RecordingDevice recorder(memory);
    GatheredWrites gathered(recorder);
    const Image bytes = filled(16384, 5);
    for (uint64_t i = 64; i-- > 0;) gathered.add(ByteOffset(i * 16384), bytes);
    gathered.add(ByteOffset(32 << 20), bytes);
    must(gathered.write());
    ASSERT_EQ(recorder.events.size(), 2u);
    EXPECT_EQ(recorder.events[0].length, Bytes(1 << 20));
    EXPECT_EQ(recorder.events[1].length, Bytes(16384));
    // More than the buffer takes at once, and one that is longer than a run.
    const Image large = filled(3 << 20, 6);
    for (uint64_t i = 0; i < 12; ++i) gathered.add(ByteOffset(i * (4 << 20) + 1), large);
    must(gathered.write());
    for (uint64_t i = 0; i < 12; ++i) {
        const auto part = std::span(memory.contents()).subspan(i * (4 << 20) + 1, large.size());
        EXPECT_TRUE(std::ranges::equal(part, large));
    }
}

TEST(GatheredWrites, OnAFile) {
    const TempDir dir;
    make_image(dir.file("image"), (8 << 20) + 700);
    const auto device =
        must(FileDevice::open(dir.file("image"), {.access = Access::ReadWrite, .exclusive = true}));
    std::mt19937_64 random(3);
    Image want(device->size().value());
    GatheredWrites gathered(*device);
    std::vector<Image> data;
    for (int i = 0; i < 300; ++i) data.push_back(random_bytes(16384, random));
    for (const Image& bytes : data) {
        // Most are aligned; some reach the odd end.
        uint64_t at = random() % (want.size() - bytes.size() + 1);
        if (random() % 8 != 0) at = round_down(at, 4096);
        if (random() % 50 == 0) at = want.size() - bytes.size();
        gathered.add(ByteOffset(at), bytes);
        std::ranges::copy(bytes, want.begin() + static_cast<ptrdiff_t>(at));
    }
    must(gathered.write());
    Image found(want.size());
    must(device->read(ByteOffset(0), found));
    EXPECT_TRUE(found == want);
    // Beyond the end: refused before anything is written.
    const DeviceWrite beyond[] = {{ByteOffset(0), data[0]}, {ByteOffset(want.size()), data[0]}};
    EXPECT_EQ(code_of(device->write_many(beyond)), EINVAL);
    must(device->read(ByteOffset(0), found));
    EXPECT_TRUE(found == want);
}

}  // namespace
}  // namespace atomic4::test
