// Operating a served volume: remount, freeze, and orderly ends.
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>
// After it:
#include <linux/fs.h>

#include <atomic>
#include <thread>

#include "support/served_volume.h"
#include "support/shared_count.h"
#include "support/stamps.h"

namespace atomic4::test {
namespace {

constexpr size_t kUnits = 64;
// Before an end counts as none: many times what is promised, for slow machines.
constexpr int kPatience = 60'000;

// fsfreeze(8). Thawed whatever becomes of the test: by a process that notices its end, since
// nothing could be unmounted otherwise.
class Frozen {
  public:
    explicit Frozen(const std::string& directory) : fd_(open_path(directory, O_RDONLY)) {
        int ends[2];
        if (::pipe2(ends, O_CLOEXEC) != 0) throw std::runtime_error("pipe2");
        const UniqueFd end(ends[0]);
        ours_.reset(ends[1]);
        helper_ = ::fork();
        if (helper_ == 0) {
            ::close(ends[1]);
            char byte = 0;
            (void)!::read(ends[0], &byte, 1);
            ::ioctl(fd_.get(), FITHAW, 0);
            ::_exit(0);
        }
        if (::ioctl(fd_.get(), FIFREEZE, 0) != 0) throw std::runtime_error("FIFREEZE");
    }
    ~Frozen() { thaw(); }
    Frozen(const Frozen&) = delete;
    Frozen& operator=(const Frozen&) = delete;
    void thaw() {
        if (!fd_) return;
        ::ioctl(fd_.get(), FITHAW, 0);
        fd_.reset();
        ours_.reset();
        // It has the directory open.
        ::waitpid(helper_, nullptr, 0);
    }

  private:
    UniqueFd fd_;
    UniqueFd ours_;
    pid_t helper_ = -1;
};

class OperatingTest : public ServedTest {
  protected:
    void serve_data() {
        serve();
        make_file("data", kUnits * kUnit);
    }
    // What unit i holds after serial s of a client that writes one after the other.
    void expect_unit(size_t unit, uint64_t serial) {
        const auto bytes = read_path(path("data"), unit * kUnit, kUnit, O_DIRECT);
        const auto is = whole(bytes, unit * kUnit);
        EXPECT_TRUE(is && is->serial == serial) << unit << ": " << describe(bytes);
    }
};

TEST_F(OperatingTest, RemountingReadOnlyIsRefused) {
    serve_data();
    const auto client = connect();
    const File file = open_through(*client, path("data"));
    must(client->write(file.handle, ByteOffset(0), stamped(kUnit, 1, 1, 0)));
    EXPECT_NE(run_command({"mount", "-o", "remount,ro", image_->dir()}).status, 0);
    must(client->write(file.handle, ByteOffset(0), stamped(kUnit, 1, 2, 0)));
    expect_unit(0, 2);
    EXPECT_NE(run_command({"umount", image_->dir()}).status, 0);
    EXPECT_EQ(daemon_->stop(), 0);
    EXPECT_EQ(run_command({"mount", "-o", "remount,ro", image_->dir()}).status, 0);
}

TEST_F(OperatingTest, WritesWaitWhileTheFileSystemIsFrozen) {
    serve_data();
    const auto client = connect();
    const auto other = connect();
    const File file = open_through(*client, path("data"));
    must(client->write(file.handle, ByteOffset(0), stamped(kUnit, 1, 1, 0)));
    const File reading = open_through(*other, path("data"), wire::kOpenRead);
    std::vector<uint64_t> tags;
    {
        Frozen frozen(image_->dir());
        for (uint64_t i = 0; i < 8; ++i)
            tags.push_back(must(client->submit_write(file.handle, ByteOffset(i * kUnit),
                                                     stamped(kUnit, 1, i + 10, i * kUnit))));
        // Others are answered meanwhile, and this client too.
        for (int i = 0; i < 50; ++i) {
            EXPECT_NE(must(other->stats()).find("writes"), std::string::npos);
            must(other->ping());
            must(client->ping());
        }
        EXPECT_TRUE(client->reap(8, std::chrono::milliseconds(0)).empty());
        // Reading needs no permission to write.
        std::vector<std::byte> bytes(kUnit);
        must(other->read(reading.handle, ByteOffset(20 * kUnit), bytes));
    }
    size_t answered = 0;
    while (answered < tags.size())
        for (const Completion& done : client->reap(8)) {
            EXPECT_EQ(done.code, 0) << done.reason;
            ++answered;
        }
    for (uint64_t i = 0; i < 8; ++i) expect_unit(i, i + 10);
    stop_and_check();
}

TEST_F(OperatingTest, OurOwnFreezeRetiresAndHolds) {
    serve_data();
    const auto client = connect();
    const auto other = connect();
    const File file = open_through(*client, path("data"));
    must(client->write(file.handle, ByteOffset(0), stamped(kUnit, 1, 1, 0)));
    must(other->freeze());
    must(client->submit_write(file.handle, ByteOffset(0), stamped(kUnit, 1, 2, 0)));
    for (int i = 0; i < 20; ++i) must(client->ping());
    EXPECT_TRUE(client->reap(1, std::chrono::milliseconds(0)).empty());
    expect_unit(0, 1);
    // Between freeze and thaw a snapshot would be taken.
    {
        Frozen frozen(image_->dir());
    }
    must(other->thaw());
    const auto done = client->reap(1);
    ASSERT_EQ(done.size(), 1u);
    EXPECT_EQ(done[0].code, 0) << done[0].reason;
    expect_unit(0, 2);
    stop_and_check();
}

TEST_F(OperatingTest, SigtermFinishesWhatHasBegun) {
    serve_data();
    struct Told {
        SharedCount acked;
        std::string wrong;
        int code = 0;
    };
    constexpr uint32_t kEnough = 20;
    std::array<Told, 4> told;
    {
        std::vector<std::jthread> threads;
        for (size_t id = 0; id < told.size(); ++id)
            threads.emplace_back([&, id] {
                try {
                    const auto client = connect();
                    const File file = open_through(*client, path("data"));
                    const uint64_t at = id * kUnit;
                    for (uint32_t serial = 1;; ++serial) {
                        const auto done = client->write(file.handle, ByteOffset(at),
                                                        stamped(kUnit, id + 1, serial, at));
                        if (!done) {
                            if (serial <= kEnough) throw std::runtime_error(done.error().message);
                            told[id].code = done.error().code;
                            return;
                        }
                        told[id].acked.set(serial);
                    }
                } catch (const std::exception& error) {
                    told[id].wrong = error.what();
                    told[id].acked.set(kEnough);  // nobody needs to wait
                }
            });
        for (const Told& one : told) one.acked.wait_for(kEnough);
        daemon_->signal_keeper(SIGTERM);
        EXPECT_EQ(daemon_->wait_exit(kPatience), 0);
    }
    for (size_t id = 0; id < told.size(); ++id) {
        EXPECT_EQ(told[id].wrong, "");
        EXPECT_TRUE(told[id].code == ESHUTDOWN || told[id].code == EIO) << told[id].code;
        const auto is = whole(read_path(path("data"), id * kUnit, kUnit), id * kUnit);
        // One may have been written whose answer was lost with the connection.
        EXPECT_TRUE(is && is->serial >= told[id].acked.value() &&
                    is->serial <= told[id].acked.value() + 1);
    }
    EXPECT_EQ(daemon_->said().find("not everything"), std::string::npos) << "it was out of time";
    // Nothing is left to replay, for nobody.
    daemon_->start();
    EXPECT_EQ(daemon_->said().find("replayed"), std::string::npos) << daemon_->said();
    stop_and_check();
}

TEST_F(OperatingTest, SigtermEndsItOnAFrozenVolumeToo) {
    serve_data();
    const auto client = connect();
    const File file = open_through(*client, path("data"));
    must(client->write(file.handle, ByteOffset(0), stamped(kUnit, 1, 1, 0)));
    Frozen frozen(image_->dir());
    for (uint64_t i = 0; i < 4; ++i)
        must(client->submit_write(file.handle, ByteOffset(i * kUnit),
                                  stamped(kUnit, 1, i + 10, i * kUnit)));
    must(client->ping());
    daemon_->signal_keeper(SIGTERM);
    // Within its time it has given up and said so.
    EXPECT_TRUE(daemon_->wait_said("not everything could be finished in time", kPatience))
        << daemon_->said();
    frozen.thaw();
    EXPECT_NE(daemon_->wait_exit(kPatience), -1) << "it didn't end";
    daemon_->start();
    const auto is = whole(read_path(path("data"), 0, kUnit), 0);
    EXPECT_TRUE(is && (is->serial == 1 || is->serial == 10));
    for (uint64_t i = 1; i < 4; ++i) {
        const auto unit = whole(read_path(path("data"), i * kUnit, kUnit), i * kUnit);
        EXPECT_TRUE(unit && (unit->serial == 0 || unit->serial == i + 10)) << i;
    }
    stop_and_check();
}

}  // namespace
}  // namespace atomic4::test
