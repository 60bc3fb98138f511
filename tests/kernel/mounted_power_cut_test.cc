// The power is cut while clients write atomically to a mounted volume, and others write to the same
// files: at many moments, with many fates of what no flush had covered, and recovered in each way
// that an operator has.
//
// ATOMIC4_LONG=1: thousands of cuts instead of dozens.
#include <gmock/gmock.h>
#include <sys/stat.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <thread>

#include "ext4/atomic_file.h"
#include "support/command.h"
#include "support/loop.h"
#include "support/mounted_session.h"
#include "support/power_cut.h"
#include "support/privileged.h"
#include "writer/open_volume.h"

namespace atomic4::test {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kBlock = WriteHistory::kBlock;
constexpr uint64_t kDataBlocks = kMiB / kBlock;
constexpr std::array kOtherWays{Recovery::PlainMount, Recovery::Offline,
                                Recovery::OfflineAfterMount};
constexpr uint64_t kLargestUnit = kMiB / 4 / kBlock;

bool long_form() {
    return std::getenv("ATOMIC4_LONG") != nullptr;
}

// With an atomic file of zeros, "data".
Image volume() {
    EnableOptions options;
    options.log_size = Bytes(kMiB + kMiB / 16);
    Image image = make_atomic4(
        16 * kMiB, {"-b", "4096", "-N", "128", "-E", "lazy_itable_init=0,lazy_journal_init=0"},
        options);
    auto opened = open_for_writing(std::make_unique<ImageDevice>(image)).value();
    NewFile file;
    file.size = Bytes(kDataBlocks * kBlock);
    file.unit = Bytes(16384);
    create_atomic_file(*opened.volume, "/data", file).value();
    return image;
}

class MountedPowerCutTest : public ::testing::Test {
  protected:
    void SetUp() override {
        if (const auto why = FaultDisk::why_not()) A4_SKIP(*why);
        ASSERT_EQ(::mkdir(dir().c_str(), 0755), 0);
    }
    std::string dir() const { return temp_.file("mnt"); }

    // Mounted for the first time, with files made and flushed, and recording from here on.
    void begin() {
        disk_.emplace(volume());
        mount_.emplace(disk_->device(), dir(), std::vector<std::string>{"-t", "ext4"});
        history_.add_file("data", kDataBlocks * kBlock);
        for (const char* name : {"grow", "sparse", "shared"}) {
            const UniqueFd fd(
                ::open((dir() + "/" + name).c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
            const uint64_t size = std::string_view(name) == "grow" ? 0 : kDataBlocks * kBlock;
            ASSERT_EQ(::ftruncate(fd.get(), static_cast<off_t>(size)), 0);
            if (std::string_view(name) == "shared") {
                const std::vector<std::byte> zeros(size);
                ASSERT_EQ(::pwrite(fd.get(), zeros.data(), size, 0), static_cast<ssize_t>(size));
            }
            ASSERT_EQ(::fsync(fd.get()), 0);
            history_.add_file(name, size);
        }
        ::sync();
        // The watch would let this process's own opens pass; this one the probe finds.
        others_.reset(::open((dir() + "/shared").c_str(), O_RDWR | O_CLOEXEC));
        ASSERT_TRUE(others_);
        auto session = MountedSession::start(dir(), {});
        ASSERT_TRUE(session) << session.error().message;
        session_ = std::move(*session);
        for (const std::string& name : history_.files()) {
            auto file = session_->open(name);
            ASSERT_TRUE(file) << file.error().message;
            files_.push_back(*file);
        }
        first_ = disk_->events();
    }
    // All goes down; what was recorded stays.
    void end() {
        files_.clear();
        session_.reset();
        others_.reset();
        trace_ = disk_->recorded();
        mount_.reset();
        disk_.reset();
    }
    void TearDown() override {
        files_.clear();
        session_.reset();
        others_.reset();
        mount_.reset();
        disk_.reset();
    }

    uint64_t below(uint64_t n) { return random_() % n; }
    // Within the clients' half of the files; "grow" has no end.
    WriteHistory::Part random_part(size_t file, uint64_t largest) {
        uint64_t count = 1;
        while (count < largest && below(3) != 0) count *= 2;
        uint64_t span = kDataBlocks / 2;
        if (history_.files()[file] == "grow") span = std::min(kDataBlocks, grown_ + 2 * count);
        const uint64_t first = below(std::max<uint64_t>(1, span / count)) * count;
        if (history_.files()[file] == "grow") grown_ = std::max(grown_, first + count);
        return {file, first, count};
    }
    std::vector<WriteHistory::Part> random_write() {
        if (below(7) != 0) return {random_part(below(4), kLargestUnit)};
        std::vector<WriteHistory::Part> parts;
        for (uint64_t left = 2 + below(4); left > 0; --left) {
            const WriteHistory::Part part = random_part(below(4), 8);
            if (std::ranges::none_of(parts, [&](const auto& it) { return it.overlaps(part); }))
                parts.push_back(part);
        }
        return parts;
    }
    void submit(const std::vector<WriteHistory::Part>& parts) {
        const uint64_t number = history_.begin(parts, disk_->events());
        auto op = std::make_unique<WriteOp>();
        op->kind = parts.size() > 1 ? WriteOp::Kind::Batch : WriteOp::Kind::Atomic;
        auto data = std::make_shared<std::vector<std::vector<std::byte>>>();
        for (const WriteHistory::Part& part : parts) {
            data->push_back(history_.bytes(number, part));
            op->ranges.push_back(
                {files_[part.file], ByteOffset(part.first * kBlock), data->back()});
        }
        ++under_way_;
        op->done = [this, number, data](const Result<WriteDone>& done) {
            --under_way_;
            ASSERT_TRUE(done) << done.error().message;
            history_.done(number, disk_->events());
        };
        session_->target().submit(std::move(op));
    }
    void settle() {
        session_->driver().run_until([&] { return under_way_ == 0 && !others_busy_; });
    }
    // Blocks of the second half of "shared", buffered, and synced.
    void others_write() {
        if (others_busy_) return;
        others_busy_ = true;
        const WriteHistory::Part part{3, kDataBlocks / 2 + below(kDataBlocks / 2 - 4),
                                      1 + below(4)};
        const uint64_t number = history_.begin_by_others(part, disk_->events());
        session_->others().run(
            [fd = others_.get(), part, bytes = history_.bytes(number, part)] {
                const auto offset = static_cast<off_t>(part.first * kBlock);
                const ssize_t n = ::pwrite(fd, bytes.data(), bytes.size(), offset);
                return n == static_cast<ssize_t>(bytes.size()) && ::fsync(fd) == 0 ? 0 : -errno;
            },
            [this, number](int result) {
                others_busy_ = false;
                ASSERT_EQ(result, 0);
                history_.done(number, disk_->events());
            });
    }
    void run_clients(unsigned writes) {
        for (unsigned i = 0; i < writes; ++i) {
            if (below(3) == 0) others_write();
            submit(random_write());
            const size_t depth = below(12);
            session_->driver().run_until([&] { return under_way_ <= depth; });
        }
        settle();
    }
    // Recoveries come later than the slack within which times say nothing.
    static void wait_until_times_tell() {
        std::this_thread::sleep_for(std::chrono::nanoseconds(kClockSlack) +
                                    std::chrono::milliseconds(500));
    }
    std::string where(size_t cut, uint64_t fate) const {
        return fmt::format("cut in event {} of {} ({}), fate {}, seed {}", cut, trace_->events(),
                           trace_->describe(cut), fate, seed_);
    }

    TempDir temp_;
    uint64_t seed_ = 1;
    std::mt19937_64 random_{seed_};
    WriteHistory history_;
    std::optional<FaultDisk> disk_;
    std::optional<Mount> mount_;
    std::unique_ptr<MountedSession> session_;
    std::vector<FileRef> files_;
    UniqueFd others_;  // of "shared"
    size_t under_way_ = 0;
    bool others_busy_ = false;
    uint64_t grown_ = 0;
    size_t first_ = 0;
    std::unique_ptr<CrashDevice> trace_;
};

// Each way of recovery at each of many cuts.
TEST_F(MountedPowerCutTest, NothingAcknowledgedIsLostAndNothingIsTorn) {
    begin();
    run_clients(long_form() ? 600 : 200);
    EXPECT_GT(session_->target().counts().acks_exclusive, 20u);
    EXPECT_GT(session_->target().counts().acks_strict, 20u);
    end();
    wait_until_times_tell();
    const size_t cuts = long_form() ? 2000 : 60;
    const size_t span = trace_->events() - first_;
    std::fprintf(stderr, "%zu events, %zu writes\n", span, history_.count());
    uint64_t replayed = 0;
    size_t forced = 0;
    int wrong = 0;
    for (size_t i = 0; i < cuts && wrong < 12; ++i) {
        const size_t cut = first_ + span * i / cuts + below(span / cuts + 1);
        const uint64_t fate = i % 4 == 0 ? 0 : i % 4 == 1 ? 1 : random_() | 2;
        const Image image = trace_->image_after(cut, fate);
        // The others take turns; each has its share of all fates.
        for (const Recovery way : {Recovery::PrivateMount, kOtherWays[i / 4 % 3]}) {
            const Recovered once = recover_after_cut(image, way, dir(), history_, cut);
            EXPECT_EQ(once.complaint, "") << to_text(way) << "\n" << where(cut, fate);
            wrong += once.complaint.empty() ? 0 : 1;
            replayed += once.records;
            forced += once.forced ? 1 : 0;
            if (!once.complaint.empty() || i % 5 != 0) continue;
            // Once more: nothing is left to do.
            const Recovered again = recover_after_cut(once.image, way, dir(), history_, cut);
            EXPECT_EQ(again.complaint, "") << to_text(way) << ", again\n" << where(cut, fate);
            EXPECT_EQ(again.records, 0u);
        }
    }
    EXPECT_GT(replayed, 0u);
    // The exception, not the rule.
    EXPECT_LT(forced, cuts / 2);
    std::fprintf(stderr, "%zu forced\n", forced);
}

}  // namespace
}  // namespace atomic4::test
