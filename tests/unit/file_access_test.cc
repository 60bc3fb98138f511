// Who may write a file, with openers and retirements that come when the test says so.
#include "writer/file_access.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <unistd.h>

#include <set>

#include "support/command.h"
#include "support/other_process.h"

namespace atomic4::test {
namespace {

using namespace std::chrono_literals;

class AllowingOpeners final : public Openers {
  public:
    int fd() const override { return -1; }
    Result<> watch(int) override { return {}; }
    Result<> unwatch(int) override { return {}; }
    Result<> drain(const OpenWatch::Handler&) override { return {}; }
    Result<> allow(uint64_t token) override {
        allowed.insert(token);
        return {};
    }
    std::set<uint64_t> allowed;
};

class FileAccessTest : public ::testing::Test {
  protected:
    void SetUp() override {
        const UniqueFd fd(::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
        ASSERT_EQ(::ftruncate(fd.get(), 65536), 0);
    }
    void start() {
        const FileAccess::Surroundings around{
            *loop_,
            *threads_,
            &openers_,
            "",
            [] {},
            [this](std::function<void(Result<>)> call) { retirements_.push_back(std::move(call)); },
            [this] { ++made_strict_; }};
        access_ = std::make_unique<FileAccess>(
            around, UniqueFd(::open(path_.c_str(), O_RDONLY | O_CLOEXEC)));
        access_->start([](const Result<>& ready) { EXPECT_TRUE(ready); });
        until_ready();
        ASSERT_EQ(access_->ack(), Ack::Exclusive) << access_->why_strict();
    }
    void until_ready() {
        bool ready = false;
        access_->when_ready([&](const Result<>&) { ready = true; });
        run_until([&] { return ready; });
    }
    template <class Condition>
    void run_until(const Condition& condition) {
        while (!condition()) ASSERT_TRUE(loop_->run_once());
    }
    void retire() {
        for (const auto& call : std::exchange(retirements_, {})) call({});
    }
    // Somebody has it open for writing, or is just being held.
    std::unique_ptr<OtherProcess> other(uint64_t token) {
        auto process = std::make_unique<OtherProcess>(path_);
        EXPECT_EQ(process->step('w'), '+');
        access_->opened(process->pid(), token);
        return process;
    }

    TempDir temp_;
    std::string path_ = temp_.file("file");
    AllowingOpeners openers_;
    std::unique_ptr<EventLoop> loop_ = EventLoop::create(EventLoop::Backend::Syscalls).value();
    std::unique_ptr<HelperThreads> threads_ = HelperThreads::start(*loop_).value();
    std::unique_ptr<FileAccess> access_;
    std::vector<std::function<void(Result<>)>> retirements_;
    int made_strict_ = 0;
};

// Between the end of patience and the retirement that it asks for: this one counts, too.
TEST_F(FileAccessTest, ALaterOpenerIsNotForgotten) {
    start();
    access_->use();  // a placement that hangs
    const auto first = other(1);
    run_until([&] { return !retirements_.empty(); });
    EXPECT_EQ(made_strict_, 1);
    EXPECT_EQ(access_->ack(), Ack::Strict);
    const auto second = other(2);
    EXPECT_TRUE(openers_.allowed.empty());
    retire();
    EXPECT_THAT(openers_.allowed, ::testing::ElementsAre(1, 2));
    access_->unuse();
    until_ready();
    retire();
    access_->declare(first->pid());
    EXPECT_EQ(access_->ack(), Ack::Strict);
    EXPECT_THAT(access_->why_strict(), ::testing::HasSubstr(fmt::format("{}", second->pid())));
    access_->declare(second->pid());
    EXPECT_EQ(access_->ack(), Ack::Exclusive);
}

TEST_F(FileAccessTest, ExclusiveBeforeTheRetirementWasAskedForNothing) {
    start();
    const auto first = other(1);
    until_ready();
    // One; more if the next look was due meanwhile. None of them counts any more when the file has
    // been exclusive since.
    const size_t before = retirements_.size();
    ASSERT_GE(before, 1u);
    access_->declare(first->pid());
    // It is being held itself, so it is asked again who writes.
    EXPECT_TRUE(access_->held());
    until_ready();
    EXPECT_EQ(access_->ack(), Ack::Strict);
    ASSERT_GT(retirements_.size(), before);
    for (size_t i = 0; i < before; ++i) retirements_[i]({});
    EXPECT_TRUE(openers_.allowed.empty());
    retire();
    EXPECT_THAT(openers_.allowed, ::testing::ElementsAre(1));
}

TEST_F(FileAccessTest, ARetirementThatTakesLongerThanTheNextLook) {
    start();
    const auto first = other(1);
    until_ready();
    const uint64_t probes = access_->probes();
    run_until([&] { return access_->probes() > probes; });
    until_ready();
    ASSERT_GE(retirements_.size(), 2u);
    retirements_.front()({});
    EXPECT_THAT(openers_.allowed, ::testing::ElementsAre(1));
}

}  // namespace
}  // namespace atomic4::test
