// After xfstests generic/776: random operations through the socket and through the mounted file,
// against a model in memory.
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <map>

#include "support/served_volume.h"

namespace atomic4::test {
namespace {

constexpr uint64_t kFileMax = 2 * kMiB;
constexpr uint64_t kBlock = 4096;
constexpr size_t kFiles = 3;

class FsxTest : public ServedTest {
  protected:
    struct Model {
        std::string name;
        std::vector<File> handles;  // of each client
        std::vector<std::byte> bytes;
    };
    struct InFlight {
        size_t client;
        uint64_t tag;
        std::vector<std::tuple<size_t, uint64_t, uint64_t>> ranges;  // file, from, to
    };

    uint64_t below(uint64_t n) { return random_() % n; }
    void put(size_t file, uint64_t offset, std::span<const std::byte> data);
    void start_all();
    // Overlapping ones may be carried out in any order: what is in the way is awaited.
    void make_way(size_t file, uint64_t from, uint64_t to);
    void settle();
    void write(bool plain);
    void write_batch();
    void read(bool mounted);
    void truncate();
    void punch();
    void compare_all();

    std::mt19937_64 random_;
    std::vector<std::unique_ptr<Client>> clients_;  // with an arena, without
    std::vector<Model> files_;
    std::vector<InFlight> flying_;
    std::map<std::string, uint64_t> counts_;
};

void FsxTest::put(size_t file, uint64_t offset, std::span<const std::byte> data) {
    auto& bytes = files_[file].bytes;
    bytes.resize(std::max<size_t>(bytes.size(), offset + data.size()));
    std::ranges::copy(data, bytes.begin() + static_cast<std::ptrdiff_t>(offset));
}

void FsxTest::start_all() {
    clients_.clear();
    clients_.push_back(connect());
    clients_.push_back(connect({.arena = Bytes(0)}));
    for (Model& file : files_) {
        file.handles.clear();
        for (const auto& client : clients_)
            file.handles.push_back(open_through(*client, path(file.name)));
    }
}

void FsxTest::settle() {
    for (size_t i = 0; i < clients_.size(); ++i) {
        while (std::ranges::any_of(flying_, [&](const auto& it) { return it.client == i; })) {
            for (const Completion& done : clients_[i]->reap(16)) {
                ASSERT_EQ(done.code, 0) << done.reason;
                std::erase_if(flying_, [&](const InFlight& it) {
                    return it.client == i && it.tag == done.tag;
                });
            }
        }
    }
}

void FsxTest::make_way(size_t file, uint64_t from, uint64_t to) {
    const bool overlap = std::ranges::any_of(flying_, [&](const InFlight& it) {
        return std::ranges::any_of(it.ranges, [&](const auto& range) {
            const auto& [other, begin, end] = range;
            return other == file && begin < to && from < end;
        });
    });
    if (overlap || flying_.size() >= 16) settle();
}

void FsxTest::write(bool plain) {
    const size_t file = below(kFiles);
    const size_t client = below(2);
    const uint64_t length =
        plain ? 1 + below(below(3) == 0 ? 40'000 : 3000) : kBlock << below(client == 0 ? 7 : 5);
    const uint64_t offset = plain ? below(kFileMax - length) : below(kFileMax / length) * length;
    make_way(file, offset, offset + length);
    const auto data = random_bytes(length, random_);
    const uint64_t handle = files_[file].handles[client].handle;
    const auto tag = plain ? clients_[client]->submit_write_plain(handle, ByteOffset(offset), data)
                           : clients_[client]->submit_write(handle, ByteOffset(offset), data);
    flying_.push_back({client, must(tag), {{file, offset, offset + length}}});
    put(file, offset, data);
    ++counts_[plain ? "plain" : "atomic"];
}

void FsxTest::write_batch() {
    const size_t client = below(2);
    std::vector<std::vector<std::byte>> data;
    std::vector<BatchPart> parts;
    InFlight batch{client, 0, {}};
    uint64_t at = 0;
    for (uint64_t n = 2 + below(3); n > 0; --n) {
        const size_t file = below(kFiles);
        const uint64_t length = kBlock * (1 + below(4));
        at += below(60) * kBlock;
        make_way(file, at, at + length);
        data.push_back(random_bytes(length, random_));
        batch.ranges.emplace_back(file, at, at + length);
        at += length;
    }
    for (size_t i = 0; i < data.size(); ++i) {
        const auto& [file, from, to] = batch.ranges[i];
        parts.push_back({files_[file].handles[client].handle, ByteOffset(from), data[i]});
        put(file, from, data[i]);
    }
    batch.tag = must(clients_[client]->submit_batch(parts));
    flying_.push_back(batch);
    ++counts_["batch"];
}

void FsxTest::read(bool mounted) {
    settle();
    const Model& file = files_[below(kFiles)];
    const size_t client = below(2);
    const bool direct = mounted && below(2) == 0;
    const uint64_t align = direct ? kBlock : 1;
    const uint64_t offset = below(kFileMax) / align * align;
    const uint64_t length = round_up(1 + below(50'000), align);
    std::vector<std::byte> got(length);
    if (mounted) {
        got = read_path(path(file.name), offset, length, direct ? O_DIRECT : 0);
    } else {
        got.resize(
            must(clients_[client]->read(file.handles[client].handle, ByteOffset(offset), got))
                .value());
    }
    const uint64_t there = file.bytes.size() > offset ? file.bytes.size() - offset : 0;
    ASSERT_EQ(got.size(), std::min(length, there)) << file.name << " at " << offset;
    if (got.empty()) return;
    const auto expected = std::span(file.bytes).subspan(offset, got.size());
    const auto [mine, other] = std::ranges::mismatch(got, expected);
    ASSERT_TRUE(mine == got.end())
        << file.name << ": " << length << " bytes at " << offset << " differ from "
        << mine - got.begin() << (mounted ? " (mounted)" : " (daemon)");
    ++counts_[mounted ? "read mounted" : "read"];
}

// By path, which the daemon doesn't see, or by a descriptor.
void FsxTest::truncate() {
    settle();
    Model& file = files_[below(kFiles)];
    const uint64_t size = below(4) == 0 ? below(kFileMax / kBlock) * kBlock : below(kFileMax);
    if (below(2) == 0) {
        ASSERT_EQ(::truncate(path(file.name).c_str(), static_cast<off_t>(size)), 0);
    } else {
        const UniqueFd fd = open_path(path(file.name), O_RDWR);
        ASSERT_EQ(::ftruncate(fd.get(), static_cast<off_t>(size)), 0);
    }
    file.bytes.resize(size);
    ++counts_["truncate"];
}

void FsxTest::punch() {
    settle();
    Model& file = files_[below(kFiles)];
    const uint64_t offset = below(kFileMax);
    const uint64_t length = 1 + below(100'000);
    const UniqueFd fd = open_path(path(file.name), O_RDWR);
    ASSERT_EQ(::fallocate(fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                          static_cast<off_t>(offset), static_cast<off_t>(length)),
              0);
    const uint64_t size = file.bytes.size();
    std::fill(file.bytes.begin() + static_cast<std::ptrdiff_t>(std::min(offset, size)),
              file.bytes.begin() + static_cast<std::ptrdiff_t>(std::min(offset + length, size)),
              std::byte{0});
    ++counts_["punch"];
}

void FsxTest::compare_all() {
    for (const Model& file : files_) {
        const auto found = read_path(path(file.name), 0, kFileMax + kMiB);
        ASSERT_EQ(found.size(), file.bytes.size()) << file.name;
        ASSERT_TRUE(found == file.bytes) << file.name;
    }
}

TEST_F(FsxTest, AgreesWithAModel) {
    serve();
    random_.seed(test_seed());
    for (size_t i = 0; i < kFiles; ++i) {
        files_.push_back({fmt::format("f{}", i), {}, {}});
        open_path(path(files_[i].name), O_RDWR | O_CREAT);
    }
    start_all();
    const int operations = long_form() ? 200'000 : 10'000;
    for (int i = 0; i < operations && !HasFatalFailure(); ++i) {
        SCOPED_TRACE(fmt::format("operation {}", i));
        const uint64_t what = below(100);
        if (what < 45)
            write(false);
        else if (what < 60)
            write(true);
        else if (what < 72)
            write_batch();
        else if (what < 85)
            read(false);
        else if (what < 95)
            read(true);
        else if (what < 98)
            truncate();
        else
            punch();
        if (i % 2500 == 2499) {
            settle();
            compare_all();
            // Killed, after what was written plainly is durable too.
            for (const Model& file : files_) must(clients_[0]->flush(file.handles[0].handle));
            daemon_->kill_all();
            daemon_->start();
            compare_all();
            start_all();
        }
    }
    for (const auto& [what, count] : counts_) fmt::print("{} {}, ", count, what);
    fmt::print("\n");
    settle();
    clients_.clear();
    EXPECT_EQ(daemon_->stop(), 0) << daemon_->said();
    image_->unmount();
    EXPECT_EQ(fsck_complaints(image_->load()), "");
    image_->mount();
    compare_all();
}

}  // namespace
}  // namespace atomic4::test
