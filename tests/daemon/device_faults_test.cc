// The whole daemon, keeper and worker, on a disk that fails: what clients, other openers, STATS and
// whoever stops it are told, and what the next start finds.
#include <gmock/gmock.h>
#include <sys/stat.h>

#include <map>

#include "ext4/atomic_file.h"
#include "support/fault_disk.h"
#include "support/loop.h"
#include "support/other_process.h"
#include "support/power_cut.h"
#include "support/served_volume.h"
#include "support/write_history.h"
#include "writer/open_volume.h"

namespace atomic4::test {
namespace {

using ::testing::HasSubstr;

using Part = WriteHistory::Part;
using What = FaultDisk::What;

constexpr uint64_t kBlock = WriteHistory::kBlock;
constexpr uint64_t kFileBlocks = 128;
enum TestFile : size_t { kData, kGrow, kSparse, kShared, kFiles };
constexpr std::array<const char*, kFiles> kNames = {"data", "grow", "sparse", "shared"};

// How the volume comes back into service.
enum class Back {
    SameMount,    // the daemon starts again; by the helper if the kernel has given the mount up
    MountHelper,  // umount, mount.atomic4
    Recover,      // umount, atomic4ctl recover, mount -t ext4
};
constexpr std::array kWaysBack = {Back::SameMount, Back::MountHelper, Back::Recover};

Image small_volume() {
    EnableOptions options;
    options.log_size = Bytes(kMiB + kMiB / 16);
    return make_atomic4(16 * kMiB,
                        {"-b", "4096", "-N", "128", "-E", "lazy_itable_init=0,lazy_journal_init=0"},
                        options);
}

std::string program(const std::string& name) {
    return std::string(ATOMIC4_BIN) + "/" + name;
}

// A disk, a mount, a daemon, a client, and somebody who has one of the files open for writing.
class Faulty {
  public:
    Faulty() : disk_(small_volume(), FaultDisk::Memory::Forgets) {
        if (::mkdir(dir_.c_str(), 0755) != 0) throw std::runtime_error(dir_);
        mount();
        for (size_t file = 0; file < kFiles; ++file) {
            const uint64_t size = file == kGrow ? 0 : kFileBlocks * kBlock;
            history_.add_file(kNames[file], size);
            const UniqueFd fd = open_path(path(file), O_RDWR | O_CREAT);
            const std::vector<std::byte> zeros(file == kSparse ? 0 : size);
            if (::ftruncate(fd.get(), static_cast<off_t>(size)) != 0 ||
                ::pwrite(fd.get(), zeros.data(), zeros.size(), 0) !=
                    static_cast<ssize_t>(zeros.size()) ||
                ::fsync(fd.get()) != 0)
                throw std::runtime_error(path(file) + ": " + std::strerror(errno));
        }
        strangers_ = open_path(dir_ + "/strangers", O_RDWR | O_CREAT);
        ::sync();
        daemon_.emplace(dir_);
        connect();
    }
    ~Faulty() {
        disk_.heal();
        client_.reset();
        other_.reset();
        strangers_.reset();
        daemon_.reset();
    }
    Faulty(const Faulty&) = delete;
    Faulty& operator=(const Faulty&) = delete;

    FaultDisk& disk() { return disk_; }
    DaemonProcess& daemon() { return *daemon_; }
    Client& client() { return *client_; }
    std::string path(size_t file) const { return dir_ + "/" + kNames[file]; }

    void submit(const std::vector<Part>& parts) {
        const uint64_t number = history_.begin(parts, 0);
        std::vector<std::vector<std::byte>> data;
        std::vector<BatchPart> batch;
        for (const Part& part : parts) data.push_back(history_.bytes(number, part));
        for (size_t i = 0; i < parts.size(); ++i)
            batch.push_back(
                {handles_.at(parts[i].file), ByteOffset(parts[i].first * kBlock), data[i]});
        const uint64_t tag =
            must(batch.size() == 1
                     ? client_->submit_write(batch[0].handle, batch[0].offset, batch[0].data)
                     : client_->submit_batch(batch));
        under_way_[tag] = number;
    }
    // Waits for all. What was refused is in `errors`, in the order of the answers.
    void settle() {
        while (!under_way_.empty())
            for (const Completion& done : client_->reap(16)) {
                if (done.code == 0)
                    history_.done(under_way_.at(done.tag), 0);
                else
                    errors.push_back(Error{done.code, done.reason});
                under_way_.erase(done.tag);
            }
    }
    // Each kind of write: alone, growing, strict, into a hole, a batch, and several at once. At the
    // end nothing is left to be done in the background.
    void one_of_each() {
        for (const Part& part : {Part{kData, 0, 4}, Part{kGrow, 0, 4}, Part{kShared, 0, 4}}) {
            submit({part});
            settle();
        }
        submit({{kData, 4, 4}});
        submit({{kSparse, 8, 4}});
        submit({{kData, 0, 2}, {kShared, 4, 2}, {kGrow, 4, 2}});
        settle();
        if (const auto retired = client_->freeze(); !retired) errors.push_back(retired.error());
        must(client_->thaw());
    }
    // What the kernel tells who writes a file of his own without the daemon: 0 or an errno.
    int others_write() {
        const std::vector<std::byte> page(kBlock);
        const UniqueFd& file = strangers_;
        return ::pwrite(file.get(), page.data(), page.size(), 0) < 0 ? errno : 0;
    }
    // Somebody's change of an inode can't be committed.
    void lose_journal() {
        disk_.fail(What::Both, 0, FaultDisk::kForEver);
        if (::fchmod(strangers_.get(), 0600) != 0 || ::fsync(strangers_.get()) == 0)
            throw std::runtime_error("the journal goes on");
        disk_.heal();
    }
    bool poisoned() const {
        return must(client_->stats()).find("\"poisoned\": true") != std::string::npos;
    }

    // In service again, without any acknowledgement lost: what is wrong, or nothing.
    std::string back_in_service(Back way) {
        client_.reset();
        other_.reset();
        strangers_.reset();
        try {
            if (way == Back::SameMount) {
                try {
                    daemon_->start();
                } catch (const std::exception&) {
                    way = Back::MountHelper;  // the kernel has made it read-only
                }
            }
            if (way != Back::SameMount) {
                unmount();
                remount(way);
                daemon_->start();
            }
            connect();
        } catch (const std::exception& error) {
            return error.what();
        }
        std::string words = judge_mounted(dir_, history_, 0);
        if (!words.empty()) return words;
        errors.clear();
        one_of_each();
        if (!errors.empty()) return "it doesn't serve: " + errors[0].message;
        words = judge_mounted(dir_, history_, 0);
        if (!words.empty()) return "later: " + words;
        client_.reset();
        other_.reset();
        if (daemon_->stop() != 0) return "it doesn't stop: " + daemon_->said();
        return {};
    }

    std::vector<Error> errors;

  private:
    void connect() {
        // Before the daemon looks: the file is strict.
        other_ = open_path(path(kShared), O_RDWR);
        client_ = must(Client::connect(daemon_->socket()));
        handles_.clear();
        for (size_t file = 0; file < kFiles; ++file)
            handles_.push_back(open_through(*client_, path(file)).handle);
        for (const TestFile file : {kData, kGrow, kSparse})
            if (!until_exclusive(*client_, handles_[file]))
                throw std::runtime_error(path(file) + " stays strict");
        if (must(client_->statx(handles_[kShared])).ack_mode != wire::AckMode::Strict)
            throw std::runtime_error(path(kShared) + " isn't strict");
    }
    void mount() { mount_.emplace(disk_.device(), dir_, std::vector<std::string>{"-t", "ext4"}); }
    void unmount() {
        // The last files of a worker that was killed go a moment after it.
        CommandOutput told;
        for (int attempt = 0; attempt < 500; ++attempt) {
            told = run_command({"umount", dir_});
            if (told.status == 0) break;
        }
        if (told.status != 0) throw std::runtime_error(told.output);
        mount_->gone();
        mount_.reset();
    }
    void remount(Back way) {
        if (way == Back::Recover) {
            auto told = run_command({program("atomic4ctl"), "recover", disk_.device()});
            if (told.status != 0 && told.output.find("journal") != std::string::npos) {
                // Aborted, it wasn't emptied by the umount: the kernel has to. That was a mount
                // within the second of the last changes, which can't be told from a later one.
                mount();
                unmount();
                told = run_command({program("atomic4ctl"), "recover", "--force", disk_.device()});
            }
            if (told.status == 0) return mount();
            // The volume is left to e2fsck then, but the kernel mounts it still.
            if (told.output.find("ext4 has recorded errors") == std::string::npos)
                throw std::runtime_error("atomic4ctl recover: " + told.output);
        }
        const auto told =
            run_command({program("mount.atomic4"), disk_.device(), dir_, "-o", "rw,noatomic4d"});
        if (told.status != 0) throw std::runtime_error("mount.atomic4: " + told.output);
        mounted_by_helper_ = std::make_unique<HelperMount>(dir_);
    }
    struct HelperMount {
        explicit HelperMount(std::string at) : dir(std::move(at)) {}
        ~HelperMount() { run_command({"umount", "-i", "-l", dir}); }
        HelperMount(const HelperMount&) = delete;
        HelperMount& operator=(const HelperMount&) = delete;
        std::string dir;
    };

    TempDir temp_;
    std::string dir_ = temp_.file("mnt");
    FaultDisk disk_;
    std::optional<Mount> mount_;
    std::unique_ptr<HelperMount> mounted_by_helper_;
    WriteHistory history_;
    UniqueFd other_;
    UniqueFd strangers_;
    std::optional<DaemonProcess> daemon_;
    std::unique_ptr<Client> client_;
    std::vector<uint64_t> handles_;
    std::map<uint64_t, uint64_t> under_way_;  // tag to number
};

class DeviceFaultsTest : public ::testing::Test {
  protected:
    void SetUp() override {
        if (const auto why = FaultDisk::why_not()) A4_SKIP(*why);
    }
    // Until the nth comes no more.
    void every_nth(What what, uint64_t stride, size_t least_poisoned);
    void fail_nth(What what, uint64_t nth);

    bool past_the_end_ = false;
    size_t rounds_ = 0, poisoned_ = 0, told_ = 0;
};

// Nobody may be kept waiting, and nothing may be served that isn't certain.
void expect_poisoned(Faulty& it) {
    it.errors.clear();
    it.submit({{kData, 12, 4}});
    it.submit({{kData, 16, 1}, {kSparse, 16, 1}});
    it.settle();
    ASSERT_EQ(it.errors.size(), 2u);
    for (const Error& error : it.errors) {
        EXPECT_EQ(error.code, EIO);
        EXPECT_THAT(error.message, HasSubstr("in doubt"));
    }
    const std::string counters = must(it.client().stats(wire::StatsFormat::Prometheus));
    EXPECT_NE(counters.find("\natomic4_poisoned 1\n"), std::string::npos);
    EXPECT_THAT(it.daemon().said(), HasSubstr("writes are refused from now on"));
    OtherProcess opener(it.path(kData));
    // The kernel may have made the volume read-only; but there is an answer.
    EXPECT_NE(opener.step('w'), '?');
}

// Its exit status.
int orderly_end(DaemonProcess& daemon) {
    const int status = daemon.stop();
    EXPECT_GE(status, 0) << "it didn't end: " << daemon.said();
    EXPECT_THAT(daemon.said(), ::testing::Not(HasSubstr("not everything could be finished")));
    return status;
}

void DeviceFaultsTest::fail_nth(What what, uint64_t nth) {
    Faulty it;
    it.disk().fail(what, nth);
    it.one_of_each();
    const bool poisoned = it.poisoned();
    for (const Error& error : it.errors) {
        // ext4 has lost its journal, and the write was refused before anything was logged: with
        // what the kernel tells everybody.
        if (error.code == EROFS) {
            EXPECT_THAT(error.message, HasSubstr("allocating blocks for the write"));
            EXPECT_EQ(it.others_write(), EROFS);
            continue;
        }
        EXPECT_EQ(error.code, EIO) << error.message;
        EXPECT_THAT(error.message, HasSubstr("in doubt"));
        EXPECT_TRUE(poisoned) << error.message;
        ++told_;
    }
    // Else it may fail while the daemon stops.
    if (rounds_ % 2 == 0) it.disk().heal();
    if (poisoned) {
        ++poisoned_;
        expect_poisoned(it);
    }
    const uint64_t failed = it.disk().failed();
    const int status = orderly_end(it.daemon());
    if (poisoned || it.disk().failed() == failed) {
        EXPECT_EQ(status, poisoned ? 1 : 0);
    }
    past_the_end_ = it.disk().failed() == 0 && rounds_ % 2 == 1;
    it.disk().heal();
    EXPECT_EQ(it.back_in_service(kWaysBack[rounds_ % kWaysBack.size()]), "") << it.daemon().said();
}

void DeviceFaultsTest::every_nth(What what, uint64_t stride, size_t least_poisoned) {
    if (long_form()) stride = 1;
    for (uint64_t nth = 0; !past_the_end_ && !HasFailure(); nth += stride, ++rounds_) {
        SCOPED_TRACE(fmt::format("number {} fails", nth));
        fail_nth(what, nth);
    }
    fmt::print("{} rounds: {} poisoned, {} errors told\n", rounds_, poisoned_, told_);
    EXPECT_GE(poisoned_, least_poisoned);
    EXPECT_GE(told_, least_poisoned);
}

TEST_F(DeviceFaultsTest, AnyWriteMayFail) {
    every_nth(What::Write, 3, 4);
}

TEST_F(DeviceFaultsTest, AnyFlushMayFail) {
    every_nth(What::Flush, 2, 3);
}

// And stays away: also while the daemon stops.
TEST_F(DeviceFaultsTest, ADiskThatIsGone) {
    for (const Back way : {Back::SameMount, Back::MountHelper}) {
        Faulty it;
        it.submit({{kData, 0, 4}});
        it.settle();
        ASSERT_TRUE(it.errors.empty());
        it.disk().fail(What::Both, 0, FaultDisk::kForEver);
        it.one_of_each();
        ASSERT_TRUE(it.poisoned());
        expect_poisoned(it);
        EXPECT_EQ(orderly_end(it.daemon()), 1) << it.daemon().said();
        it.disk().heal();
        EXPECT_EQ(it.back_in_service(way), "") << it.daemon().said();
    }
}

// The kernel refuses what it would have to write down there, to everybody alike.
TEST_F(DeviceFaultsTest, AJournalThatHasFailed) {
    Faulty it;
    it.submit({{kData, 0, 4}});
    it.settle();
    ASSERT_TRUE(it.errors.empty());
    it.lose_journal();
    EXPECT_EQ(it.others_write(), EROFS);
    // Blocks are missing: nothing is logged for it, and nothing is in doubt.
    for (const auto& parts : {std::vector<Part>{{kSparse, 16, 4}}, {{kGrow, 0, 4}}}) {
        it.submit(parts);
        it.settle();
        ASSERT_EQ(it.errors.size(), 1u);
        EXPECT_EQ(it.errors[0].code, EROFS) << it.errors[0].message;
        EXPECT_THAT(it.errors[0].message, HasSubstr("allocating blocks for the write"));
        it.errors.clear();
    }
    EXPECT_FALSE(it.poisoned());
    // The log's own times can't be changed any more either.
    it.submit({{kData, 8, 4}});
    it.settle();
    ASSERT_EQ(it.errors.size(), 1u);
    EXPECT_EQ(it.errors[0].code, EIO) << it.errors[0].message;
    EXPECT_THAT(it.errors[0].message, HasSubstr("in doubt"));
    EXPECT_TRUE(it.poisoned());
    expect_poisoned(it);
    EXPECT_EQ(orderly_end(it.daemon()), 1) << it.daemon().said();
    EXPECT_EQ(it.back_in_service(Back::MountHelper), "") << it.daemon().said();
}

// Its worker dies when there is no disk to recover from: the keeper ends too and says why, and lets
// openers through.
TEST_F(DeviceFaultsTest, AWorkerThatDiesWithoutADisk) {
    for (const Back way : {Back::SameMount, Back::MountHelper}) {
        Faulty it;
        it.submit({{kData, 0, 4}});
        it.submit({{kSparse, 0, 4}});
        it.settle();
        ASSERT_TRUE(it.errors.empty());
        it.disk().fail(What::Both, 0, FaultDisk::kForEver);
        it.submit({{kData, 8, 4}});
        it.settle();
        ASSERT_EQ(it.errors.size(), 1u);
        ASSERT_TRUE(it.poisoned());
        it.daemon().kill_worker();
        EXPECT_GT(it.daemon().wait_exit(), 0) << it.daemon().said();
        OtherProcess opener(it.path(kData));
        EXPECT_NE(opener.step('w'), '?');
        opener.kill();
        it.disk().heal();
        EXPECT_EQ(it.back_in_service(way), "") << it.daemon().said();
    }
}

}  // namespace
}  // namespace atomic4::test
