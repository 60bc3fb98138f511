// Group commit alone: a log in memory, files that are arrays of versions, and placements that end
// when the test says so, or not at all.
#include "writer/group_commit.h"

#include <gmock/gmock.h>
#include <sys/mman.h>

#include <list>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <thread>

#include "device/file_device.h"
#include "redo_fixture.h"
#include "support/backends.h"
#include "support/bytes.h"

namespace atomic4::test {
namespace {

using namespace std::chrono_literals;
using redo_test::LogDisk;

constexpr uint64_t kBlock = 4096;
constexpr uint32_t kFiles = 3;
constexpr size_t kBlocks = 64;
constexpr uint64_t kCapacity = uint64_t{1} << 20;

// A block's bytes are its version, all over.
std::vector<std::byte> block_of(uint64_t version) {
    std::vector<std::byte> bytes(kBlock);
    for (size_t at = 0; at < kBlock; at += sizeof version)
        std::memcpy(&bytes[at], &version, sizeof version);
    return bytes;
}
uint64_t version_of(std::span<const std::byte> bytes) {
    uint64_t version = 0;
    std::memcpy(&version, bytes.data(), sizeof version);
    return version;
}

using BlockId = std::pair<uint32_t, uint64_t>;  // inode, number
using Blocks = std::map<BlockId, uint64_t>;

class Placements final : public GroupCommit::Placer {
  public:
    struct Waiting {
        BlockId block;
        std::span<const std::byte> data;
        std::function<void(Result<>)> done;
    };

    void place(const FileRef& file, ByteOffset offset, std::span<const std::byte> data, bool,
               std::function<void(Result<>)> done) override {
        waiting.push_back({{file->inode, offset.value() / kBlock}, data, std::move(done)});
    }
    void flush_placed(std::function<void(Result<>)> done) override {
        flushing = placed;
        flush_done = std::move(done);
    }
    void wake() override { woken = true; }

    void end(std::list<Waiting>::iterator one) {
        const Waiting it = std::move(*one);
        waiting.erase(one);
        placed[it.block] = version_of(it.data);
        EXPECT_TRUE(std::ranges::equal(it.data, block_of(version_of(it.data))));
        it.done({});
    }
    void end_flush() {
        for (const auto& [block, version] : flushing) durable[block] = version;
        std::exchange(flush_done, nullptr)({});
    }
    std::list<Waiting>::iterator find(BlockId block) {
        return std::ranges::find(waiting, block, &Waiting::block);
    }

    std::list<Waiting> waiting;
    std::function<void(Result<>)> flush_done;  // a flush is under way
    Blocks placed, flushing, durable;
    bool woken = false;
};

class GroupCommitTest : public ::testing::TestWithParam<EventLoop::Backend> {
  protected:
    void start(std::chrono::milliseconds late_after) {
        log_file_ = UniqueFd(::memfd_create("log", MFD_CLOEXEC));
        ASSERT_EQ(::ftruncate(log_file_.get(), kCapacity), 0);
        device_ =
            FileDevice::open(fmt::format("/proc/self/fd/{}", log_file_.get()), {Access::ReadWrite})
                .value();
        ASSERT_TRUE(RedoLog::format(*device_, redo_test::kId, redo_test::kStamp));
        loop_ = EventLoop::create(GetParam()).value();
        commit_ = std::make_unique<GroupCommit>(*loop_, redo_test::begin_ok(*device_),
                                                log_file_.get(), places_, late_after);
        for (uint32_t i = 0; i < kFiles; ++i) {
            files_.push_back(std::make_shared<TargetFile>());
            files_.back()->inode = i + 1;
            files_.back()->generation = 7;
        }
    }
    void TearDown() override {
        commit_.reset();
        loop_.reset();
    }
    void turn() { ASSERT_TRUE(loop_->run_once(false)); }
    template <class Condition>
    void run_until(const Condition& condition) {
        while (!condition()) ASSERT_TRUE(loop_->run_once());
    }

    // Flushes end at once meanwhile.
    template <class Condition>
    void flush_until(const Condition& condition) {
        run_until([&] {
            if (places_.flush_done) places_.end_flush();
            return condition();
        });
    }

    // One write of several blocks. Their ranges are held until it is placed, as a target does.
    struct Write {
        uint64_t version = 0;
        std::vector<BlockId> blocks;
        bool placed = false;
        std::optional<Result<>> answer;
    };
    std::shared_ptr<Write> make(std::vector<BlockId> blocks) {
        auto write = std::make_shared<Write>();
        write->version = ++last_version_;
        write->blocks = std::move(blocks);
        for (const BlockId& block : write->blocks) held_.insert(block);
        writes_.push_back(write);
        return write;
    }
    GroupCommit::Item item(const std::shared_ptr<Write>& write, GroupCommit::Need need) {
        GroupCommit::Item item;
        item.need = need;
        data_.push_back(block_of(write->version));
        for (const auto& [inode, number] : write->blocks)
            item.parts.push_back({files_[inode - 1],
                                  {inode, 7, ByteOffset(number * kBlock), Bytes(kBlock), Bytes(0)},
                                  data_.back()});
        item.placed = [this, write] {
            EXPECT_FALSE(write->placed);
            write->placed = true;
            for (const BlockId& block : write->blocks) held_.erase(block);
        };
        item.done = [write](Result<> done) {
            EXPECT_FALSE(write->answer.has_value());
            write->answer = std::move(done);
        };
        return item;
    }
    void begin(const std::shared_ptr<Write>& write, GroupCommit::Need need) {
        run_until([&] { return commit_->ready(); });
        std::vector<GroupCommit::Item> items;
        items.push_back(item(write, need));
        commit_->begin(std::move(items));
    }
    std::shared_ptr<Write> begin_stuck() {
        const auto stuck = make({{1, 0}});
        begin(stuck, GroupCommit::Need::Placed);
        return stuck;
    }
    // The same, late by now.
    std::shared_ptr<Write> stay_late() {
        start(1ms);
        const auto stuck = begin_stuck();
        run_until([&] { return commit_->any_late(); });
        return stuck;
    }
    // A write from beginning to end, whose placement and flush end at once.
    void write_whole(BlockId block, GroupCommit::Need need) {
        run_until([&] { return commit_->has_room(1, Bytes(kBlock)) || (settle(), false); });
        const auto write = make({block});
        begin(write, need);
        flush_until([&] {
            if (const auto one = places_.find(block); one != places_.waiting.end())
                places_.end(one);
            return write->answer.has_value();
        });
        EXPECT_TRUE(*write->answer);
    }
    void settle() {
        commit_->make_room();
        turn();
        if (places_.flush_done) places_.end_flush();
    }

    LogDisk log_as_it_is() const {
        std::vector<std::byte> bytes(kCapacity);
        EXPECT_EQ(::pread(log_file_.get(), bytes.data(), bytes.size(), 0), ssize_t{kCapacity});
        return LogDisk(std::move(bytes));
    }
    // The power is cut: the log as it is, the files as they are flushed and perhaps more.
    Blocks after_cut(bool everything_placed) {
        LogDisk disk = log_as_it_is();
        const auto contents = read_log(disk, redo_test::kId);
        if (!contents) {
            ADD_FAILURE() << contents.error().message;
            return {};
        }
        EXPECT_NE(contents->end, LogEnd::Corrupt) << contents->end_detail;
        Blocks found = places_.durable;
        if (everything_placed)
            for (const auto& [block, version] : places_.placed) found[block] = version;
        for (const LoggedRecord& record : contents->live) {
            const auto payload = read_payload(disk, record).value();
            size_t at = 0;
            for (const RangeRef& range : record.ranges) {
                found[{range.inode, range.offset.value() / kBlock}] =
                    version_of(std::span(payload).subspan(at));
                at += range.length.value();
            }
        }
        return found;
    }
    // What is acknowledged is there, and each write whole or not at all.
    void judge(const Blocks& found) {
        Blocks acknowledged;
        for (const auto& write : writes_)
            if (write->answer)
                for (const BlockId& block : write->blocks)
                    acknowledged[block] = std::max(acknowledged[block], write->version);
        const auto at = [&](const BlockId& block) {
            const auto it = found.find(block);
            return it == found.end() ? 0 : it->second;
        };
        for (const auto& [block, version] : acknowledged)
            ASSERT_GE(at(block), version) << "block " << block.second << " of " << block.first;
        for (const auto& write : writes_) {
            const auto newer = std::ranges::count_if(
                write->blocks, [&](const BlockId& block) { return at(block) >= write->version; });
            ASSERT_TRUE(newer == 0 || newer == std::ssize(write->blocks))
                << "write " << write->version << " is torn";
        }
    }
    void judge() {
        for (const bool everything : {false, true}) judge(after_cut(everything));
    }

    void others_go_on(std::chrono::milliseconds late_after);
    void random_run(uint64_t seed);
    // A new log, new files.
    void again() {
        TearDown();
        device_.reset();
        files_.clear();
        writes_.clear();
        held_.clear();
        data_.clear();
        places_ = {};
    }

    UniqueFd log_file_;
    std::unique_ptr<FileDevice> device_;
    std::unique_ptr<EventLoop> loop_;
    Placements places_;
    std::unique_ptr<GroupCommit> commit_;
    std::vector<FileRef> files_;
    std::list<std::vector<std::byte>> data_;
    std::vector<std::shared_ptr<Write>> writes_;
    std::set<BlockId> held_;
    uint64_t last_version_ = 0;
    size_t late_steps_ = 0;
};

constexpr auto kNever = std::chrono::milliseconds(1000'000);

void GroupCommitTest::others_go_on(std::chrono::milliseconds late_after) {
    start(late_after);
    const auto stuck = begin_stuck();
    // The log is written over many times, with all kinds of acknowledgements.
    for (int i = 0; i < 1000; ++i)
        write_whole({2, static_cast<uint64_t>(i) % kBlocks}, static_cast<GroupCommit::Need>(i % 3));
    EXPECT_FALSE(stuck->placed);
    EXPECT_FALSE(stuck->answer.has_value());
    EXPECT_TRUE(commit_->late(1));
    EXPECT_FALSE(commit_->late(2));
    EXPECT_TRUE(commit_->overlaps_live(1, ByteOffset(0), Bytes(1)));
    EXPECT_FALSE(commit_->idle());
    EXPECT_EQ(after_cut(false)[(BlockId{1, 0})], stuck->version);
    judge();

    places_.end(places_.find({1, 0}));
    EXPECT_TRUE(stuck->placed);
    EXPECT_TRUE(stuck->answer && *stuck->answer);
    EXPECT_FALSE(commit_->any_late());
    bool retired = false;
    commit_->when_retired([&](const Result<>& done) { retired = done.has_value(); });
    flush_until([&] { return retired; });
    EXPECT_FALSE(commit_->overlaps_live(1, ByteOffset(0), Bytes(1)));
    EXPECT_TRUE(commit_->idle());
    judge();
}

TEST_P(GroupCommitTest, ALatePlacementKeepsNobodyWaiting) {
    others_go_on(1ms);
}

TEST_P(GroupCommitTest, TheLogIsFullBeforeItIsLate) {
    others_go_on(200ms);
}

TEST_P(GroupCommitTest, ItIsToldOfEachFileOnce) {
    start(1ms);
    std::vector<uint32_t> told;
    commit_->on_late = [&](uint32_t inode) { told.push_back(inode); };
    begin(make({{1, 0}, {1, 1}, {3, 2}}), GroupCommit::Need::Placed);
    run_until([&] { return commit_->any_late(); });
    EXPECT_THAT(told, ::testing::ElementsAre(1, 3));
}

// Part of a write is placed when it becomes late: only the rest is logged again, and the whole is
// there in every state.
TEST_P(GroupCommitTest, OfABatchOnlyWhatIsLateIsLoggedAgain) {
    start(1ms);
    std::vector<BlockId> blocks{{1, 0}};
    for (uint64_t i = 0; i < 20; ++i) blocks.push_back({2, i});
    const auto batch = make(blocks);
    begin(batch, GroupCommit::Need::Retired);
    run_until([&] { return places_.waiting.size() == blocks.size(); });
    for (uint64_t i = 0; i < 20; ++i) places_.end(places_.find({2, i}));
    run_until([&] { return commit_->any_late(); });
    write_whole({2, 40}, GroupCommit::Need::Retired);
    EXPECT_TRUE(commit_->overlaps_live(1, ByteOffset(0), Bytes(1)));
    EXPECT_FALSE(commit_->overlaps_live(2, ByteOffset(0), Bytes(kBlocks * kBlock)));
    judge();
    EXPECT_FALSE(batch->answer.has_value());
    places_.end(places_.find({1, 0}));
    EXPECT_TRUE(batch->placed);
    EXPECT_FALSE(batch->answer.has_value());
    flush_until([&] { return batch->answer.has_value(); });
    EXPECT_FALSE(commit_->overlaps_live(1, ByteOffset(0), Bytes(1)));
    judge();
}

// Its range stays held until the newer record is durable: else what comes next there would be
// older in the log.
TEST_P(GroupCommitTest, PlacedWhileItIsLoggedAgain) {
    const auto stuck = stay_late();
    // Somebody waits, so it is moved.
    bool retired = false;
    commit_->when_retired([&](const Result<>&) { retired = true; });
    const uint64_t records = commit_->log().last_sequence();
    bool ended = false;
    loop_->defer([&] {
        EXPECT_TRUE(commit_->device_busy()) << "it is being logged";
        EXPECT_EQ(commit_->log().last_sequence(), records);
        places_.end(places_.find({1, 0}));
        EXPECT_FALSE(stuck->placed);
        EXPECT_FALSE(stuck->answer.has_value());
        ended = true;
    });
    run_until([&] { return ended; });
    run_until([&] { return stuck->placed; });
    EXPECT_EQ(commit_->log().last_sequence(), records + 1);
    EXPECT_TRUE(stuck->answer && *stuck->answer);
    EXPECT_TRUE(commit_->overlaps_live(1, ByteOffset(0), Bytes(1)));
    judge();
    flush_until([&] { return retired; });
    judge();
}

TEST_P(GroupCommitTest, MoreThanASixthOfTheLogIsWaitedFor) {
    start(1ms);
    std::vector<BlockId> blocks;
    for (uint64_t i = 0; i < 44; ++i) blocks.push_back({1, i});  // 176 KiB and a header
    begin(make(blocks), GroupCommit::Need::Placed);
    run_until([&] { return places_.waiting.size() == blocks.size(); });
    const auto next = make({{2, 0}});
    begin(next, GroupCommit::Need::Placed);
    run_until([&] { return places_.find({2, 0}) != places_.waiting.end(); });
    places_.end(places_.find({2, 0}));
    EXPECT_TRUE(next->answer.has_value());
    // A second like it may become late.
    begin(make({{3, 0}}), GroupCommit::Need::Placed);
    run_until([&] { return commit_->any_late(); });
    EXPECT_TRUE(commit_->late(3));
    EXPECT_FALSE(commit_->late(1));
    // Some blocks less, and it may, too.
    for (uint64_t i = 0; i < 5; ++i) places_.end(places_.find({1, i}));
    run_until([&] { return commit_->late(1); });
    write_whole({2, 1}, GroupCommit::Need::Retired);
    judge();
}

TEST_P(GroupCommitTest, NobodyWaitsForNothingInDoubt) {
    const auto stuck = stay_late();
    const auto other = make({{2, 0}});
    begin(other, GroupCommit::Need::Retired);
    run_until([&] { return places_.find({2, 0}) != places_.waiting.end(); });
    places_.end(places_.find({2, 0}));
    // By now moved, or not.
    run_until([&] { return commit_->log().last_sequence() == 3 && places_.flush_done; });
    std::exchange(places_.flush_done, nullptr)(fail(EIO, "the disk is gone"));
    ASSERT_TRUE(stuck->answer && other->answer);
    EXPECT_EQ(stuck->answer->error().code, EIO);
    EXPECT_EQ(other->answer->error().code, EIO);
    ASSERT_NE(commit_->poisoned(), nullptr);
    places_.end(places_.find({1, 0}));
}

// Somebody opens the file while its placement waits for a lock.
TEST_P(GroupCommitTest, MadeStrictOnItsWay) {
    const auto stuck = stay_late();
    const auto other = make({{2, 0}});
    begin(other, GroupCommit::Need::Placed);
    commit_->make_strict(1);
    run_until([&] { return places_.waiting.size() == 2; });
    places_.end(places_.find({2, 0}));
    EXPECT_TRUE(other->answer.has_value());
    places_.end(places_.find({1, 0}));
    EXPECT_TRUE(stuck->placed);
    EXPECT_FALSE(stuck->answer.has_value());
    flush_until([&] { return stuck->answer.has_value(); });
    EXPECT_FALSE(commit_->overlaps_live(1, ByteOffset(0), Bytes(1)));
}

// A restart of the daemon alone must not give up the rest: part of it is there.
TEST_P(GroupCommitTest, TheRestOfABatchSaysThatItIsBegun) {
    start(1ms);
    begin(make({{1, 0}, {2, 0}}), GroupCommit::Need::Placed);
    run_until([&] { return places_.waiting.size() == 2; });
    places_.end(places_.find({2, 0}));
    begin(make({{1, 1}}), GroupCommit::Need::Placed);
    run_until([&] { return commit_->late() == 2; });
    write_whole({2, 40}, GroupCommit::Need::Retired);
    LogDisk disk = log_as_it_is();
    const auto contents = read_log(disk, redo_test::kId).value();
    ASSERT_EQ(contents.live.size(), 1u);
    ASSERT_EQ(contents.live[0].ranges.size(), 2u);
    EXPECT_EQ(contents.live[0].ranges[0].operation, 0 | kOperationBegun);
    EXPECT_EQ(contents.live[0].ranges[1].operation, 1u);
}

// The look comes in the same turn as the end of the log write.
TEST_P(GroupCommitTest, NothingIsLateBeforeItsPlacementBegins) {
    start(1000ms);
    begin(make({{1, 0}}), GroupCommit::Need::Placed);
    run_until([&] { return !places_.waiting.empty(); });
    places_.end(places_.find({1, 0}));  // the look, after 500 ms, is still to come
    begin(make({{2, 0}}), GroupCommit::Need::Placed);
    loop_->after_submit([] { std::this_thread::sleep_for(600ms); });
    turn();
    EXPECT_FALSE(commit_->any_late());
    run_until([&] { return !places_.waiting.empty(); });
}

// So many are on their way before the first is found late.
TEST_P(GroupCommitTest, TwoFullGroupsCanBeLate) {
    start(50ms);
    for (uint32_t file = 1; file <= 2; ++file) {
        std::vector<BlockId> blocks;
        for (uint64_t i = 0; i < commit_->group_max().value() / kBlock; ++i)
            blocks.push_back({file, i});
        begin(make(blocks), GroupCommit::Need::Placed);
    }
    run_until([&] { return commit_->late(1) && commit_->late(2); });
    write_whole({3, 1}, GroupCommit::Need::Retired);
    judge();
}

// Once, as by a long write that has none; and the log comes to rest again.
TEST_P(GroupCommitTest, MakingRoomEnds) {
    stay_late();
    for (int i = 0; i < 20; ++i) write_whole({2, 0}, GroupCommit::Need::Placed);
    commit_->make_room();
    flush_until([&] {
        return !commit_->device_busy() && !commit_->overlaps_live(2, ByteOffset(0), Bytes(1));
    });
    const uint64_t records = commit_->log().last_sequence();
    for (int i = 0; i < 100; ++i) turn();
    EXPECT_EQ(commit_->log().last_sequence(), records);
    EXPECT_TRUE(commit_->ready());
}

// Nothing is logged again that nobody waits for.
TEST_P(GroupCommitTest, WithoutNeedNothingMoves) {
    stay_late();
    for (int i = 0; i < 5; ++i) write_whole({2, 0}, GroupCommit::Need::Placed);
    EXPECT_EQ(commit_->log().last_sequence(), 6u);
    write_whole({2, 0}, GroupCommit::Need::Retired);
    EXPECT_EQ(commit_->log().last_sequence(), 8u);
    for (int i = 0; i < 5; ++i) turn();
    EXPECT_EQ(commit_->log().last_sequence(), 8u);
}

void GroupCommitTest::random_run(uint64_t seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    const auto below = [&](size_t n) { return static_cast<size_t>(random() % n); };
    size_t late = 0;
    for (int step = 0; step < 3000; ++step) {
        late += commit_->any_late() ? 1 : 0;
        switch (below(8)) {
            case 0:
            case 1: {
                if (!commit_->ready()) break;
                std::vector<GroupCommit::Item> items;
                size_t parts = 0;
                const size_t count = 1 + below(3);
                for (size_t i = 0; i < count; ++i) {
                    std::set<BlockId> blocks;
                    for (size_t n = 1 + below(6); n > 0; --n) {
                        const BlockId block{static_cast<uint32_t>(1 + below(kFiles)),
                                            below(kBlocks)};
                        if (!held_.contains(block)) blocks.insert(block);
                    }
                    if (blocks.empty()) continue;
                    if (!commit_->has_room(parts + blocks.size(),
                                           Bytes((parts + blocks.size()) * kBlock))) {
                        if (items.empty()) commit_->make_room();
                        break;
                    }
                    parts += blocks.size();
                    items.push_back(item(make({blocks.begin(), blocks.end()}),
                                         static_cast<GroupCommit::Need>(below(3))));
                }
                if (!items.empty()) commit_->begin(std::move(items));
                break;
            }
            case 2:
            case 3:
                // Those of the first file take long.
                for (auto it = places_.waiting.begin(); it != places_.waiting.end(); ++it) {
                    if (below(it->block.first == 1 ? 40 : 2) != 0) continue;
                    places_.end(it);
                    break;
                }
                break;
            case 4:
                if (places_.flush_done) places_.end_flush();
                break;
            case 5:
                if (below(20) == 0) commit_->when_retired([](const Result<>&) {});
                break;
            default:
                turn();
        }
        if (step % 16 == 0) judge();
        if (HasFatalFailure()) return;
    }
    // In the end everything is placed, answered, and retired.
    bool retired = false;
    bool asked = false;
    while (!retired) {
        while (!places_.waiting.empty()) places_.end(places_.waiting.begin());
        if (places_.flush_done) places_.end_flush();
        if (commit_->idle() && !std::exchange(asked, true))
            commit_->when_retired([&](const Result<>& done) { retired = done.has_value(); });
        turn();
    }
    EXPECT_TRUE(commit_->log().empty());
    for (const auto& write : writes_) {
        EXPECT_TRUE(write->placed);
        EXPECT_TRUE(write->answer && *write->answer);
    }
    judge();
    late_steps_ += late;
}

TEST_P(GroupCommitTest, RandomOrdersAndCuts) {
    for (uint64_t seed = 1; seed <= 6; ++seed) {
        start(seed % 3 == 0 ? kNever : seed % 3 == 1 ? 0ms : 2ms);
        random_run(seed);
        if (HasFatalFailure()) return;
        again();
    }
    EXPECT_GT(late_steps_, 500u);
}

INSTANTIATE_TEST_SUITE_P(Backends, GroupCommitTest, both_backends(), backend_name);

}  // namespace
}  // namespace atomic4::test
