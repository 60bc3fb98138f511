// Random sessions against a model of what must be live.
//
// Before each write of the log, the power fails in every possible way that a prefix of sectors
// describes, and in some random ones: what read_log finds in each of these images must be what the
// model says, exactly when the write was complete and not otherwise. Now and then the power really
// fails, and the run goes on from a torn image through replay and a new session.
//
// ATOMIC4_TEST_SEED runs one seed.
#include <cstdlib>
#include <iostream>
#include <map>
#include <random>

#include "redo_fixture.h"

namespace atomic4::redo_test {
namespace {

struct ModelRecord {
    std::vector<RangeRef> ranges;
    uint64_t tag;
};

class Model {
  public:
    Model(uint64_t seed, uint64_t size) : random_(seed), disk_(size) {
        check(RedoLog::format(disk_, kId, kStamp));
        disk_.on_write = [this](ByteOffset at, std::span<const std::byte> data) {
            before_write(at.value(), data);
        };
        begin();
    }

    void step() {
        ++step_;
        // Which of the operation's writes the power fails in.
        if (below(10) == 0) crash_in_ = 1 + below(2);
        const uint64_t dice = below(100);
        if (dice < 55) {
            append_some();
        } else if (dice < 75) {
            note(noted_ + below(log_->last_sequence() + 1 - noted_));
        } else if (dice < 95) {
            persist();
        } else {
            note(log_->last_sequence());
            persist();
            if (!crashed_) close();
        }
        if (crashed_) recover();
        crash_in_ = 0;
        verify(disk_.image);
    }

    uint64_t images() const { return images_; }
    uint64_t laps() const { return laps_; }
    uint64_t crashes() const { return crashes_; }

  private:
    enum class Doing { Append, Persist, Empty };

    uint64_t below(uint64_t n) { return random_() % n; }
    std::string where() const { return fmt::format("step {}, image {}", step_, images_); }

    template <class T>
    void check(const T& result) {
        ASSERT_TRUE(result.has_value()) << where() << ": " << result.error().message;
    }

    std::vector<RangeRef> some_ranges() {
        std::vector<RangeRef> ranges;
        const uint64_t count = below(20) == 0 ? 1 + below(200) : 1 + below(3);
        for (uint64_t i = 0; i < count; ++i) {
            const uint64_t length = count > 3 ? 1 + below(64) : 1 + below(6000);
            ranges.push_back(range(static_cast<uint32_t>(1 + below(5)), below(1 << 20), length,
                                   below(2) * below(1 << 20)));
            ranges.back().operation = static_cast<uint32_t>(below(count));
        }
        return ranges;
    }

    void start(Doing doing) {
        doing_ = doing;
        first_write_ = true;
    }

    // Has the operation done what it should, or has the power failed in it?
    template <class T>
    bool done(const T& result) {
        if (!crashed_) check(result);
        return result.has_value();
    }

    void note(uint64_t sequence) {
        noted_ = sequence;
        log_->note_retired(noted_);
    }

    void append_some() {
        pending_ = {some_ranges(), random_()};
        const bool room = log_->has_room(pending_.ranges);
        start(Doing::Append);
        const auto appended = append(*log_, pending_.ranges, pending_.tag);
        if (!room) {
            ASSERT_FALSE(appended.has_value()) << where();
            ASSERT_EQ(appended.error().code, EAGAIN) << where();
            return;
        }
        if (!done(appended)) return;
        durable_ = noted_;
        ASSERT_GT(appended->sequence, last_) << where();
        last_ = appended->sequence;
        live_[last_] = pending_;
    }

    void persist() {
        start(Doing::Persist);
        if (done(log_->persist_retired())) durable_ = noted_;
        std::erase_if(live_, [this](const auto& entry) { return entry.first <= durable_; });
    }

    void close() {
        start(Doing::Empty);
        if (done(log_->close())) begin();
    }

    void begin() {
        start(Doing::Empty);
        auto log = RedoLog::begin(disk_, read_ok(disk_), kStamp);
        if (!done(log)) return;
        log_ = *std::move(log);
        live_.clear();
        noted_ = durable_ = last_ = log_->last_sequence();
    }

    // After a power failure: what a replay would apply becomes the model's truth (that it is right
    // was verified while the write was under way), then the log is emptied.
    void recover() {
        crashed_ = false;
        crash_in_ = 0;
        disk_.fail_after.reset();
        const LogContents contents = read_ok(disk_);
        live_.clear();
        for (const LoggedRecord& record : contents.live) live_[record.sequence] = ModelRecord{};
        durable_ = noted_ = contents.retired;
        start(Doing::Empty);
        check(reset_log(disk_, contents, kStamp));
        live_.clear();
        begin();
        ++crashes_;
    }

    void before_write(uint64_t at, std::span<const std::byte> data) {
        if (crashed_) return;
        if (at == kFirstRecord.value()) ++laps_;
        Image image = disk_.image;
        const auto verify_image = [&] {
            during(at, data, std::memcmp(&image[at], data.data(), data.size()) == 0);
            verify(image);
        };
        for (uint64_t cut = 0; cut <= data.size(); cut += kSector) {
            std::memcpy(&image[at], data.data(), cut);
            verify_image();
        }
        for (int i = 0; i < 3; ++i) {
            image = disk_.image;
            mix(image, at, data);
            verify_image();
        }
        at_rest();
        first_write_ = false;
        if (crash_in_ != 0 && --crash_in_ == 0) {
            crashed_ = true;
            mix(disk_.image, at, data);
            disk_.fail_after = disk_.writes.size();
        }
    }

    // Some of the sectors; of a superblock, whose first sector says all, also a part of that.
    void mix(Image& image, uint64_t at, std::span<const std::byte> data) {
        if (at < kFirstRecord.value() && below(2) == 0) {
            std::memcpy(&image[at], data.data(), 0x0c + below(0x50));
            return;
        }
        const uint64_t odds = 1 + below(4);
        for (uint64_t sector = 0; sector < data.size(); sector += kSector)
            if (below(odds + 1) != 0) std::memcpy(&image[at + sector], &data[sector], kSector);
    }

    // What must be found while a write of the current operation is under way.
    void during(uint64_t at, std::span<const std::byte> data, bool complete) {
        at_rest();
        superblock_write_ = at < kFirstRecord.value();
        // The first write of several decides: of two superblocks, or of a pad and its record.
        if (!complete && first_write_) return;
        if (doing_ == Doing::Empty)
            emptied_ = true;
        else
            retired_by_write_ = noted_;
        RecordHeader header;
        std::memcpy(&header, data.data(), sizeof header);
        if (doing_ == Doing::Append && complete && header.type == kRecordData)
            extra_ = header.sequence;
        ASSERT_EQ(at < kFirstRecord.value(), doing_ != Doing::Append);
    }
    void at_rest() {
        extra_ = retired_by_write_ = 0;
        emptied_ = false;
        superblock_write_ = false;
    }

    void verify(const Image& image) {
        ++images_;
        LogDisk copy(image);
        // Either superblock may rot: both say the same, except while they are being written.
        if (!superblock_write_ && below(4) == 0)
            copy.flip(kSuperblockPosition[below(2)].value() + below(0x60));
        const auto contents = read_log(copy, kId);
        ASSERT_TRUE(contents.has_value()) << where() << ": " << contents.error().message;
        ASSERT_NE(contents->end, LogEnd::Corrupt) << where() << ": " << contents->end_detail;
        Seqs expected;
        for (const auto& [sequence, record] : live_)
            if (!emptied_ && sequence > std::max(durable_, retired_by_write_))
                expected.push_back(sequence);
        if (extra_ != 0) expected.push_back(extra_);
        ASSERT_EQ(sequences(*contents), expected) << where();
        for (const LoggedRecord& found : contents->live) {
            const ModelRecord& record = found.sequence == extra_ ? pending_ : live_[found.sequence];
            if (record.ranges.empty()) continue;  // taken over in recover()
            ASSERT_EQ(found.ranges, record.ranges) << where();
            if (below(8) == 0) verify_payload(copy, found, record);
        }
    }

    void verify_payload(LogDisk& disk, const LoggedRecord& found, const ModelRecord& record) {
        Image expected;
        for (size_t i = 0; i < record.ranges.size(); ++i) {
            const Image bytes = pattern(record.ranges[i].length.value(), record.tag + i);
            expected.insert(expected.end(), bytes.begin(), bytes.end());
        }
        const auto payload = read_payload(disk, found);
        ASSERT_TRUE(payload.has_value()) << where();
        ASSERT_EQ(*payload, expected) << where();
    }

    std::mt19937_64 random_;
    LogDisk disk_;
    std::unique_ptr<RedoLog> log_;
    std::map<uint64_t, ModelRecord> live_;  // acknowledged in this session; retired ones stay
    ModelRecord pending_;
    uint64_t noted_ = 0, durable_ = 0, last_ = 0;

    Doing doing_ = Doing::Empty;
    bool first_write_ = true;
    uint64_t crash_in_ = 0;  // writes until the power fails; 0: it doesn't
    bool crashed_ = false;

    // What the write under way changes, if it counts.
    uint64_t extra_ = 0;  // the sequence of the record that it completes
    uint64_t retired_by_write_ = 0;
    bool emptied_ = false;
    bool superblock_write_ = false;

    uint64_t step_ = 0, images_ = 0, laps_ = 0, crashes_ = 0;
};

void run(uint64_t seed, uint64_t size, int steps) {
    SCOPED_TRACE(fmt::format("ATOMIC4_TEST_SEED={} log of {} bytes", seed, size));
    Model model(seed, size);
    for (int i = 0; i < steps && !testing::Test::HasFatalFailure(); ++i) model.step();
    std::cout << fmt::format("seed {}: {} steps, {} images, {} laps, {} crashes\n", seed, steps,
                             model.images(), model.laps(), model.crashes());
    EXPECT_GT(model.laps(), 10u);
    EXPECT_GT(model.crashes(), 10u);
}

TEST(RedoModel, EveryTornWriteReadsAsTheModelSays) {
    if (const char* seed = std::getenv("ATOMIC4_TEST_SEED"))
        return run(std::strtoull(seed, nullptr, 10), 64 * 1024, 10000);
    run(1, 64 * 1024, 1500);
    run(2, 96 * 1024, 1500);
    run(std::random_device{}(), 64 * 1024, 1500);
}

}  // namespace
}  // namespace atomic4::redo_test
