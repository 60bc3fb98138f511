// Native writes for real: a volume in an image on XFS, which does RWF_ATOMIC in software, many
// writes in flight.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "device/file_device.h"
#include "ext4/path.h"
#include "support/bytes.h"
#include "support/command.h"
#include "support/privileged.h"
#include "support/results.h"
#include "support/xfs.h"
#include "writer/enable.h"
#include "writer/owned_target.h"

namespace atomic4::test {
namespace {

constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kUnit = 16384;
constexpr size_t kUnits = 256;

class OwnedOnXfs : public testing::TestWithParam<EventLoop::Backend> {
  protected:
    void SetUp() override {
        A4_REQUIRE_ROOT();
        if (const auto why = Xfs::why_not()) A4_SKIP(*why);
        auto made = EventLoop::create(GetParam());
        if (!made) A4_SKIP(made.error().message);
        loop_ = std::move(*made);

        xfs_.emplace();
        image_ = xfs_->file("volume");
        make_image(image_, 64 * kMiB);
        run({"mke2fs", "-q", "-F", "-t", "ext4", image_});
        {
            VolumeOptions options;
            options.purpose = OpenFor::Write;
            options.require_atomic4 = false;
            const auto volume = must(Volume::open(device(), options));
            must(enable(*volume, {}));
        }
        target_ = must(OwnedTarget::open(*loop_, must(open_for_writing(device()))));
        const AtomicLimits& limits = target_->volume().device().atomic_limits();
        if (!limits.supported()) A4_SKIP(limits.why_not);
        number_ = must(
            create_atomic_file(target_->volume(), "/f", {Bytes(kUnits * kUnit), Bytes(kUnit)}));
        file_ = must(target_->open_file(number_));
    }
    void TearDown() override {
        file_.reset();
        target_.reset();
    }
    static void run(const std::vector<std::string>& command) {
        const CommandOutput result = run_command(command);
        ASSERT_EQ(result.status, 0) << command[0] << ": " << result.output;
    }
    std::unique_ptr<FileDevice> device() {
        return must(FileDevice::open(image_, {.access = Access::ReadWrite, .exclusive = true}));
    }
    void run_until(const std::function<bool()>& condition) {
        while (!condition()) must(loop_->run_once());
    }
    void stop() {
        std::optional<bool> stopped;
        target_->stop([&](const Result<>& result) { stopped = result.has_value(); });
        run_until([&] { return stopped.has_value(); });
        EXPECT_TRUE(*stopped);
        target_.reset();
    }

    std::optional<Xfs> xfs_;
    std::string image_;
    std::unique_ptr<EventLoop> loop_;
    std::unique_ptr<OwnedTarget> target_;
    ext2_ino_t number_ = 0;
    FileRef file_;
};

// A logged write now and then keeps live records in the way; overlapping ones come in a row.
TEST_P(OwnedOnXfs, SixteenInFlight) {
    std::mt19937_64 random(7);
    std::vector<std::vector<std::byte>> slots(16, std::vector<std::byte>(kUnit + 4096));
    std::vector<unsigned> want(kUnits, 0);
    size_t submitted = 0;
    size_t ended = 0;
    uint64_t logged = 0;
    constexpr size_t kWrites = 600;
    std::function<void(size_t)> next = [&](size_t slot) {
        if (submitted == kWrites) return;
        const unsigned value = 1 + static_cast<unsigned>(random() % 255);
        // Some from memory that is not aligned.
        const auto address = reinterpret_cast<uintptr_t>(slots[slot].data());
        const size_t skip = round_up(address, 4096) - address + (random() % 8 == 0 ? 1 : 0);
        const auto data = std::span(slots[slot]).subspan(std::min<size_t>(skip, 4096), kUnit);
        std::ranges::fill(data, static_cast<std::byte>(value));
        const size_t unit = random() % 8 == 0 ? 0 : random() % kUnits;
        want[unit] = value;
        auto op = std::make_unique<WriteOp>();
        op->engine = ++submitted % 50 == 0 ? Engine::Logged : Engine::Auto;
        logged += op->engine == Engine::Logged;
        op->ranges.push_back({file_, ByteOffset(unit * kUnit), data});
        op->done = [&, slot](Result<WriteDone> result) {
            EXPECT_TRUE(result.has_value()) << result.error().message;
            ++ended;
            next(slot);
        };
        target_->submit(std::move(op));
    };
    for (size_t slot = 0; slot < slots.size(); ++slot) next(slot);
    run_until([&] { return ended == kWrites; });
    const TargetCounts counts = target_->counts();
    EXPECT_EQ(counts.writes_logged, logged);
    EXPECT_EQ(counts.writes_native, kWrites - logged);
    EXPECT_EQ(counts.atomic_submissions, kWrites - logged);
    EXPECT_EQ(file_->writes_native, kWrites - logged);
    EXPECT_EQ(must(target_->limits(file_)).engine, Engine::Native);
    file_.reset();
    stop();

    const auto writer = must(AtomicWriter::open(must(open_for_writing(device()))));
    std::vector<std::byte> found(kUnit);
    for (size_t unit = 0; unit < kUnits; ++unit) {
        must(writer->read(number_, ByteOffset(unit * kUnit), found));
        EXPECT_TRUE(std::ranges::all_of(
            found, [&](std::byte byte) { return byte == static_cast<std::byte>(want[unit]); }))
            << "unit " << unit;
    }
}

INSTANTIATE_TEST_SUITE_P(Backends, OwnedOnXfs,
                         testing::Values(EventLoop::Backend::Uring, EventLoop::Backend::Syscalls),
                         [](const auto& info) {
                             return info.param == EventLoop::Backend::Uring ? "Uring" : "Syscalls";
                         });

}  // namespace
}  // namespace atomic4::test
