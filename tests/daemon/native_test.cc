// The native engine, end to end: the real daemon on an owned image that lies on XFS, where
// RWF_ATOMIC works; and what is told where it doesn't.
#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "device/raw_statx.h"
#include "ext4/atomic_file.h"
#include "support/served_volume.h"
#include "support/stamps.h"
#include "support/xfs.h"
#include "writer/atomic_writer.h"
#include "writer/open_volume.h"

namespace atomic4::test {
namespace {

using ::testing::HasSubstr;
using wire::WireEngine;

constexpr uint32_t kReadWrite = wire::kOpenRead | wire::kOpenWrite;

// /data, preallocated in units of 1 MiB, and /grow, empty; the log takes 4 MiB.
Image volume() {
    EnableOptions options;
    options.log_size = Bytes(16448 * kKiB);
    Image image = make_atomic4(96 * kMiB, {"-b", "4096"}, options);
    auto opened = open_for_writing(std::make_unique<ImageDevice>(image)).value();
    NewFile data;
    data.size = Bytes(32 * kMiB);
    data.unit = Bytes(kMiB);
    must(create_atomic_file(*opened.volume, "/data", data));
    NewFile grow;
    grow.unit = Bytes(kUnit);
    must(create_atomic_file(*opened.volume, "/grow", grow));
    return image;
}

class NativeTest : public ::testing::Test {
  protected:
    void SetUp() override {
        A4_REQUIRE_ROOT();
        if (const auto why = Xfs::why_not()) A4_SKIP(*why);
    }
    void TearDown() override {
        if (HasFailure() && daemon_) fmt::print(stderr, "--- atomic4d said:\n{}", daemon_->said());
        daemon_.reset();
    }
    void serve_on_xfs(const std::vector<std::string>& options = {}) {
        xfs_.emplace();
        image_ = xfs_->file("volume");
        store(image_);
        daemon_.emplace(image_, options);
    }
    static void store(const std::string& path) {
        const Image image = volume();
        std::ofstream(path, std::ios::binary)
            .write(reinterpret_cast<const char*>(image.data()),
                   static_cast<std::streamsize>(image.size()));
    }
    std::unique_ptr<Client> connect() const {
        return must(Client::connect(daemon_->socket(), ClientOptions()));
    }
    static nlohmann::json stats(Client& client) {
        return nlohmann::json::parse(must(client.stats()));
    }
    std::vector<std::byte> read(Client& client, const File& file, uint64_t offset,
                                uint64_t length) const {
        std::vector<std::byte> bytes(length);
        bytes.resize(must(client.read(file.handle, ByteOffset(offset), bytes)).value());
        return bytes;
    }

    std::optional<Xfs> xfs_;
    std::string image_;
    std::optional<DaemonProcess> daemon_;
    std::mt19937_64 random_{7};
};

// After xfstests generic/765: the limits agree, and each power of two within them works.
TEST_F(NativeTest, LimitsAreThoseOfTheImageAndEachPowerOfTwoWorks) {
    serve_on_xfs();
    const auto kernel = raw_statx(open_path(image_, O_RDONLY).get());
    ASSERT_TRUE(kernel && kernel->has_atomic);
    if (!kernel->can_atomic) A4_SKIP("this kernel's XFS does no RWF_ATOMIC");
    const auto client = connect();
    const File file = must(client->open("/data", kReadWrite));
    const FileStatus status = must(client->statx(file.handle));
    EXPECT_EQ(status.engine, WireEngine::Native);
    EXPECT_EQ(status.why_not_native, "");
    EXPECT_EQ(status.unit_min, Bytes(std::max<uint64_t>(4096, kernel->atomic_unit_min)));
    EXPECT_EQ(status.unit_max_native, Bytes(std::min<uint64_t>(4 * kMiB, kernel->atomic_unit_max)));
    EXPECT_EQ(status.unit_max, std::max(status.unit_max_native, status.unit_max_logged));
    EXPECT_EQ(status.segments_max, kernel->atomic_segments_max);
    const uint64_t most = status.unit_max_native.value();
    ASSERT_GE(most, kMiB);

    const File forced = must(client->open("/data", kReadWrite, WireEngine::Native));
    EXPECT_EQ(must(client->statx(forced.handle)).engine, WireEngine::Native);
    uint64_t writes = 0;
    for (uint64_t unit = 4096; unit <= kMiB; unit *= 2) {
        for (const File* through : {&file, &forced}) {
            SCOPED_TRACE(unit);
            const uint64_t offset = ++writes % 3 * unit;
            const auto bytes = random_bytes(unit, random_);
            const auto done = client->write(through->handle, ByteOffset(offset), bytes);
            ASSERT_TRUE(done) << done.error().message;
            EXPECT_EQ(done->engine, WireEngine::Native);
            EXPECT_EQ(done->ack_mode, wire::AckMode::Exclusive);
            EXPECT_EQ(read(*client, file, offset, unit), bytes);
        }
    }
    EXPECT_EQ(stats(*client)["rwf_atomic_submissions"], writes);
    EXPECT_EQ(stats(*client)["writes"]["native"]["count"], writes);
    EXPECT_EQ(stats(*client)["writes"]["logged"]["count"], 0);
    EXPECT_EQ(must(client->statx(file.handle)).writes_native, writes);

    // What is outside is refused before the kernel is asked.
    const auto data = filled(2 * most, 1);
    const auto before = read(*client, file, 0, kUnit);
    for (const auto& [offset, length] : {std::pair<uint64_t, uint64_t>{0, 2 * most},
                                         {0, 2048},
                                         {0, kUnit - 1},
                                         {0, kUnit + 1},
                                         {512, kUnit},
                                         {4096, kUnit}}) {
        const auto done =
            client->write(forced.handle, ByteOffset(offset), std::span(data).first(length));
        ASSERT_FALSE(done) << length << " at " << offset;
        EXPECT_EQ(done.error().code, EINVAL) << done.error().message;
    }
    EXPECT_EQ(read(*client, file, 0, kUnit), before);
    EXPECT_EQ(stats(*client)["rwf_atomic_submissions"], writes);
    EXPECT_EQ(daemon_->stop(), 0);
}

TEST_F(NativeTest, TheChoiceOfEachWriteIsTold) {
    serve_on_xfs();
    const auto client = connect();
    const File data = must(client->open("/data", kReadWrite));
    if (must(client->statx(data.handle)).engine != WireEngine::Native)
        A4_SKIP("this kernel's XFS does no RWF_ATOMIC");
    const File grow = must(client->open("/grow", kReadWrite));
    const File logged = must(client->open("/data", kReadWrite, WireEngine::Logged));
    EXPECT_EQ(must(client->statx(logged.handle)).engine, WireEngine::Logged);
    const auto bytes = random_bytes(4 * kMiB, random_);
    uint64_t native_count = 0, logged_count = 0;
    const auto write = [&](const File& file, uint64_t offset, uint64_t length, WireEngine engine) {
        SCOPED_TRACE(fmt::format("{} at {}", length, offset));
        const auto done =
            client->write(file.handle, ByteOffset(offset), std::span(bytes).first(length));
        ASSERT_TRUE(done) << done.error().message;
        EXPECT_EQ(done->engine, engine);
        ++(engine == WireEngine::Native ? native_count : logged_count);
        EXPECT_EQ(read(*client, file, offset, kUnit),
                  std::vector(bytes.begin(), bytes.begin() + kUnit));
    };
    write(data, 0, kUnit, WireEngine::Native);
    write(data, 0, 4 * kMiB, WireEngine::Logged);  // longer than the device takes
    write(logged, 0, kUnit, WireEngine::Logged);
    write(data, 0, kUnit, WireEngine::Native);            // over a live record
    write(grow, 100 * kUnit, kUnit, WireEngine::Logged);  // beyond EOF
    write(grow, 50 * kUnit, kUnit, WireEngine::Native);   // before it all is allocated now
    write(grow, 101 * kUnit, kUnit, WireEngine::Logged);
    write(grow, 100 * kUnit, kUnit, WireEngine::Native);
    const std::vector<BatchPart> parts = {
        {data.handle, ByteOffset(0), std::span(bytes).first(4096)},
        {grow.handle, ByteOffset(4096), std::span(bytes).first(4096)}};
    EXPECT_EQ(must(client->write_batch(parts)).engine, WireEngine::Logged);
    ++logged_count;
    const auto told = stats(*client);
    EXPECT_EQ(told["rwf_atomic_submissions"], native_count);
    EXPECT_EQ(told["writes"]["native"]["count"], native_count);
    EXPECT_EQ(told["writes"]["logged"]["count"], logged_count);
    EXPECT_THAT(must(client->stats(wire::StatsFormat::Prometheus)),
                HasSubstr(fmt::format("atomic4_rwf_atomic_submissions_total {}", native_count)));
    const FileStatus status = must(client->statx(grow.handle));
    EXPECT_EQ(status.writes_native, 2u);
    EXPECT_EQ(status.writes_logged, 3u);
    EXPECT_EQ(daemon_->stop(), 0);
}

// Many in flight, of which none may be lost or torn, also when the daemon is killed.
TEST_F(NativeTest, ManyInFlightAndAKill) {
    serve_on_xfs();
    auto client = connect();
    File file = must(client->open("/data", kReadWrite));
    if (must(client->statx(file.handle)).engine != WireEngine::Native)
        A4_SKIP("this kernel's XFS does no RWF_ATOMIC");
    constexpr size_t kUnits = 64;
    constexpr uint64_t kWrites = 500;
    std::map<uint64_t, std::pair<size_t, uint64_t>> flying;  // tag: unit, serial
    std::vector<uint64_t> answered(kUnits), sent(kUnits);
    uint64_t serial = 0;
    const auto submit = [&] {
        const size_t unit = random_() % kUnits;
        sent[unit] = ++serial;
        flying[must(client->submit_write(file.handle, ByteOffset(unit * kUnit),
                                         stamped(kUnit, 1, serial, unit * kUnit)))] = {unit,
                                                                                       serial};
    };
    const auto reap = [&] {
        for (const Completion& done : client->reap(16)) {
            ASSERT_EQ(done.code, 0) << done.reason;
            EXPECT_EQ(done.written.engine, WireEngine::Native);
            const auto& [unit, number] = flying.at(done.tag);
            answered[unit] = std::max(answered[unit], number);
            flying.erase(done.tag);
        }
    };
    while (serial < kWrites || !flying.empty()) {
        while (serial < kWrites && flying.size() < 16) submit();
        reap();
    }
    EXPECT_EQ(stats(*client)["rwf_atomic_submissions"], kWrites);
    // The last ones are on their way.
    for (int i = 0; i < 16; ++i) submit();
    daemon_->kill_all();
    daemon_->start();
    client = connect();
    file = must(client->open("/data", kReadWrite));
    for (size_t unit = 0; unit < kUnits; ++unit) {
        const auto bytes = read(*client, file, unit * kUnit, kUnit);
        const auto is = whole(bytes, unit * kUnit);
        ASSERT_TRUE(is) << "unit " << unit << ": " << describe(bytes);
        EXPECT_GE(is->serial, answered[unit]);
        EXPECT_LE(is->serial, sent[unit]);
    }
    EXPECT_EQ(daemon_->stop(), 0);
    const UniqueFd fd = open_path(image_, O_RDONLY);
    Image image(96 * kMiB);
    ASSERT_EQ(::pread(fd.get(), image.data(), image.size(), 0), static_cast<ssize_t>(image.size()));
    EXPECT_EQ(fsck_complaints(image), "");
}

// A loop device does no RWF_ATOMIC.
TEST_F(NativeTest, WhereTheDeviceCantItIsRefused) {
    const TempDir temp;
    store(temp.file("image"));
    const LoopDevice loop(temp.file("image"));
    daemon_.emplace(loop.path());
    const auto client = connect();
    const File forced = must(client->open("/data", kReadWrite, WireEngine::Native));
    const auto bytes = random_bytes(kUnit, random_);
    const auto refused = client->write(forced.handle, ByteOffset(0), bytes);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, EOPNOTSUPP) << refused.error().message;
    EXPECT_EQ(read(*client, forced, 0, kUnit), filled(kUnit, 0));
    const File file = must(client->open("/data", kReadWrite));
    const FileStatus status = must(client->statx(file.handle));
    EXPECT_EQ(status.engine, WireEngine::Logged);
    EXPECT_NE(status.why_not_native, "");
    EXPECT_EQ(status.unit_max_native, Bytes(0));
    EXPECT_EQ(must(client->write(file.handle, ByteOffset(0), bytes)).engine, WireEngine::Logged);
    const auto told = stats(*client);
    EXPECT_EQ(told["rwf_atomic_submissions"], 0);
    EXPECT_EQ(told["writes"]["native"]["count"], 0);
    EXPECT_EQ(told["errors"]["EOPNOTSUPP"], 1);
    EXPECT_EQ(daemon_->stop(), 0);
}

}  // namespace
}  // namespace atomic4::test
