// Files of a mounted target that another program keeps locked, and files with a lot to write: what
// goes on meanwhile. All by the order of events: what has to come first does so while the other
// can't come at all.
#include <gmock/gmock.h>

#include "kernel/served_target.h"
#include "support/locked_inode.h"
#include "support/mounted_session.h"
#include "support/power_cut.h"

namespace atomic4::test {
namespace {

constexpr uint64_t kKiB = 1024;
constexpr uint64_t kMiB = 1024 * kKiB;
constexpr uint64_t kFileSize = 16 * kMiB;

using Answer = std::shared_ptr<std::optional<Result<WriteDone>>>;

class WatchedOpeners final : public Openers {
  public:
    explicit WatchedOpeners(UniqueFd group) : own_(std::move(group)) {}
    int fd() const override { return own_.fd(); }
    Result<> watch(int file) override { return own_.watch(file); }
    Result<> unwatch(int file) override { return own_.unwatch(file); }
    Result<> drain(const OpenWatch::Handler& handler) override {
        return own_.drain([&](const OpenEvent& event) {
            if (event.kind == OpenEvent::Kind::Open) ++arrived;
            handler(event);
        });
    }
    Result<> allow(uint64_t token) override {
        if (on_allow) on_allow();
        return own_.allow(token);
    }

    size_t arrived = 0;
    std::function<void()> on_allow;

  private:
    OwnOpeners own_;
};

class LockedFilesTest : public ServedTarget {
  protected:
    void SetUp() override {
        ServedTarget::SetUp();
        if (IsSkipped() || HasFatalFailure()) return;
        if (const auto why = LockedInode::why_not()) A4_SKIP(*why);
        EnableOptions options;
        options.log_size = Bytes(8 * kMiB);
        mount(make_atomic4(128 * kMiB, {"-b", "4096"}, options));
        MountedTarget::Options serving;
        auto openers = std::make_unique<WatchedOpeners>(OpenWatch::new_group().value());
        openers_ = openers.get();
        serving.openers = std::move(openers);
        begin(new_loop(), std::move(serving));
        make("data");
        make("other");
    }
    void make(const std::string& name) {
        const UniqueFd fd = open_file(name, O_RDWR | O_CREAT);
        const std::vector<std::byte> zeros(kFileSize);
        ASSERT_EQ(::pwrite(fd.get(), zeros.data(), zeros.size(), 0), ssize_t{kFileSize});
        ASSERT_EQ(::fsync(fd.get()), 0);
    }
    Ack ack(const FileRef& file) { return limits(file).ack; }

    // All of the file, by plain writes of so many bytes.
    std::vector<Answer> write_plain(const FileRef& file, uint64_t each) {
        std::vector<Answer> answers;
        for (uint64_t at = 0; at < kFileSize; at += each)
            answers.push_back(driver_->submit(WriteOp::Kind::Plain, file, at,
                                              std::span(bytes_).subspan(at, each)));
        return answers;
    }
    static size_t unanswered(const std::vector<Answer>& answers) {
        return static_cast<size_t>(
            std::ranges::count_if(answers, [](const Answer& it) { return !it->has_value(); }));
    }
    void expect_written(const FileRef& file, const std::vector<Answer>& answers) {
        for (const Answer& answer : answers) EXPECT_TRUE(driver_->finish(answer));
        EXPECT_EQ(driver_->read(file, 0, kFileSize).value(), bytes_);
    }
    // While "data" is locked and plain writes to it are begun.
    void expect_opener_goes_first(uint64_t each);

    WatchedOpeners* openers_ = nullptr;
    const std::vector<std::byte> bytes_ = random_bytes(kFileSize, random_);
};

TEST_P(LockedFilesTest, AStrictWriteWaitsWithoutTheOthers) {
    const UniqueFd writer = open_file("data", O_RDWR);
    const FileRef file = must_open("data");
    ASSERT_EQ(ack(file), Ack::Strict);
    LockedInode lock(writer.get(), LockedInode::By::Write, 8 * kMiB);

    const auto data = std::span(bytes_);
    const Answer first =
        driver_->submit(WriteOp::Kind::Atomic, file, 0, data.subspan(0, 16 * kKiB));
    const Answer second =
        driver_->submit(WriteOp::Kind::Atomic, file, 4 * kKiB, data.subspan(64 * kKiB, 4 * kKiB));
    const FileRef other = must_open("other");
    EXPECT_TRUE(driver_->write(other, 0, data.subspan(0, 16 * kKiB)));
    EXPECT_TRUE(driver_->write_plain(other, kMiB, data.subspan(0, kMiB)));
    EXPECT_EQ(target_->limits(file)->size, Bytes(kFileSize));
    EXPECT_TRUE(lock.held());
    EXPECT_FALSE(first->has_value());
    EXPECT_FALSE(second->has_value());

    lock.release();
    EXPECT_TRUE(driver_->finish(first));
    EXPECT_TRUE(driver_->finish(second));
    std::vector<std::byte> expected(data.begin(), data.begin() + 16 * kKiB);
    std::ranges::copy(data.subspan(64 * kKiB, 4 * kKiB), expected.begin() + 4 * kKiB);
    EXPECT_EQ(driver_->read(file, 0, 16 * kKiB).value(), expected);
    stop();
}

TEST_P(LockedFilesTest, PlainWritesWaitWithoutTheOthers) {
    const UniqueFd reader = open_file("data", O_RDONLY | O_DIRECT);
    const FileRef file = must_open("data");
    ASSERT_EQ(ack(file), Ack::Exclusive);
    LockedInode lock(reader.get(), LockedInode::By::DirectRead, 0);
    const auto answers = write_plain(file, 64 * kKiB);

    const FileRef other = must_open("other");
    EXPECT_TRUE(driver_->write_plain(other, 0, std::span(bytes_).subspan(0, kMiB)));
    EXPECT_TRUE(driver_->write(other, kMiB, std::span(bytes_).subspan(0, kMiB)));
    OtherProcess opener(path("other"));
    opener.begin('w');
    until_answered(opener);
    EXPECT_EQ(opener.result(), '+');
    EXPECT_TRUE(driver_->write(other, 0, std::span(bytes_).subspan(0, kMiB)));
    EXPECT_TRUE(lock.held());
    EXPECT_EQ(unanswered(answers), answers.size());

    lock.release();
    expect_written(file, answers);
    stop();
}

void LockedFilesTest::expect_opener_goes_first(uint64_t each) {
    const UniqueFd reader = open_file("data", O_RDONLY | O_DIRECT);
    const FileRef file = must_open("data");
    ASSERT_EQ(ack(file), Ack::Exclusive);
    LockedInode lock(reader.get(), LockedInode::By::DirectRead, 0);
    const auto answers = write_plain(file, each);
    OtherProcess opener(path("data"));
    opener.begin('w');
    driver_->run_until([&] { return openers_->arrived > 0; });
    size_t left = 0;
    openers_->on_allow = [&] { left = unanswered(answers); };
    lock.release();
    until_answered(opener);
    EXPECT_EQ(opener.result(), '+');
    // The last to make way for it is answered just afterwards.
    EXPECT_GT(left, 1u);
    openers_->on_allow = nullptr;
    expect_written(file, answers);
    EXPECT_EQ(ack(file), Ack::Strict);
    stop();
}

TEST_P(LockedFilesTest, AnOpenerGoesBeforeWhatIsNotBegun) {
    expect_opener_goes_first(kMiB);
}

TEST_P(LockedFilesTest, AnOpenerGoesBeforeTheRestOfLongWrites) {
    expect_opener_goes_first(kFileSize / 2);
}

TEST_P(LockedFilesTest, AFreezeWaitsForWhatIsBegunOnly) {
    const UniqueFd reader = open_file("data", O_RDONLY | O_DIRECT);
    const FileRef file = must_open("data");
    LockedInode lock(reader.get(), LockedInode::By::DirectRead, 0);
    const auto answers = write_plain(file, kMiB);
    // They are submitted, and begun, before the freeze.
    ASSERT_TRUE(driver_->read(must_open("other"), 0, 4096));
    size_t left = 0;
    bool frozen = false;
    target_->freeze([&](const Result<>& done) {
        EXPECT_TRUE(done);
        frozen = true;
        left = unanswered(answers);
    });
    lock.release();
    driver_->run_until([&] { return frozen; });
    EXPECT_GT(left, 0u);
    EXPECT_LT(left, answers.size());
    target_->thaw();
    expect_written(file, answers);
    stop();
}

TEST_P(LockedFilesTest, AStopAnswersWhatWaits) {
    const UniqueFd reader = open_file("data", O_RDONLY | O_DIRECT);
    FileRef file = must_open("data");
    LockedInode lock(reader.get(), LockedInode::By::DirectRead, 0);
    const auto answers = write_plain(file, kMiB);
    target_->close(std::move(file));
    std::optional<Result<>> stopped;
    target_->stop([&](Result<> done) { stopped = std::move(done); });
    lock.release();
    driver_->run_until([&] { return stopped.has_value(); });
    EXPECT_TRUE(*stopped);
    for (const Answer& answer : answers) EXPECT_TRUE(answer->has_value() && **answer);
}

INSTANTIATE_TEST_SUITE_P(Backends, LockedFilesTest, both_backends(), backend_name);

// With plain system calls the loop itself waits for a placement.
class LatePlacementTest : public LockedFilesTest {
  protected:
    // "data" is exclusive, though a client that cooperates has it open for writing: that one locks
    // it, when its blocks have been looked for and nothing but the placement needs the lock.
    void SetUp() override {
        LockedFilesTest::SetUp();
        if (IsSkipped() || HasFatalFailure()) return;
        file_ = must_open("data");
        writer_ = open_file("data", O_RDWR);
        const auto again = open(open_file("data", O_RDWR), true);
        ASSERT_TRUE(again) << again.error().message;
        ASSERT_EQ(ack(file_), Ack::Exclusive);
        other_ = must_open("other");
        ASSERT_TRUE(driver_->write(file_, 0, bytes(0, 16 * kKiB)));
        ASSERT_TRUE(driver_->write(other_, 0, bytes(0, 16 * kKiB)));
        target_->on_late = [&](uint32_t inode) { told_.push_back(inode); };
    }
    void lock() {
        lock_ = std::make_unique<LockedInode>(writer_.get(), LockedInode::By::Write, 8 * kMiB);
    }
    std::span<const std::byte> bytes(uint64_t from, uint64_t length) const {
        return std::span(bytes_).subspan(from, length);
    }
    void until_late() {
        driver_->run_until([&] { return counts().late > 0; });
    }
    // The log, 8 MiB, is written over several times.
    void write_others() {
        for (uint64_t i = 0; i < 1000; ++i)
            ASSERT_TRUE(driver_->write(other_, i % 256 * 64 * kKiB, bytes(i * kKiB, 64 * kKiB)));
    }
    // What a restart after a power cut finds.
    std::vector<std::byte> recovered(const std::string& name, uint64_t from, uint64_t length) {
        const Image image = image_->load();
        MountHistory known;
        known.before_private_mount = stamp_of(image);
        MountedImage copy(image);
        copy.mount();
        auto session = MountedSession::start(copy.dir(), known);
        EXPECT_TRUE(session) << session.error().message;
        if (!session) return {};
        const auto there = (*session)->open(name);
        EXPECT_TRUE(there) << there.error().message;
        auto found = (*session)->driver().read(*there, from, length).value();
        EXPECT_TRUE((*session)->driver().stop());
        return found;
    }
    static std::vector<std::byte> copy_of(std::span<const std::byte> bytes) {
        return {bytes.begin(), bytes.end()};
    }

    FileRef file_, other_;
    UniqueFd writer_;
    std::unique_ptr<LockedInode> lock_;
    std::vector<uint32_t> told_;
};

TEST_P(LatePlacementTest, OthersGoOnAndNothingIsLost) {
    lock();
    const Answer stuck =
        driver_->submit(WriteOp::Kind::Atomic, file_, 64 * kKiB, bytes(kMiB, 64 * kKiB));
    const Answer next = driver_->submit(WriteOp::Kind::Atomic, file_, 96 * kKiB, bytes(0, 4096));
    write_others();
    EXPECT_EQ(counts().late, 1u);
    EXPECT_THAT(told_, ::testing::ElementsAre(file_->inode));
    // Strict ones, too; and an opener.
    OtherProcess opener(path("other"));
    EXPECT_EQ(other_step(opener, 'w'), '+');
    ASSERT_EQ(ack(other_), Ack::Strict);
    for (uint64_t i = 0; i < 50; ++i)
        ASSERT_TRUE(driver_->write(other_, i * 64 * kKiB, bytes(7, 64 * kKiB)));
    EXPECT_TRUE(lock_->held());
    EXPECT_FALSE(stuck->has_value());
    EXPECT_EQ(on_disk("data", 64 * kKiB, 64 * kKiB), std::vector<std::byte>(64 * kKiB));
    EXPECT_EQ(recovered("data", 64 * kKiB, 64 * kKiB), copy_of(bytes(kMiB, 64 * kKiB)));
    EXPECT_EQ(recovered("other", 49 * (64 * kKiB), 64 * kKiB), copy_of(bytes(7, 64 * kKiB)));

    lock_->release();
    EXPECT_TRUE(driver_->finish(stuck));
    EXPECT_TRUE(driver_->finish(next));
    EXPECT_EQ(counts().late, 0u);
    auto expected = copy_of(bytes(kMiB, 64 * kKiB));
    std::ranges::copy(bytes(0, 4096), expected.begin() + 32 * kKiB);
    EXPECT_EQ(driver_->read(file_, 64 * kKiB, 64 * kKiB).value(), expected);
    EXPECT_EQ(recovered("data", 64 * kKiB, 64 * kKiB), expected);
    driver_->run_until([&] { return counts().live_records == 0; });
    EXPECT_EQ(recovered("data", 64 * kKiB, 64 * kKiB), expected);
    stop();
}

TEST_P(LatePlacementTest, ABatchStaysWhole) {
    lock();
    auto op = std::make_unique<WriteOp>();
    op->kind = WriteOp::Kind::Batch;
    op->ranges = {{other_, ByteOffset(0), bytes(kMiB, 64 * kKiB)},
                  {file_, ByteOffset(0), bytes(2 * kMiB, 64 * kKiB)}};
    const Answer stuck = driver_->submit(std::move(op));
    const FileRef third = [&] {
        make("third");
        return must_open("third");
    }();
    for (uint64_t i = 0; i < 500; ++i)
        ASSERT_TRUE(driver_->write(third, i % 256 * 64 * kKiB, bytes(i * kKiB, 64 * kKiB)));
    EXPECT_FALSE(stuck->has_value());
    EXPECT_EQ(recovered("other", 0, 64 * kKiB), copy_of(bytes(kMiB, 64 * kKiB)));
    EXPECT_EQ(recovered("data", 0, 64 * kKiB), copy_of(bytes(2 * kMiB, 64 * kKiB)));
    lock_->release();
    EXPECT_TRUE(driver_->finish(stuck));
    EXPECT_EQ(driver_->read(file_, 0, 64 * kKiB).value(), copy_of(bytes(2 * kMiB, 64 * kKiB)));
    stop();
}

TEST_P(LatePlacementTest, ManyPlacementsOfAFileLeaveThreadsForOthers) {
    lock();
    std::vector<Answer> answers;
    for (uint64_t at = 0; at < kMiB / 2; at += 4 * kKiB)
        answers.push_back(driver_->submit(WriteOp::Kind::Atomic, file_, at, bytes(at, 4 * kKiB)));
    until_late();
    write_others();
    EXPECT_EQ(unanswered(answers), answers.size());
    lock_->release();
    for (const Answer& answer : answers) EXPECT_TRUE(driver_->finish(answer));
    EXPECT_EQ(driver_->read(file_, 0, kMiB / 2).value(), copy_of(bytes(0, kMiB / 2)));
    stop();
}

TEST_P(LatePlacementTest, AFreezeWaitsForIt) {
    lock();
    const Answer stuck = driver_->submit(WriteOp::Kind::Atomic, file_, 0, bytes(kMiB, 16 * kKiB));
    until_late();
    bool frozen = false;
    target_->freeze([&](const Result<>& done) { frozen = done.has_value(); });
    ASSERT_TRUE(driver_->read(other_, 0, 4096));
    EXPECT_FALSE(frozen);
    lock_->release();
    EXPECT_TRUE(driver_->finish(stuck));
    driver_->run_until([&] { return frozen; });
    EXPECT_EQ(counts().live_records, 0u);
    target_->thaw();
    stop();
}

// It doesn't wait for the lock. What is acknowledged after that is no longer in the log, and what
// isn't may be put over what the opener does, as if it came after it.
TEST_P(LatePlacementTest, AnOpenerOfTheFileGoesOn) {
    lock();
    const Answer stuck = driver_->submit(WriteOp::Kind::Atomic, file_, 0, bytes(kMiB, 16 * kKiB));
    ASSERT_TRUE(driver_->write(other_, 0, bytes(0, 4096)));
    for (const char how : {'w', 'r'}) {
        OtherProcess opener(path("data"));
        EXPECT_EQ(other_step(opener, how), '+');
    }
    EXPECT_TRUE(lock_->held());
    EXPECT_EQ(ack(file_), Ack::Strict);
    const Answer next = driver_->submit(WriteOp::Kind::Atomic, file_, kMiB, bytes(0, 16 * kKiB));
    EXPECT_EQ(recovered("data", 0, 16 * kKiB), copy_of(bytes(kMiB, 16 * kKiB)));
    EXPECT_FALSE(stuck->has_value());
    EXPECT_FALSE(next->has_value());
    lock_->release();
    const auto done = driver_->finish(stuck);
    ASSERT_TRUE(done);
    EXPECT_EQ(done->ack, Ack::Strict);
    EXPECT_TRUE(driver_->finish(next));
    EXPECT_EQ(driver_->read(file_, 0, 16 * kKiB).value(), copy_of(bytes(kMiB, 16 * kKiB)));
    // The openers have gone.
    writer_.reset();
    driver_->run_until([&] { return ack(file_) == Ack::Exclusive; });
    EXPECT_TRUE(driver_->write(file_, 0, bytes(0, 16 * kKiB)));
    stop();
}

// The same for what is not logged yet, or never will be.
TEST_P(LatePlacementTest, AnOpenerDoesNotWaitForOtherWritesEither) {
    lock();
    const Answer plain = driver_->submit(WriteOp::Kind::Plain, file_, 0, bytes(kMiB, 16 * kKiB));
    ASSERT_TRUE(driver_->read(other_, 0, 4096));
    OtherProcess opener(path("data"));
    EXPECT_EQ(other_step(opener, 'w'), '+');
    EXPECT_TRUE(lock_->held());
    EXPECT_FALSE(plain->has_value());
    lock_->release();
    EXPECT_TRUE(driver_->finish(plain));
    EXPECT_TRUE(driver_->write(file_, 0, bytes(0, 16 * kKiB)));
    stop();
}

INSTANTIATE_TEST_SUITE_P(Backends, LatePlacementTest, ::testing::Values(EventLoop::Backend::Uring),
                         backend_name);

}  // namespace
}  // namespace atomic4::test
