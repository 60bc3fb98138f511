// The native engine on a mounted file, with a loop that plays a kernel which writes untorn through
// ext4 (support/native_loop.h).
#include <gmock/gmock.h>
#include <sys/ioctl.h>
#include <sys/uio.h>

#include "ext4/atomic_file.h"
#include "support/native_loop.h"

#ifndef RWF_ATOMIC
#define RWF_ATOMIC 0x00000040
#endif
#include "kernel/served_target.h"

namespace atomic4::test {
namespace {

using ::testing::HasSubstr;
using Answer = NativeLoop::Answer;

constexpr uint64_t kKiB = 1024;
constexpr uint64_t kMiB = 1024 * kKiB;
constexpr uint64_t kUnit = 16 * kKiB;

// /data of 4 MiB in units of 64 KiB; the log takes 1 MiB at most.
Image volume() {
    EnableOptions options;
    options.log_size = Bytes(4224 * kKiB);
    Image image = make_atomic4(64 * kMiB, {"-b", "4096"}, options);
    auto opened = open_for_writing(std::make_unique<ImageDevice>(image)).value();
    NewFile file;
    file.size = Bytes(4 * kMiB);
    file.unit = Bytes(4 * kUnit);
    create_atomic_file(*opened.volume, "/data", file).value();
    return image;
}

AtomicLimits limits_of(uint64_t unit_min, uint64_t unit_max) {
    AtomicLimits limits;
    limits.unit_min = Bytes(unit_min);
    limits.unit_max = Bytes(unit_max);
    limits.segments_max = 1;
    return limits;
}

class MountedNativeTest : public ServedTarget {
  protected:
    void SetUp() override {
        ServedTarget::SetUp();
        if (!IsSkipped() && !HasFatalFailure()) mount(volume());
    }
    void serve(const AtomicLimits& limits = limits_of(4 * kKiB, 64 * kKiB)) {
        auto loop = std::make_unique<NativeLoop>(new_loop());
        native_ = loop.get();
        MountedTarget::Options options;
        options.openers = std::make_unique<OwnOpeners>(OpenWatch::new_group().value());
        options.native_limits = [limits](int) { return limits; };
        begin(std::move(loop), std::move(options));
    }
    std::vector<std::byte> on_disk(uint64_t offset, uint64_t length, const char* name = "data") {
        return ServedTarget::on_disk(name, offset, length);
    }
    void expect_done(const Result<WriteDone>& done, Engine engine) {
        ASSERT_TRUE(done) << done.error().message;
        EXPECT_EQ(done->engine, engine);
    }
    void expect_refused(const Result<WriteDone>& done, int code, const char* words) {
        ASSERT_FALSE(done);
        EXPECT_EQ(done.error().code, code);
        EXPECT_THAT(done.error().message, HasSubstr(words));
    }
    std::vector<std::byte> random(uint64_t size) { return random_bytes(size, random_); }

    NativeLoop* native_ = nullptr;
};

// Not native, but it needs the moment: between the question for blocks and the placement somebody
// takes some of them, and the disk is full.
TEST_P(MountedNativeTest, AHoleThatSomebodyMakesMeanwhileCameAfterTheWrite) {
    serve();
    const UniqueFd filler = open_file("filler", O_RDWR | O_CREAT);
    const FileRef file = must_open();
    const auto before = random(4 * kUnit);
    expect_done(driver_->write(file, 0, before, Engine::Logged), Engine::Logged);
    driver_->run_until([&] { return counts().live_records == 0; });
    const auto fill = [&] {
        off_t at = 0;
        for (off_t step = 1 << 20; step >= 4096; step /= 2)
            while (::fallocate(filler.get(), FALLOC_FL_KEEP_SIZE, at, step) == 0) at += step;
    };
    bool taken = false;
    native_->on_write = [&](int, ByteOffset offset, Bytes length) {
        if (taken || offset != ByteOffset(0) || length != Bytes(4 * kUnit)) return;
        taken = true;
        ASSERT_EQ(::truncate(path().c_str(), static_cast<off_t>(kUnit)), 0);
        ASSERT_EQ(::truncate(path().c_str(), static_cast<off_t>(4 * kMiB)), 0);
        ASSERT_EQ(::syncfs(filler.get()), 0);  // what was freed can be used
        fill();
    };
    const auto bytes = random(4 * kUnit);
    expect_done(driver_->write(file, 0, bytes, Engine::Logged), Engine::Logged);
    ASSERT_TRUE(taken);
    EXPECT_EQ(target_->poisoned(), nullptr);
    auto found = on_disk(0, 4 * kUnit);
    ASSERT_EQ(found.size(), 4 * kUnit);
    EXPECT_TRUE(std::equal(found.begin(), found.begin() + kUnit, bytes.begin()));
    found.erase(found.begin(), found.begin() + kUnit);
    EXPECT_TRUE(found == std::vector<std::byte>(3 * kUnit));
    expect_refused(driver_->write(file, 0, bytes, Engine::Logged), ENOSPC, "allocating blocks");
    stop();
}

TEST_P(MountedNativeTest, AutoTakesItWhereItHolds) {
    serve();
    const FileRef file = must_open();
    EXPECT_EQ(limits(file).engine, Engine::Native);
    EXPECT_EQ(limits(file).why_not_native, "");
    EXPECT_EQ(limits(file).unit_max_native, Bytes(64 * kKiB));
    EXPECT_EQ(limits(file).unit_max_logged, Bytes(kMiB));
    EXPECT_EQ(limits(file).unit_max, Bytes(kMiB));
    const auto bytes = random(kMiB + 1);
    const std::span<const std::byte> data(bytes);
    uint64_t native = 0;
    for (uint64_t unit = 4 * kKiB; unit <= 64 * kKiB; unit *= 2) {
        for (const Engine engine : {Engine::Auto, Engine::Native}) {
            SCOPED_TRACE(unit);
            // Memory of any alignment.
            const auto some = data.subspan(engine == Engine::Auto ? 1 : 0, unit);
            expect_done(driver_->write(file, 2 * unit, some, engine), Engine::Native);
            EXPECT_EQ(on_disk(2 * unit, unit), std::vector(some.begin(), some.end()));
            EXPECT_EQ(counts().atomic_submissions, ++native);
            const NativeLoop::Seen& seen = native_->seen.back();
            EXPECT_EQ(seen.offset, ByteOffset(2 * unit));
            EXPECT_EQ(seen.length, Bytes(unit));
            EXPECT_EQ(seen.flags, RWF_ATOMIC | RWF_DSYNC);
            EXPECT_TRUE(seen.aligned);
        }
    }
    EXPECT_EQ(counts().groups, 0u) << "nothing was logged";
    EXPECT_EQ(counts().writes_native, native);
    EXPECT_EQ(file->writes_native, native);
    EXPECT_EQ(counts().acks_exclusive, native);

    // Longer than the device takes, or asked for.
    expect_done(driver_->write(file, 0, data.first(128 * kKiB)), Engine::Logged);
    expect_done(driver_->write(file, 0, data.first(kMiB)), Engine::Logged);
    expect_done(driver_->write(file, 0, data.first(kUnit), Engine::Logged), Engine::Logged);
    expect_refused(driver_->write(file, 0, data.first(128 * kKiB), Engine::Native), EINVAL,
                   "outside the limits");
    EXPECT_EQ(counts().atomic_submissions, native);
    EXPECT_EQ(native_->seen.size(), native);
    EXPECT_EQ(counts().writes_logged, 3u);
    stop();
}

TEST_P(MountedNativeTest, WhyNot) {
    serve(limits_of(32 * kKiB, 32 * kKiB));
    FileRef file = must_open();
    EXPECT_EQ(limits(file).engine, Engine::Logged);
    EXPECT_THAT(limits(file).why_not_native, HasSubstr("outside the device's limits"));
    const auto bytes = random(32 * kKiB);
    const std::span<const std::byte> data(bytes);
    expect_done(driver_->write(file, 0, data.first(kUnit)), Engine::Logged);
    expect_refused(driver_->write(file, 0, data.first(kUnit), Engine::Native), EINVAL,
                   "device's limits");
    EXPECT_TRUE(native_->seen.empty());
    expect_done(driver_->write(file, 0, data), Engine::Native);
    const FileRef plain = must_open("plain");
    EXPECT_EQ(limits(plain).engine, Engine::Logged);
    EXPECT_THAT(limits(plain).why_not_native, HasSubstr("no atomic flag"));
    stop();

    file.reset();
    serve(AtomicLimits::none("the test has none"));
    file = must_open();
    EXPECT_EQ(limits(file).engine, Engine::Logged);
    EXPECT_EQ(limits(file).why_not_native, "the test has none");
    EXPECT_EQ(limits(file).unit_max_native, Bytes(0));
    expect_refused(driver_->write(file, 0, data, Engine::Native), EOPNOTSUPP, "the test has none");
    expect_done(driver_->write(file, 0, data), Engine::Logged);
    EXPECT_EQ(counts().atomic_submissions, 0u);
    EXPECT_TRUE(native_->seen.empty());
    stop();
}

TEST_P(MountedNativeTest, LiveRecordsInItsRangeRetireFirst) {
    serve();
    const FileRef file = must_open();
    const auto old = random(4 * kUnit);
    const auto bytes = random(kUnit);
    std::optional<uint64_t> live;
    native_->on_atomic = [&] { live = counts().live_records; };
    expect_done(driver_->write(file, 0, old, Engine::Logged), Engine::Logged);
    ASSERT_EQ(counts().live_records, 1u);
    // Beside it nothing has to.
    expect_done(driver_->write(file, 8 * kUnit, bytes), Engine::Native);
    EXPECT_EQ(live, 1u);
    const uint64_t retirements = counts().retirements;
    expect_done(driver_->write(file, 2 * kUnit, bytes), Engine::Native);
    EXPECT_EQ(live, 0u);
    EXPECT_EQ(counts().retirements, retirements + 1);
    // One that is logged afterwards is live; those under way are waited for.
    const auto logged =
        driver_->submit(WriteOp::Kind::Atomic, file, 4 * kUnit, old, Engine::Logged);
    const auto over = driver_->submit(WriteOp::Kind::Atomic, file, 5 * kUnit, bytes);
    expect_done(driver_->finish(logged), Engine::Logged);
    expect_done(driver_->finish(over), Engine::Native);
    EXPECT_EQ(live, 0u);
    // Killed now, a replay has nothing to undo it with.
    kill();
    const auto mounted = MountedVolume::open(image_->dir()).value();
    EXPECT_TRUE(read_log(mounted->log(), mounted->attr().log_id).value().live.empty());
}

TEST_P(MountedNativeTest, WhatTheKernelTurnsDownIsLogged) {
    serve();
    const FileRef file = must_open();
    const auto bytes = random(kUnit);
    for (const Answer answer : {Answer::Refused, Answer::Busy}) {
        native_->answer = answer;
        const TargetCounts before = counts();
        expect_done(driver_->write(file, 0, bytes), Engine::Logged);
        EXPECT_EQ(on_disk(0, kUnit), bytes);
        EXPECT_EQ(counts().atomic_submissions, before.atomic_submissions + 1) << "asked once";
        EXPECT_EQ(counts().writes_logged, before.writes_logged + 1);
        EXPECT_EQ(counts().writes_native, 0u);
    }
    native_->answer = Answer::Refused;
    const TargetCounts before = counts();
    expect_refused(driver_->write(file, kUnit, bytes, Engine::Native), EIO, "adopt");
    EXPECT_EQ(counts().atomic_submissions, before.atomic_submissions + 1);
    EXPECT_EQ(counts().groups, before.groups);
    EXPECT_EQ(on_disk(kUnit, kUnit), filled(kUnit, 0));
    EXPECT_EQ(target_->poisoned(), nullptr);
    stop();
}

TEST_P(MountedNativeTest, HolesUnwrittenAndMixedRanges) {
    serve();
    struct Kind {
        const char* name;
        std::function<void(int fd)> make;
    };
    const auto block = random(4096);
    const auto put = [&](int fd, off_t at) {
        ASSERT_EQ(::pwrite(fd, block.data(), block.size(), at), 4096);
    };
    const std::vector<Kind> kinds = {
        {"hole", [](int fd) { ASSERT_EQ(::ftruncate(fd, kUnit), 0); }},
        {"unwritten", [](int fd) { ASSERT_EQ(::fallocate(fd, 0, 0, kUnit), 0); }},
        {"mixed",
         [&](int fd) {
             ASSERT_EQ(::fallocate(fd, 0, 0, kUnit), 0);
             put(fd, 4096);
         }},
        {"half",
         [&](int fd) {
             ASSERT_EQ(::ftruncate(fd, kUnit), 0);
             put(fd, 0);
             put(fd, 4096);
         }},
        {"beyond", [](int) {}},
    };
    for (const Kind& kind : kinds) {
        SCOPED_TRACE(kind.name);
        {
            const UniqueFd fd = open_file(kind.name, O_RDWR | O_CREAT);
            kind.make(fd.get());
            ASSERT_EQ(::fsync(fd.get()), 0);
        }
        const FileRef file = must_open(kind.name);
        const auto before = on_disk(0, kUnit, kind.name);
        const auto bytes = random(kUnit);
        expect_refused(driver_->write(file, 0, bytes, Engine::Native), EIO,
                       "not one aligned written run");
        EXPECT_EQ(on_disk(0, kUnit, kind.name), before);
        expect_done(driver_->write(file, 0, bytes), Engine::Logged);
        EXPECT_EQ(on_disk(0, kUnit, kind.name), bytes);
        target_->close(file);
    }
    EXPECT_EQ(counts().atomic_submissions, 2 * kinds.size());
    EXPECT_EQ(counts().writes_native, 0u);
    stop();
}

TEST_P(MountedNativeTest, AnErrorPoisons) {
    for (const Answer answer : {Answer::Lost, Answer::Failed, Answer::Short}) {
        serve();
        const FileRef file = must_open();
        const auto bytes = random(kUnit);
        ASSERT_TRUE(driver_->write(file, 0, bytes));
        native_->answer = answer;
        const auto waiting = driver_->submit(WriteOp::Kind::Atomic, file, kUnit, bytes);
        const auto behind = driver_->submit(WriteOp::Kind::Atomic, file, kUnit, bytes);
        expect_refused(driver_->finish(waiting), EIO, "in doubt");
        expect_refused(driver_->finish(behind), EIO, "in doubt");
        ASSERT_NE(target_->poisoned(), nullptr);
        EXPECT_THAT(*target_->poisoned(), HasSubstr("native write"));
        for (const Engine engine : {Engine::Auto, Engine::Native, Engine::Logged})
            expect_refused(driver_->write(file, 2 * kUnit, bytes, engine), EIO, "in doubt");
        EXPECT_EQ(counts().atomic_submissions, 2u) << "nothing is tried again";
        EXPECT_EQ(counts().writes_native, 1u);
        EXPECT_EQ(driver_->read(file, 0, kUnit).value(), bytes) << "what is stored can be read";
        EXPECT_FALSE(driver_->stop());
        kill();
    }
}

// The kernel says "durable" although ext4's journal is gone, and with it what gave the range
// blocks.
TEST_P(MountedNativeTest, ALostJournalPoisons) {
    serve();
    const FileRef file = must_open();
    const auto bytes = random(kUnit);
    const UniqueFd fd = open_file("data", O_RDONLY);
    native_->on_written = [&] {
        uint32_t without_flush = 2;  // EXT4_GOING_FLAGS_NOLOGFLUSH
        EXPECT_EQ(::ioctl(fd.get(), _IOR('X', 125, uint32_t), &without_flush), 0);
    };
    expect_refused(driver_->write(file, 0, bytes, Engine::Native), EIO, "in doubt");
    EXPECT_EQ(counts().writes_native, 0u);
    ASSERT_NE(target_->poisoned(), nullptr);
    EXPECT_THAT(*target_->poisoned(), HasSubstr("native write"));
    EXPECT_FALSE(driver_->stop());
    kill();
}

TEST_P(MountedNativeTest, OverlappingOnesKeepTheirOrder) {
    serve();
    const FileRef file = must_open();
    std::vector<std::vector<std::byte>> bytes;
    for (unsigned i = 0; i < 40; ++i) bytes.push_back(filled(i % 2 == 0 ? 8192 : kUnit, i + 1));
    std::vector<std::shared_ptr<std::optional<Result<WriteDone>>>> results;
    // Every third is turned down on its way, and logged.
    native_->on_atomic = [&, n = 0]() mutable {
        native_->answer = ++n % 3 == 0 ? Answer::Refused : Answer::Device;
    };
    for (unsigned i = 0; i < 40; ++i) {
        const Engine engine = i % 5 == 4 ? Engine::Logged : Engine::Auto;
        results.push_back(driver_->submit(WriteOp::Kind::Atomic, file, 0, bytes[i], engine));
        if (i % 7 == 0) {
            results.push_back(
                driver_->submit(WriteOp::Kind::Plain, file, 100, std::span(bytes[i]).first(300)));
        }
    }
    const auto read = driver_->read(file, 0, kUnit);
    ASSERT_TRUE(read);
    EXPECT_EQ(*read, bytes[39]);
    for (const auto& result : results) ASSERT_TRUE(driver_->finish(result));
    EXPECT_EQ(counts().atomic_submissions, 32u);
    EXPECT_EQ(counts().writes_native, 22u);
    EXPECT_EQ(counts().writes_logged, 18u);
    stop();
}

// Another process has the file open for writing, and pages of the range are cached: a direct write
// that couldn't drop them is told as EIO, and is no fault of the device.
TEST_P(MountedNativeTest, CollisionsWithOthersAreNoFaultOfTheDevice) {
    serve();
    const FileRef file = must_open();
    OtherProcess writer(path());
    writer.begin('w');
    until_answered(writer);
    ASSERT_EQ(writer.result(), '+');
    ASSERT_EQ(limits(file).ack, Ack::Strict);
    const auto cache = [&](int64_t at) {
        const UniqueFd fd = open_file("data", O_RDONLY);
        std::vector<std::byte> into(kUnit);
        ASSERT_EQ(::pread(fd.get(), into.data(), kUnit, at), static_cast<ssize_t>(kUnit));
    };
    const auto bytes = random(kUnit);
    native_->answer = Answer::Lost;
    cache(0);
    expect_done(driver_->write(file, 0, bytes), Engine::Logged);
    EXPECT_EQ(on_disk(0, kUnit), bytes);
    cache(0);
    expect_refused(driver_->write(file, 0, bytes, Engine::Native), EIO, "in doubt");
    EXPECT_EQ(target_->poisoned(), nullptr);

    // The write came through, but somebody has the pages again.
    native_->answer = Answer::Device;
    const UniqueFd reader = open_file("data", O_RDONLY);
    native_->on_written = [&] {
        std::vector<std::byte> into(kUnit);
        ASSERT_EQ(::pread(reader.get(), into.data(), kUnit, 4 * kUnit), ssize_t{kUnit});
    };
    expect_done(driver_->write(file, 4 * kUnit, bytes), Engine::Logged);
    EXPECT_EQ(on_disk(4 * kUnit, kUnit), bytes);
    native_->on_written = nullptr;
    const auto alone = driver_->write(file, 64 * kUnit, bytes);
    expect_done(alone, Engine::Native);
    EXPECT_EQ(alone->ack, Ack::Strict);
    EXPECT_EQ(counts().atomic_submissions, 4u);
    stop();
}

INSTANTIATE_TEST_SUITE_P(Backends, MountedNativeTest, both_backends(), backend_name);

}  // namespace
}  // namespace atomic4::test
