// The RFC's own cases, by the names of those who reported them.
#include "device/file_device.h"
#include "unit/writer_fixture.h"

namespace atomic4::test {
namespace {

TEST(Rfc, JohnGarrysReport) {
    const TempDir dir;
    const std::string path = make_john_garrys_volume(dir);
    {
        auto device = must(FileDevice::open(path, {Access::ReadWrite, true}));
        const auto volume = open_volume(*device);
        EnableOptions options;
        options.unit = Bytes(4096);
        must(enable(*volume, options));
    }
    auto opened = must(open_for_writing(must(FileDevice::open(path, {Access::ReadWrite, true}))));
    const auto number = must(create_atomic_file(*opened.volume, "/f", {Bytes(0), Bytes(4096)}));
    const auto writer = must(AtomicWriter::open(std::move(opened)));
    // "status on a 1 KiB-block file, owned: unit_min 1024"
    EXPECT_EQ(write_limits(writer->volume(), writer->log_unit_max()).unit_min, Bytes(1024));
    const auto data = filled(4096, 1);
    const uint32_t generation = must(writer->file(number)).generation;
    must(writer->write({number, generation, ByteOffset(0), data}));
    const auto where = must(
        map_range(writer->volume(), number, must(writer->file(number)).inode, Lblk(0), Blocks(4)));
    ASSERT_EQ(where.size(), 1u);
    EXPECT_EQ(where[0].length, Blocks(4));
    EXPECT_EQ(where[0].pblk.value() % 4, 0u);
    must(writer->close());
}

class RfcWriter : public WriterTest {};

TEST_F(RfcWriter, OjaswinsTranscript) {
    start_default("4096");
    open();
    const auto number = create("/f", 0, 4096);
    must(write(number, 0, filled(4096, 1)));
    must(write(number, 8192, filled(8192, 2)));
    const auto where = must(
        map_range(writer->volume(), number, must(writer->file(number)).inode, Lblk(0), Blocks(4)));
    ASSERT_EQ(where.size(), 3u);
    EXPECT_EQ(where[0].length, Blocks(1));
    EXPECT_EQ(where[1].state, MapState::Hole);
    EXPECT_EQ(where[2].length, Blocks(2));
    EXPECT_EQ(where[2].pblk.value() % 2, 0u);
    close();
    EXPECT_EQ(fsck_complaints(memory->contents()), "");
}

// Unit 4 KiB: 4 KiB first, then 16 KiB over it, with somebody else's block behind the first.
TEST_F(RfcWriter, TrialUser) {
    start_default("4096");
    memory->set_atomic_limits(native_limits(4096, 65536));
    open();
    const auto number = create("/f", 4096, 4096);
    const auto neighbour = create("/g", 4096, 4096);
    must(write(neighbour, 0, filled(4096, 9)));
    must(write(number, 0, filled(4096, 1)));
    const auto refused = write(number, 0, filled(16384, 2), Engine::Native);
    EXPECT_EQ(code_of(refused), EIO);
    must(write(number, 0, filled(16384, 2), Engine::Logged));
    must(write(number, 0, filled(16384, 3), Engine::Auto));
    EXPECT_TRUE(content(number) == filled(16384, 3));
    EXPECT_EQ(
        must(check_layout(writer->volume(), must(writer->file(number)), Bytes(4096))).problems, 0u);
    close();
    EXPECT_EQ(fsck_complaints(memory->contents()), "");
}

}  // namespace
}  // namespace atomic4::test
