// generic/776: the writer against a model in memory.
#include <random>

#include "unit/writer_fixture.h"
#include "writer/atomic_writer.h"

namespace atomic4::test {
namespace {

// Random operations on a few files, mixing atomic, plain and batched writes, kills and clean
// reopenings, against memory.
class Fsx : public WriterTest, public testing::WithParamInterface<const char*> {};

constexpr int kFsxOperations = 10'000;  // over all block sizes

TEST_P(Fsx, AgainstAModel) {
    const char* block_size = GetParam();
    constexpr uint64_t kMaxFile = 400'000;
    const uint64_t seed = 776 + static_cast<uint64_t>(block_size[0]);
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    start(make_dirty_atomic4(12 << 20, {"-b", block_size}, log_of(256 << 10)));
    open();
    struct File {
        ext2_ino_t number;
        std::string path;
        uint64_t unit;  // 0: plain
        Image model;
    };
    std::vector<File> files;
    const uint64_t block = writer->volume().block_size().value();
    for (const uint64_t unit :
         {uint64_t{0}, block, uint64_t{16384}, uint64_t{65536}, uint64_t{0}}) {
        File file;
        file.path = fmt::format("/f{}", files.size());
        file.unit = unit;
        file.number = unit != 0 ? create(file.path, unit, unit) : create_plain(file.path);
        file.model = content(file.number);
        files.push_back(std::move(file));
    }
    const auto put = [](Image& model, uint64_t offset, std::span<const std::byte> data) {
        model.resize(std::max<size_t>(model.size(), offset + data.size()));
        std::copy(data.begin(), data.end(), model.begin() + static_cast<std::ptrdiff_t>(offset));
    };
    uint64_t logged = 0;
    uint64_t native = 0;
    uint64_t replays = 0;
    for (int step = 0; step < kFsxOperations / 3; ++step) {
        SCOPED_TRACE(testing::Message() << "step " << step);
        File& file = files[random() % files.size()];
        const uint64_t what = random() % 100;
        if (what < 50) {
            const uint64_t length = block << (random() % std::bit_width(32768 / block));
            const uint64_t offset = random() % (kMaxFile / length) * length;
            const auto data = random_bytes(length, random);
            const auto done =
                write(file.number, offset, data, random() % 3 == 0 ? Engine::Logged : Engine::Auto);
            ASSERT_TRUE(done) << length << " at " << offset << ": " << message_of(done);
            ++(done->engine == Engine::Native ? native : logged);
            put(file.model, offset, data);
        } else if (what < 70) {
            const uint64_t length = 1 + random() % (random() % 3 == 0 ? 40'000 : 3000);
            const uint64_t offset = random() % (kMaxFile - length);
            const auto data = random_bytes(length, random);
            const auto done = writer->write_plain(range(file.number, offset, data));
            ASSERT_TRUE(done) << length << " at " << offset << ": " << message_of(done);
            put(file.model, offset, data);
        } else if (what < 80) {
            std::vector<std::vector<std::byte>> data;
            std::vector<WriteRange> ranges;
            uint64_t at = 0;
            data.reserve(5);
            for (uint64_t n = 1 + random() % 5; n > 0; --n) {
                const File& target = files[random() % files.size()];
                at += random() % 20 * block;
                data.push_back(random_bytes(block * (1 + random() % 2), random));
                ranges.push_back(range(target.number, at, data.back()));
                at += data.back().size();
            }
            const auto done = writer->write_batch(ranges);
            ASSERT_TRUE(done) << message_of(done);
            for (const WriteRange& one : ranges) {
                for (File& target : files) {
                    if (target.number == one.inode) put(target.model, one.offset.value(), one.data);
                }
            }
        } else if (what < 95) {
            const uint64_t offset = random() % (kMaxFile + 1000);
            Image got(random() % 50'000);
            const uint64_t n = must(writer->read(file.number, ByteOffset(offset), got)).value();
            const uint64_t want = offset >= file.model.size()
                                      ? 0
                                      : std::min<uint64_t>(got.size(), file.model.size() - offset);
            ASSERT_EQ(n, want);
            ASSERT_TRUE(
                std::equal(got.begin(), got.begin() + static_cast<std::ptrdiff_t>(n),
                           file.model.begin() + static_cast<std::ptrdiff_t>(n == 0 ? 0 : offset)))
                << n << " at " << offset;
        } else if (what < 97) {
            must(random() % 2 == 0 ? writer->flush() : writer->retire_all());
        } else {
            if (random() % 2 == 0)
                close();
            else
                die();
            // Hardware comes and goes.
            memory->set_atomic_limits(random() % 2 == 0 ? native_limits(4096, 16384)
                                                        : AtomicLimits::none("not today"));
            replays += open() ? 1 : 0;
        }
        if (step % 250 == 0) {
            for (const File& each : files) {
                ASSERT_TRUE(content(each.number) == each.model) << each.path;
                if (each.unit == 0) continue;
                ASSERT_EQ(must(check_layout(writer->volume(), must(writer->file(each.number)),
                                            Bytes(each.unit)))
                              .problems,
                          0u)
                    << each.path;
            }
        }
    }
    close();
    EXPECT_EQ(fsck_complaints(memory->contents()), "");
    for (const File& file : files)
        EXPECT_TRUE(dump_file(memory->contents(), file.path) == file.model) << file.path;
    EXPECT_GT(logged, 100u);
    EXPECT_GT(native, 10u);
    EXPECT_GT(replays, 5u);
}

INSTANTIATE_TEST_SUITE_P(BlockSizes, Fsx, testing::Values("1024", "2048", "4096"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace atomic4::test
