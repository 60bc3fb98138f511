// A mounted volume as a target: the rules, over every kind of range, and who else has the file.
#include "writer/mounted_target.h"

#include <gmock/gmock.h>
#include <sys/stat.h>

#include "ext4/atomic_file.h"
#include "kernel/served_target.h"

namespace atomic4::test {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kKiB = 1024;
constexpr uint64_t kMiB = 1024 * kKiB;
constexpr uint64_t kFileSize = 16 * kMiB;

Image volume_with_file(const std::vector<std::string>& arguments = {"-b", "4096"}) {
    EnableOptions options;
    options.log_size = Bytes(16448 * kKiB);  // takes units of 4 MiB
    Image image = make_atomic4(96 * kMiB, arguments, options);
    auto opened = open_for_writing(std::make_unique<ImageDevice>(image)).value();
    NewFile file;
    file.size = Bytes(kFileSize);
    file.unit = Bytes(16 * kKiB);
    create_atomic_file(*opened.volume, "/data", file).value();
    return image;
}

class MountedTargetTest : public ServedTarget {
  protected:
    void serve(const Image& image, bool watch = true) {
        mount(image);
        start(watch);
    }
    void start(bool watch = true) {
        MountedTarget::Options options;
        if (watch)
            options.openers = std::make_unique<OwnOpeners>(OpenWatch::new_group().value());
        else
            options.why_no_openers = "the test says so";
        begin(new_loop(), std::move(options));
    }
    void until_exclusive(const FileRef& file) {
        driver_->run_until([&] { return limits(file).ack == Ack::Exclusive; });
    }
    uint64_t live() const { return counts().live_records; }
};

TEST_P(MountedTargetTest, EveryUnitOverEveryKindOfRange) {
    serve(volume_with_file());
    FileRef file = must_open();
    FileRef sparse = must_open("sparse");
    ASSERT_EQ(limits(file).unit_max_logged, Bytes(4 * kMiB));
    EXPECT_EQ(limits(file).unit, Bytes(16 * kKiB));
    EXPECT_TRUE(limits(file).atomic);
    EXPECT_FALSE(limits(sparse).atomic);
    for (uint64_t unit = 4 * kKiB; unit <= 4 * kMiB; unit *= 2) {
        SCOPED_TRACE(unit);
        const auto bytes = random_bytes(unit, random_);
        for (const uint64_t offset : {uint64_t{0}, unit, 3 * unit}) {
            const auto done = driver_->write(file, offset, bytes);
            ASSERT_TRUE(done) << done.error().message;
            EXPECT_EQ(done->engine, Engine::Logged);
            EXPECT_EQ(on_disk("data", offset, unit), bytes);
        }
        // A hole, then beyond EOF, then what has become mapped.
        const FileRef fresh = must_open("fresh" + std::to_string(unit));
        ASSERT_TRUE(driver_->write(fresh, 2 * unit, bytes));
        EXPECT_EQ(limits(fresh).size, Bytes(3 * unit));
        ASSERT_TRUE(driver_->write(fresh, 0, bytes));
        ASSERT_TRUE(driver_->write(fresh, 3 * unit, bytes));
        ASSERT_TRUE(driver_->write(fresh, 2 * unit, bytes));
        const auto name = "fresh" + std::to_string(unit);
        EXPECT_EQ(on_disk(name, 0, unit), bytes);
        EXPECT_EQ(on_disk(name, unit, unit), filled(unit, 0));
        EXPECT_EQ(on_disk(name, 2 * unit, unit), bytes);
        EXPECT_EQ(on_disk(name, 3 * unit, 2 * unit), bytes);
        target_->close(fresh);
        // Unwritten and mixed.
        const UniqueFd fd = open_file("sparse", O_RDWR);
        ASSERT_EQ(::ftruncate(fd.get(), 0), 0);
        ASSERT_EQ(::fallocate(fd.get(), 0, 0, static_cast<off_t>(2 * unit)), 0);
        const auto unwritten = driver_->write(sparse, unit, bytes);
        ASSERT_TRUE(unwritten) << unwritten.error().message;
        EXPECT_EQ(on_disk("sparse", unit, unit), bytes);
        if (unit >= 16 * kKiB) {
            ASSERT_EQ(::fallocate(fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 4096, 4096),
                      0);
            ASSERT_EQ(::pwrite(fd.get(), "x", 1, 8192), 1);
            ASSERT_TRUE(driver_->write(sparse, 0, bytes));
            EXPECT_EQ(on_disk("sparse", 0, unit), bytes);
        }
    }
    stop();
    file.reset();
    sparse.reset();
    image_->unmount();
    EXPECT_EQ(fsck_complaints(image_->load()), "");
}

TEST_P(MountedTargetTest, WhatIsRefused) {
    serve(volume_with_file());
    const FileRef file = must_open();
    const auto before = on_disk("data", 0, 64 * kKiB);
    const auto data = filled(16 * kMiB, 1);
    struct Case {
        uint64_t offset, length;
        const char* words;
    };
    for (const Case& c : {Case{0, 16 * kKiB - 1, "power of two"}, Case{0, 16 * kKiB + 1, "power"},
                          Case{0, 12 * kKiB, "power of two"}, Case{1, 16 * kKiB, "multiple"},
                          Case{512, 16 * kKiB, "multiple"}, Case{4096, 16 * kKiB, "multiple"},
                          Case{0, 2048, "outside"}, Case{0, 8 * kMiB, "outside"}}) {
        const auto done = driver_->write(file, c.offset, std::span(data).first(c.length));
        ASSERT_FALSE(done) << c.offset << "+" << c.length;
        EXPECT_EQ(done.error().code, EINVAL);
        EXPECT_THAT(done.error().message, HasSubstr(c.words));
    }
    const auto native = driver_->write(file, 0, std::span(data).first(16 * kKiB), Engine::Native);
    ASSERT_FALSE(native);
    EXPECT_EQ(native.error().code, EOPNOTSUPP);
    const auto overlapping =
        driver_->write_batch({{file, ByteOffset(0), std::span(data).first(8192)},
                              {file, ByteOffset(4096), std::span(data).first(4096)}});
    ASSERT_FALSE(overlapping);
    EXPECT_EQ(overlapping.error().code, EINVAL);
    const auto long_batch = driver_->write_batch({{file, ByteOffset(0), data}});
    ASSERT_FALSE(long_batch);
    EXPECT_EQ(long_batch.error().code, EMSGSIZE);
    EXPECT_EQ(on_disk("data", 0, 64 * kKiB), before);

    // Files that take no writes at all.
    EXPECT_EQ(open(".atomic4/log").error().code, EPERM);
    EXPECT_EQ(open(".atomic4/lock").error().code, EPERM);
    ASSERT_EQ(::mkdir(path("directory").c_str(), 0755), 0);
    EXPECT_EQ(open("directory", O_RDONLY).error().code, EISDIR);
    EXPECT_EQ(open(UniqueFd(::open("/dev/null", O_RDWR | O_CLOEXEC))).error().code, EXDEV);
    stop();
}

TEST_P(MountedTargetTest, OneRecordForWhatComesTogether) {
    serve(volume_with_file());
    const FileRef file = must_open();
    until_exclusive(file);
    std::vector<size_t> groups;
    target_->on_group = [&](size_t requests, Bytes) { groups.push_back(requests); };
    std::vector<std::vector<std::byte>> bytes;
    std::vector<std::shared_ptr<std::optional<Result<WriteDone>>>> results;
    for (uint64_t i = 0; i < 16; ++i) {
        bytes.push_back(random_bytes(16 * kKiB, random_));
        results.push_back(driver_->submit(WriteOp::Kind::Atomic, file, i * 16 * kKiB, bytes[i]));
    }
    for (const auto& result : results) {
        const auto done = driver_->finish(result);
        ASSERT_TRUE(done) << done.error().message;
        EXPECT_EQ(done->ack, Ack::Exclusive);
    }
    EXPECT_EQ(groups, std::vector<size_t>{16});
    for (uint64_t i = 0; i < 16; ++i)
        EXPECT_EQ(on_disk("data", i * 16 * kKiB, 16 * kKiB), bytes[i]);
    EXPECT_EQ(live(), 1u);
    EXPECT_EQ(file->writes_logged, 16u);
    stop();
}

TEST_P(MountedTargetTest, OverlappingOnesKeepTheirOrderAndNeverShareARecord) {
    serve(volume_with_file());
    const FileRef file = must_open();
    std::vector<size_t> groups;
    target_->on_group = [&](size_t requests, Bytes) { groups.push_back(requests); };
    std::vector<std::vector<std::byte>> bytes;
    std::vector<std::shared_ptr<std::optional<Result<WriteDone>>>> results;
    for (unsigned i = 0; i < 8; ++i) bytes.push_back(filled(i % 2 == 0 ? 8192 : 16384, i + 1));
    for (unsigned i = 0; i < 8; ++i)
        results.push_back(driver_->submit(WriteOp::Kind::Atomic, file, 0, bytes[i]));
    // A plain one and a read between them take part in the order.
    const auto plain = filled(100, 99);
    const auto plain_done = driver_->submit(WriteOp::Kind::Plain, file, 50, plain);
    const auto read = driver_->read(file, 0, 16384);
    ASSERT_TRUE(read);
    auto expected = bytes[7];
    std::copy(plain.begin(), plain.end(), expected.begin() + 50);
    EXPECT_EQ(*read, expected);
    for (const auto& result : results) ASSERT_TRUE(driver_->finish(result));
    EXPECT_EQ(groups, std::vector<size_t>(8, 1));
    stop();
}

TEST_P(MountedTargetTest, BatchesAcrossFiles) {
    serve(volume_with_file());
    const FileRef a = must_open("a");
    const FileRef b = must_open("b");
    const auto bytes = random_bytes(20480, random_);
    const std::span<const std::byte> data(bytes);
    const auto done = driver_->write_batch({{a, ByteOffset(0), data.first(12288)},
                                            {b, ByteOffset(8192), data.first(20480)},
                                            {a, ByteOffset(40960), data.first(4096)}});
    ASSERT_TRUE(done) << done.error().message;
    EXPECT_EQ(target_->counts().groups, 1u);
    EXPECT_EQ(on_disk("b", 8192, 20480), bytes);
    EXPECT_EQ(on_disk("a", 40960, 4096), std::vector(bytes.begin(), bytes.begin() + 4096));
    EXPECT_EQ(target_->counts().batches, 1u);
    stop();
}

TEST_P(MountedTargetTest, ALogThatIsFullMakesRoom) {
    serve(volume_with_file());
    const FileRef file = must_open();
    const auto bytes = random_bytes(4 * kMiB, random_);
    for (int i = 0; i < 20; ++i) {
        const auto done = driver_->write(file, (static_cast<uint64_t>(i) % 4) * 4 * kMiB, bytes);
        ASSERT_TRUE(done) << i << ": " << done.error().message;
    }
    for (int i = 0; i < 3000; ++i) {
        const auto done = driver_->write(file, static_cast<uint64_t>(i % 1000) * 16 * kKiB,
                                         std::span(bytes).first(16 * kKiB));
        ASSERT_TRUE(done) << i << ": " << done.error().message;
    }
    EXPECT_EQ(on_disk("data", 999 * 16 * kKiB, 16 * kKiB),
              std::vector(bytes.begin(), bytes.begin() + 16 * kKiB));
    stop();
}

TEST_P(MountedTargetTest, NoSpaceIsToldBeforeAnythingIsLogged) {
    serve(volume_with_file());
    const FileRef file = must_open("large");
    // Fill the volume.
    const UniqueFd filler(::open(path("filler").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
    for (off_t size = 32 << 20; size >= 4096; size /= 2)
        for (off_t at = 0; ::fallocate(filler.get(), FALLOC_FL_KEEP_SIZE, at, size) == 0;
             at += size)
            if (at > (off_t{1} << 30)) break;
    off_t at = 0;
    while (::fallocate(filler.get(), 0, at, 1 << 20) == 0) at += 1 << 20;
    const auto bytes = random_bytes(4 * kMiB, random_);
    const uint64_t groups = target_->counts().groups;
    const auto done = driver_->write(file, 0, bytes);
    ASSERT_FALSE(done);
    EXPECT_EQ(done.error().code, ENOSPC) << done.error().message;
    EXPECT_EQ(target_->counts().groups, groups);
    EXPECT_EQ(target_->poisoned(), nullptr);
    // What needs no space goes on.
    const FileRef data = must_open();
    EXPECT_TRUE(driver_->write(data, 0, bytes));
    stop();
}

// truncate(2) opens nothing, so the file stays exclusive; what had blocks has none, and no space is
// left for new ones.
TEST_P(MountedTargetTest, BlocksThatATruncationByPathTookAreMissed) {
    serve(volume_with_file());
    const FileRef file = must_open("victim");
    const auto bytes = random_bytes(kMiB, random_);
    ASSERT_TRUE(driver_->write(file, 0, bytes));
    ASSERT_TRUE(driver_->write(file, 0, bytes));
    ASSERT_EQ(limits(file).ack, Ack::Exclusive);
    driver_->run_until([&] { return live() == 0; });
    ASSERT_EQ(::truncate(path("victim").c_str(), 0), 0);
    ASSERT_EQ(::truncate(path("victim").c_str(), static_cast<off_t>(kMiB)), 0);
    const UniqueFd filler(::open(path("filler").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
    ASSERT_EQ(::syncfs(filler.get()), 0);  // what was freed can be used
    off_t at = 0;
    for (off_t step = 1 << 20; step >= 4096; step /= 2)
        while (::fallocate(filler.get(), 0, at, step) == 0) at += step;
    const auto done = driver_->write(file, 0, bytes);
    ASSERT_FALSE(done);
    EXPECT_EQ(done.error().code, ENOSPC) << done.error().message;
    EXPECT_EQ(target_->poisoned(), nullptr);
    EXPECT_TRUE(driver_->write(must_open(), 0, bytes)) << "nobody else suffers";
    stop();
}

// Strict writes ask for their blocks first, one question a file at a time: a batch must get its
// turn with both files at once.
TEST_P(MountedTargetTest, ABatchOverBusyFilesIsNotPassedOverForEver) {
    serve(volume_with_file(), false);
    const std::array<FileRef, 2> files{must_open(), must_open("other")};
    const auto bytes = random_bytes(16 * kKiB, random_);
    for (const FileRef& file : files)
        for (uint64_t i = 0; i < 5; ++i) ASSERT_TRUE(driver_->write(file, i * 16 * kKiB, bytes));
    unsigned singles = 0;
    unsigned under_way = 0;
    bool stop_writing = false;
    std::function<void(size_t, uint64_t)> write_again = [&](size_t file, uint64_t lane) {
        auto op = std::make_unique<WriteOp>();
        op->ranges.push_back({files[file], ByteOffset(lane * 16 * kKiB), bytes});
        op->done = [&, file, lane](const Result<WriteDone>& done) {
            EXPECT_TRUE(done);
            ++singles;
            --under_way;
            if (!stop_writing) write_again(file, lane);
        };
        ++under_way;
        target_->submit(std::move(op));
    };
    for (size_t file = 0; file < 2; ++file)
        for (uint64_t lane = 0; lane < 4; ++lane) write_again(file, lane);
    driver_->run_until([&] { return singles > 20; });
    singles = 0;
    EXPECT_TRUE(driver_->write_batch(
        {{files[0], ByteOffset(64 * kKiB), bytes}, {files[1], ByteOffset(64 * kKiB), bytes}}));
    EXPECT_LT(singles, 100u);
    stop_writing = true;
    driver_->run_until([&] { return under_way == 0; });
    stop();
}

// No blocks can be reserved there (fallocate(2)), and no record may be without them.
TEST_P(MountedTargetTest, AHoleInAFileWithoutExtentsIsRefused) {
    serve(volume_with_file());
    {
        const UniqueFd fd(::open(path("old").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
    }
    if (run_command({"chattr", "-e", path("old")}).status != 0)
        A4_SKIP("chattr -e isn't possible here");
    ASSERT_EQ(::truncate(path("old").c_str(), static_cast<off_t>(kMiB)), 0);
    const FileRef file = must_open("old");
    const auto done = driver_->write(file, 0, random_bytes(16 * kKiB, random_));
    ASSERT_FALSE(done);
    EXPECT_EQ(done.error().code, EOPNOTSUPP) << done.error().message;
    EXPECT_EQ(target_->poisoned(), nullptr);
    stop();
}

TEST_P(MountedTargetTest, AFreezeIsAnsweredWhenTheLastThingHasEnded) {
    serve(volume_with_file());
    const FileRef file = must_open();
    const auto freeze = [&](auto done) { target_->freeze(std::move(done)); };
    bool flushed = false;
    target_->flush(file, [&](const Result<>& done) { flushed = done.has_value(); });
    EXPECT_TRUE(driver_->wait<void>(freeze));
    EXPECT_TRUE(flushed);
    target_->thaw();
    // Overtaken by a thaw.
    const auto bytes = random_bytes(16 * kKiB, random_);
    const auto written = driver_->submit(WriteOp::Kind::Atomic, file, 0, bytes);
    const auto overtaken = driver_->wait<void>([&](auto done) {
        target_->freeze(std::move(done));
        target_->thaw();
    });
    ASSERT_FALSE(overtaken);
    EXPECT_EQ(overtaken.error().code, EBUSY);
    EXPECT_TRUE(driver_->finish(written));
    stop();
}

// --- who else has it ---

TEST_P(MountedTargetTest, ExclusiveWhileNobodyElseWrites) {
    serve(volume_with_file());
    const FileRef file = must_open();
    EXPECT_EQ(limits(file).ack, Ack::Exclusive) << limits(file).why_strict;
    const auto bytes = random_bytes(16 * kKiB, random_);
    EXPECT_EQ(driver_->write(file, 0, bytes)->ack, Ack::Exclusive);
    EXPECT_EQ(live(), 1u);

    OtherProcess reader(path());
    EXPECT_EQ(other_step(reader, 'r'), '+');
    EXPECT_EQ(limits(file).ack, Ack::Exclusive) << "a reader doesn't matter";
    EXPECT_EQ(driver_->write(file, 0, bytes)->ack, Ack::Exclusive);

    OtherProcess writer(path());
    EXPECT_EQ(other_step(writer, 'w'), '+');
    EXPECT_EQ(live(), 0u) << "it was held until everything was retired";
    EXPECT_EQ(limits(file).ack, Ack::Strict);
    EXPECT_THAT(limits(file).why_strict, HasSubstr(std::to_string(writer.pid())));
    EXPECT_EQ(driver_->write(file, 0, bytes)->ack, Ack::Strict);
    EXPECT_EQ(live(), 0u);

    // A mapping outlives its descriptor.
    EXPECT_EQ(writer.step('m'), '+');
    EXPECT_EQ(writer.step('c'), '+');
    EXPECT_EQ(driver_->write(file, 0, bytes)->ack, Ack::Strict);
    EXPECT_EQ(writer.step('u'), '+');
    until_exclusive(file);
    EXPECT_EQ(driver_->write(file, 0, bytes)->ack, Ack::Exclusive);
    stop();
}

TEST_P(MountedTargetTest, AnEarlierWriterIsFound) {
    serve(volume_with_file());
    OtherProcess writer(path());
    ASSERT_EQ(writer.step('w'), '+');
    const FileRef file = must_open();
    EXPECT_EQ(limits(file).ack, Ack::Strict);
    EXPECT_THAT(limits(file).why_strict, HasSubstr("for writing"));
    writer.kill();
    until_exclusive(file);
    stop();
}

TEST_P(MountedTargetTest, WithoutAWatchEveryFileIsStrict) {
    serve(volume_with_file(), false);
    const FileRef file = must_open();
    EXPECT_EQ(limits(file).ack, Ack::Strict);
    EXPECT_THAT(limits(file).why_strict, HasSubstr("the test says so"));
    const auto bytes = random_bytes(16 * kKiB, random_);
    for (uint64_t i = 0; i < 100; ++i)
        EXPECT_EQ(driver_->write(file, i * 16 * kKiB, bytes)->ack, Ack::Strict);
    EXPECT_EQ(live(), 0u);
    stop();
}

TEST_P(MountedTargetTest, ClosingTheLastHandleRetiresAndForgets) {
    serve(volume_with_file());
    FileRef file = must_open();
    const FileRef again = must_open();
    EXPECT_EQ(again, file);
    const auto bytes = random_bytes(16 * kKiB, random_);
    ASSERT_TRUE(driver_->write(file, 0, bytes));
    target_->close(again);
    EXPECT_EQ(target_->counts().files, 1u);
    target_->close(file);
    file.reset();
    const_cast<FileRef&>(again).reset();
    driver_->run_until([&] { return target_->counts().files == 0; });
    EXPECT_EQ(live(), 0u);
    // Nobody is held any more.
    OtherProcess writer(path());
    EXPECT_EQ(writer.step('w'), '+');
    stop();
}

TEST_P(MountedTargetTest, RecordsOfAVolumeAtRestRetire) {
    serve(volume_with_file());
    const FileRef file = must_open();
    ASSERT_TRUE(driver_->write(file, 0, random_bytes(16 * kKiB, random_)));
    EXPECT_EQ(live(), 1u);
    driver_->run_until([&] { return live() == 0; });
    stop();
}

TEST_P(MountedTargetTest, FreezeHoldsWritesUntilThaw) {
    serve(volume_with_file());
    const FileRef file = must_open();
    const auto bytes = random_bytes(16 * kKiB, random_);
    ASSERT_TRUE(driver_->write(file, 0, bytes));
    const auto frozen = driver_->wait<void>([&](auto done) { target_->freeze(std::move(done)); });
    ASSERT_TRUE(frozen);
    EXPECT_EQ(live(), 0u);
    const auto held = driver_->submit(WriteOp::Kind::Atomic, file, 16 * kKiB, bytes);
    const auto read = driver_->read(file, 0, 16 * kKiB);
    ASSERT_TRUE(read);
    EXPECT_EQ(*read, bytes);
    EXPECT_FALSE(held->has_value());
    target_->thaw();
    EXPECT_TRUE(driver_->finish(held));
    stop();
}

TEST_P(MountedTargetTest, PlainWritesAndReads) {
    serve(volume_with_file());
    const FileRef file = must_open();
    const auto bytes = random_bytes(300 * kKiB, random_);
    const std::span<const std::byte> data(bytes);
    ASSERT_TRUE(driver_->write(file, 0, data.first(16 * kKiB)));
    ASSERT_TRUE(driver_->write_plain(file, 100, data.subspan(5, 70001)));
    EXPECT_EQ(live(), 0u) << "a record under a plain write has to retire first";
    ASSERT_TRUE(driver_->flush(file));
    const auto back = driver_->read(file, 100, 70001);
    ASSERT_TRUE(back);
    EXPECT_TRUE(std::equal(back->begin(), back->end(), data.begin() + 5));
    // Beyond EOF.
    ASSERT_TRUE(driver_->write_plain(file, kFileSize + 10, data.first(10)));
    EXPECT_EQ(limits(file).size, Bytes(kFileSize + 20));
    const auto end = driver_->read(file, kFileSize, 100);
    ASSERT_TRUE(end);
    EXPECT_EQ(end->size(), 20u);
    EXPECT_EQ(driver_->read(file, kFileSize + 100, 100)->size(), 0u);
    stop();
}

// fsx-like, against memory: atomic and plain writes, batches, reads, truncations.
TEST_P(MountedTargetTest, RandomOperationsAgreeWithAModel) {
    serve(volume_with_file());
    FileRef file = must_open();
    std::vector<std::byte> model(kFileSize);
    const auto below = [&](uint64_t n) { return random_() % n; };
    std::vector<std::shared_ptr<std::optional<Result<WriteDone>>>> running;
    std::deque<std::vector<std::byte>> memory;
    for (int i = 0; i < 10000; ++i) {
        if (running.size() > 32 || below(50) == 0) {
            for (const auto& one : running) {
                const auto done = driver_->finish(one);
                ASSERT_TRUE(done) << i << ": " << done.error().message;
            }
            running.clear();
            memory.clear();
        }
        const auto put = [&](uint64_t offset, std::span<const std::byte> data) {
            if (offset + data.size() > model.size()) model.resize(offset + data.size());
            std::copy(data.begin(), data.end(),
                      model.begin() + static_cast<std::ptrdiff_t>(offset));
        };
        switch (below(10)) {
            case 0: {
                const uint64_t offset = below(kFileSize);
                const auto& data = memory.emplace_back(random_bytes(1 + below(20000), random_));
                put(offset, data);
                running.push_back(driver_->submit(WriteOp::Kind::Plain, file, offset, data));
                break;
            }
            case 1: {
                auto op = std::make_unique<WriteOp>();
                op->kind = WriteOp::Kind::Batch;
                for (int part = 0; part < 3; ++part) {
                    const uint64_t offset =
                        (static_cast<uint64_t>(part) * 1000 + below(900)) * 4096;
                    const auto& data =
                        memory.emplace_back(random_bytes((1 + below(8)) * 4096, random_));
                    put(offset, data);
                    op->ranges.push_back({file, ByteOffset(offset), data});
                }
                running.push_back(driver_->submit(std::move(op)));
                break;
            }
            case 2: {
                const uint64_t offset = below(kFileSize);
                const auto got = driver_->read(file, offset, 1 + below(50000));
                ASSERT_TRUE(got);
                ASSERT_TRUE(std::equal(got->begin(), got->end(),
                                       model.begin() + static_cast<std::ptrdiff_t>(offset)))
                    << i;
                break;
            }
            case 3:
                if (below(20) == 0) {
                    for (const auto& one : running) ASSERT_TRUE(driver_->finish(one));
                    running.clear();
                    // By path, as the kernel shows it to nobody.
                    const uint64_t size = kFileSize / 2 + below(kFileSize / 2);
                    ASSERT_EQ(::truncate(path().c_str(), static_cast<off_t>(size)), 0);
                    model.resize(size);
                    model.resize(kFileSize);
                    ASSERT_EQ(::truncate(path().c_str(), static_cast<off_t>(kFileSize)), 0);
                }
                break;
            default: {
                const uint64_t unit = uint64_t{4096} << below(5);
                const uint64_t offset = below(kFileSize / unit) * unit;
                const auto& data = memory.emplace_back(random_bytes(unit, random_));
                put(offset, data);
                running.push_back(driver_->submit(WriteOp::Kind::Atomic, file, offset, data));
            }
        }
    }
    for (const auto& one : running) ASSERT_TRUE(driver_->finish(one));
    EXPECT_TRUE(on_disk("data", 0, model.size() + 1) == model);
    stop();
    file.reset();
    running.clear();
    image_->unmount();
    EXPECT_EQ(fsck_complaints(image_->load()), "");
}

INSTANTIATE_TEST_SUITE_P(Backends, MountedTargetTest, both_backends(), backend_name);

}  // namespace
}  // namespace atomic4::test
