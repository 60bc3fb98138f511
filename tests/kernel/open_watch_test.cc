#include "writer/open_watch.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/fanotify.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <thread>

#include "support/command.h"
#include "support/loop.h"
#include "support/other_process.h"
#include "support/privileged.h"

namespace atomic4::test {
namespace {

constexpr uint64_t kMiB = 1 << 20;

// The next events; empty if none comes.
std::vector<OpenEvent> events(OpenWatch& watch) {
    std::vector<OpenEvent> found;
    if (!readable(watch.fd(), kPatienceMs)) return found;
    const auto drained = watch.drain([&](const OpenEvent& event) { found.push_back(event); });
    EXPECT_TRUE(drained.has_value()) << drained.error().message;
    return found;
}

// A file of a mounted ext4, and a group that watches it.
class OpenWatchTest : public testing::Test {
  protected:
    void SetUp() override {
        A4_REQUIRE_ROOT();
        if (const auto why = LoopDevice::why_not()) A4_SKIP(*why);
        const std::string image = dir_.file("image");
        make_image(image, 64 * kMiB);
        const CommandOutput mkfs =
            run_command({"mke2fs", "-q", "-t", "ext4", "-N", "20000", image});
        ASSERT_EQ(mkfs.status, 0) << mkfs.output;
        loop_.emplace(image);
        std::filesystem::create_directory(dir_.file("mnt"));
        mount_.emplace(loop_->path(), dir_.file("mnt"));
        path_ = mount_->directory() + "/file";
        std::ofstream(path_) << std::string(65536, 'x');
        ASSERT_EQ(::chmod(path_.c_str(), 0755), 0);
        file_.reset(::open(path_.c_str(), O_RDONLY | O_CLOEXEC));
        ASSERT_TRUE(file_);

        auto group = OpenWatch::new_group();
        ASSERT_TRUE(group.has_value()) << group.error().message;
        watch_.emplace(std::move(*group));
        const auto watched = watch_->watch(file_.get());
        ASSERT_TRUE(watched.has_value()) << watched.error().message;
    }

    // The one event that comes next.
    OpenEvent event() {
        const auto found = events(*watch_);
        EXPECT_EQ(found.size(), 1u);
        return found.size() == 1 ? found[0] : OpenEvent{};
    }
    bool nothing_happened() { return !readable(watch_->fd(), 0); }
    void allow(const OpenEvent& event) {
        const auto allowed = watch_->allow(event.token);
        EXPECT_TRUE(allowed.has_value()) << allowed.error().message;
    }
    static bool nobody_writes(int fd) {
        const auto answer = OpenWatch::nobody_writes(fd);
        EXPECT_TRUE(answer.has_value()) << answer.error().message;
        return answer.value_or(false);
    }
    bool nobody_writes() { return nobody_writes(file_.get()); }
    // After a CloseWrite, which may come a moment too early.
    bool nobody_writes_soon() {
        for (int i = 0; i < 100000; ++i) {
            if (nobody_writes()) return true;
            std::this_thread::yield();
        }
        return false;
    }

    TempDir dir_;
    std::optional<LoopDevice> loop_;
    std::optional<Mount> mount_;
    std::string path_;
    UniqueFd file_;
    std::optional<OpenWatch> watch_;
};

TEST_F(OpenWatchTest, AnOpenerIsHeldUntilAllowed) {
    OtherProcess other(path_);
    other.begin('w');
    const OpenEvent open = event();
    EXPECT_EQ(open.kind, OpenEvent::Kind::Open);
    EXPECT_EQ(open.pid, other.pid());
    struct stat st{};
    ASSERT_EQ(::fstat(file_.get(), &st), 0);
    EXPECT_EQ(open.device, st.st_dev);
    EXPECT_EQ(open.inode, st.st_ino);
    EXPECT_EQ(watch_->held(), 1u);
    EXPECT_FALSE(other.answered());
    allow(open);
    EXPECT_EQ(other.result(), '+');
    EXPECT_EQ(watch_->held(), 0u);
    EXPECT_FALSE(watch_->allow(open.token).has_value());
}

TEST_F(OpenWatchTest, AHeldReaderIsToldFromAHeldWriter) {
    EXPECT_TRUE(nobody_writes());
    OtherProcess reader(path_), writer(path_);
    reader.begin('r');
    const OpenEvent read = event();
    EXPECT_TRUE(nobody_writes());
    EXPECT_TRUE(nobody_writes(read.fd));
    writer.begin('w');
    const OpenEvent write = event();
    EXPECT_EQ(write.pid, writer.pid());
    EXPECT_FALSE(nobody_writes());
    EXPECT_FALSE(nobody_writes(write.fd));

    allow(read);
    EXPECT_EQ(reader.result(), '+');
    EXPECT_FALSE(writer.answered());
    EXPECT_FALSE(nobody_writes());
    allow(write);
    EXPECT_EQ(writer.result(), '+');
    EXPECT_FALSE(nobody_writes());

    EXPECT_EQ(reader.step('c'), '+');
    EXPECT_TRUE(nothing_happened());  // a reader's going changes nothing
    EXPECT_EQ(writer.step('c'), '+');
    const OpenEvent closed = event();
    EXPECT_EQ(closed.kind, OpenEvent::Kind::CloseWrite);
    EXPECT_EQ(closed.pid, writer.pid());
    EXPECT_EQ(closed.inode, write.inode);
    EXPECT_TRUE(nobody_writes_soon());
}

TEST_F(OpenWatchTest, AMappingWritesAsLongAsItLives) {
    OtherProcess other(path_);
    other.begin('w');
    allow(event());
    EXPECT_EQ(other.result(), '+');
    EXPECT_EQ(other.step('m'), '+');
    EXPECT_EQ(other.step('c'), '+');
    EXPECT_TRUE(nothing_happened());
    EXPECT_FALSE(nobody_writes());
    EXPECT_EQ(other.step('u'), '+');
    EXPECT_EQ(event().kind, OpenEvent::Kind::CloseWrite);
    EXPECT_TRUE(nobody_writes_soon());
}

TEST_F(OpenWatchTest, WhoHadItOpenBefore) {
    ASSERT_TRUE(watch_->unwatch(file_.get()).has_value());
    ASSERT_TRUE(watch_->unwatch(file_.get()).has_value());  // of no effect
    OtherProcess other(path_);
    EXPECT_EQ(other.step('w'), '+');
    ASSERT_TRUE(watch_->watch(file_.get()).has_value());
    EXPECT_FALSE(nobody_writes());
    EXPECT_EQ(other.step('c'), '+');
    EXPECT_EQ(event().kind, OpenEvent::Kind::CloseWrite);
    EXPECT_TRUE(nobody_writes_soon());
}

TEST_F(OpenWatchTest, OtherWaysToAFile) {
    const std::string link = mount_->directory() + "/link";
    std::filesystem::create_hard_link(path_, link);
    OtherProcess linked(link);
    linked.begin('w');
    OpenEvent open = event();
    EXPECT_FALSE(nobody_writes());
    allow(open);
    EXPECT_EQ(linked.result(), '+');
    EXPECT_EQ(linked.step('c'), '+');
    EXPECT_EQ(event().kind, OpenEvent::Kind::CloseWrite);
    EXPECT_TRUE(nobody_writes_soon());

    OtherProcess executing(path_);
    executing.begin('x');
    open = event();
    EXPECT_TRUE(nobody_writes());
    allow(open);
    EXPECT_EQ(executing.result(), '-');

    OtherProcess truncating(path_);
    truncating.begin('t');
    open = event();
    EXPECT_TRUE(nobody_writes());
    EXPECT_NE(std::filesystem::file_size(path_), 0u);
    allow(open);
    EXPECT_EQ(truncating.result(), '+');
    EXPECT_EQ(std::filesystem::file_size(path_), 0u);

    OtherProcess unseen(path_);
    EXPECT_EQ(unseen.step('s'), '+');
    EXPECT_EQ(unseen.step('p'), '+');
    EXPECT_TRUE(nothing_happened());
    EXPECT_TRUE(nobody_writes());
}

TEST_F(OpenWatchTest, AnOpenerKilledWhileHeld) {
    OtherProcess other(path_);
    other.begin('w');
    const OpenEvent open = event();
    EXPECT_FALSE(nobody_writes());
    other.kill();
    EXPECT_TRUE(nobody_writes());
    allow(open);
    EXPECT_TRUE(nothing_happened());
}

TEST_F(OpenWatchTest, OurOwnOpensAreNotHeld) {
    UniqueFd opened;
    std::thread opener([&] { opened.reset(::open(path_.c_str(), O_RDWR | O_CLOEXEC)); });
    EXPECT_TRUE(events(*watch_).empty());
    opener.join();
    EXPECT_TRUE(opened);
    EXPECT_FALSE(nobody_writes());
    opened.reset();
    EXPECT_EQ(event().kind, OpenEvent::Kind::CloseWrite);
}

// Sweeps of truncations meet the probe's lease now and then: its signal must not hurt.
TEST_F(OpenWatchTest, ALeaseThatIsBrokenKillsNobody) {
    std::thread truncating([&] {
        for (int i = 0; i < 20000; ++i) EXPECT_EQ(::truncate(path_.c_str(), 65536), 0);
    });
    for (int i = 0; i < 20000; ++i) EXPECT_TRUE(OpenWatch::nobody_writes(file_.get()).has_value());
    truncating.join();
    EXPECT_TRUE(nobody_writes());
}

// What a reader of the group that died leaves: opens that it had read, and one that it had not.
TEST_F(OpenWatchTest, OrphansOfADeadReader) {
    OtherProcess first(path_), second(path_), third(path_);
    int read_both[2];
    ASSERT_EQ(::pipe2(read_both, O_CLOEXEC), 0);
    first.begin('r');
    second.begin('w');
    const pid_t reader = ::fork();
    if (reader == 0) {
        int seen = 0;
        while (seen < 2 && readable(watch_->fd(), kPatienceMs)) {
            if (!watch_->drain([&](const OpenEvent&) { ++seen; }).has_value()) break;
        }
        if (::write(read_both[1], "x", 1) != 1) ::_exit(1);
        for (;;) ::pause();
    }
    char byte = 0;
    ASSERT_EQ(::read(read_both[0], &byte, 1), 1);
    ::close(read_both[0]);
    ::close(read_both[1]);
    third.begin('w');
    ::kill(reader, SIGKILL);
    ASSERT_EQ(::waitpid(reader, nullptr, 0), reader);
    EXPECT_FALSE(first.answered());
    EXPECT_FALSE(second.answered());

    UniqueFd inherited(::dup(watch_->fd()));
    watch_.reset();
    OpenWatch adopted(std::move(inherited));
    const auto answered = adopted.answer_orphans();
    ASSERT_TRUE(answered.has_value()) << answered.error().message;
    EXPECT_EQ(*answered, 2u);
    EXPECT_EQ(first.result(), '+');
    EXPECT_EQ(second.result(), '+');

    const auto pending = events(adopted);
    ASSERT_EQ(pending.size(), 1u);
    EXPECT_EQ(pending[0].pid, third.pid());
    EXPECT_FALSE(third.answered());
    EXPECT_EQ(adopted.answer_orphans().error().code, EBUSY);
    ASSERT_TRUE(adopted.allow(pending[0].token).has_value());
    EXPECT_EQ(third.result(), '+');
}

TEST_F(OpenWatchTest, TheLastDescriptorLetsThrough) {
    OtherProcess other(path_);
    other.begin('w');
    EXPECT_EQ(event().kind, OpenEvent::Kind::Open);
    {
        const UniqueFd kept(::dup(watch_->fd()));
        watch_.reset();
        EXPECT_FALSE(other.answered());
    }
    EXPECT_EQ(other.result(), '+');
}

// Who has no descriptor left for an event lets openers wait, and refuses none.
TEST_F(OpenWatchTest, OutOfDescriptors) {
    OtherProcess first(path_), second(path_);
    rlimit before{};
    ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
    std::vector<UniqueFd> all;
    const UniqueFd lowest_free(::dup(file_.get()));
    const rlimit low{.rlim_cur = static_cast<rlim_t>(lowest_free.get()) + 20,
                     .rlim_max = before.rlim_max};
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &low), 0);
    for (int fd = 0; (fd = ::dup(file_.get())) >= 0;) all.emplace_back(fd);

    // No calls of the fixture's: the sanitizer's check of its type needs a descriptor.
    OpenWatch& watch = *watch_;
    first.begin('r');
    const auto one = events(watch);  // in the reserve
    EXPECT_TRUE(watch.starved());
    second.begin('r');
    EXPECT_TRUE(events(watch).empty());
    EXPECT_FALSE(second.answered());
    EXPECT_TRUE(one.size() == 1 && watch.allow(one[0].token).has_value());
    EXPECT_EQ(first.result(), '+');
    EXPECT_FALSE(watch.starved());
    const auto two = events(watch);
    EXPECT_TRUE(two.size() == 1 && watch.allow(two[0].token).has_value());
    EXPECT_EQ(second.result(), '+');
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
}

// A group with a bounded queue, and more events than it takes.
TEST_F(OpenWatchTest, AnOverflowIsTold) {
    watch_.reset();
    UniqueFd group(::fanotify_init(FAN_CLASS_CONTENT | FAN_CLOEXEC | FAN_NONBLOCK, O_RDONLY));
    ASSERT_TRUE(group);
    ASSERT_EQ(::fanotify_mark(group.get(), FAN_MARK_ADD | FAN_MARK_MOUNT, FAN_CLOSE_WRITE, AT_FDCWD,
                              mount_->directory().c_str()),
              0);
    std::ifstream setting("/proc/sys/fs/fanotify/max_queued_events");
    int most = 0;
    setting >> most;
    if (most == 0 || most > 16384) A4_SKIP("the queue of fanotify groups is set very long");
    for (int i = 0; i <= most; ++i) {
        const std::string name = mount_->directory() + "/f" + std::to_string(i);
        const UniqueFd file(::open(name.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
        ASSERT_TRUE(file) << i;
    }
    OpenWatch watch(std::move(group));
    int closed = 0, overflows = 0;
    while (readable(watch.fd(), 0)) {
        for (const OpenEvent& event : events(watch)) {
            closed += event.kind == OpenEvent::Kind::CloseWrite;
            overflows += event.kind == OpenEvent::Kind::Overflow;
        }
    }
    EXPECT_EQ(closed, most);
    EXPECT_EQ(overflows, 1);
}

TEST_F(OpenWatchTest, WhatCannotBeAsked) {
    int ends[2];
    ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    const auto answer = OpenWatch::nobody_writes(ends[0]);
    ASSERT_FALSE(answer.has_value());
    EXPECT_EQ(answer.error().code, EINVAL);
    ::close(ends[0]);
    ::close(ends[1]);
    EXPECT_FALSE(watch_->watch(-1).has_value());
}

}  // namespace
}  // namespace atomic4::test
