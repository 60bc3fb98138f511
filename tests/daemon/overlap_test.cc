// Sixteen clients write the same 16 KiB units, and larger ranges and batches over them: the result
// is that of some order, never a mixture; also for who reads meanwhile through the daemon, and
// where space runs out (after xfstests ext4/061 and 062).
#include <atomic>
#include <thread>

#include "support/served_volume.h"
#include "support/stamps.h"

namespace atomic4::test {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kUnits = 8;
constexpr size_t kClients = 16;

class OverlapTest : public ServedTest {
  protected:
    // What is known of a unit's writes: nothing that was answered before `newest` was sent can be
    // what is read at the end.
    struct Unit {
        std::atomic<int64_t> newest{0};
    };
    struct Sent {
        int64_t begun = 0;
        int64_t answered = 0;
    };
    // A client's writes by serial.
    struct Log {
        std::vector<Sent> sent;
        uint64_t read = 0;
        uint64_t no_space = 0;
        std::string wrong;
    };

    static int64_t now() { return Clock::now().time_since_epoch().count(); }
    void write_for(std::chrono::milliseconds time, uint64_t seed, size_t id, Log& log);
    // The file is there.
    void run(const char* name, std::chrono::milliseconds time);
    // All space but this is taken.
    void fill_volume(uint64_t left);

    std::string file_;
    std::array<Unit, kUnits> units_;
    bool space_runs_out_ = false;
    uint64_t no_space_ = 0;
};

void OverlapTest::write_for(std::chrono::milliseconds time, uint64_t seed, size_t id, Log& log) {
    std::mt19937_64 random(seed + id);
    const auto client = connect({.arena = id % 2 == 0 ? Bytes(0) : Bytes(16 * kMiB)});
    const auto engine = id % 3 == 0 ? wire::WireEngine::Logged : wire::WireEngine::Auto;
    const File file = open_through(*client, file_, wire::kOpenRead | wire::kOpenWrite, engine);
    struct InFlight {
        uint64_t tag;
        uint64_t serial;
        std::vector<size_t> units;
    };
    std::vector<InFlight> flying;
    const auto end = Clock::now() + time;
    while (log.wrong.empty() && (Clock::now() < end || !flying.empty())) {
        while (Clock::now() < end && flying.size() < 4) {
            const uint64_t serial = log.sent.size() + 1;
            std::vector<size_t> touched;
            const size_t first = random() % kUnits;
            Result<uint64_t> tag = uint64_t{0};
            log.sent.push_back({now(), 0});
            if (random() % 4 != 0) {
                // One unit, or an aligned run of 2 or 4.
                const size_t n = size_t{1} << (random() % 8 == 0 ? 1 + random() % 2 : 0);
                const size_t begin = first / n * n;
                for (size_t i = 0; i < n; ++i) touched.push_back(begin + i);
                tag = client->submit_write(file.handle, ByteOffset(begin * kUnit),
                                           stamped(n * kUnit, id + 1, serial, begin * kUnit));
            } else {
                touched = {first, (first + 1 + random() % (kUnits - 1)) % kUnits};
                std::vector<std::vector<std::byte>> data;
                std::vector<BatchPart> parts;
                for (const size_t unit : touched)
                    data.push_back(stamped(kUnit, id + 1, serial, unit * kUnit));
                for (size_t i = 0; i < 2; ++i)
                    parts.push_back({file.handle, ByteOffset(touched[i] * kUnit), data[i]});
                tag = client->submit_batch(parts);
            }
            flying.push_back({must(tag), serial, touched});
        }
        if (random() % 8 == 0) {
            const size_t unit = random() % kUnits;
            std::vector<std::byte> bytes(kUnit);
            must(client->read(file.handle, ByteOffset(unit * kUnit), bytes));
            ++log.read;
            if (!whole(bytes, unit * kUnit))
                log.wrong = fmt::format("read a mixture in unit {}: {}", unit, describe(bytes));
        }
        for (const Completion& done : client->reap(16)) {
            const int64_t at = now();
            const auto found = std::ranges::find(flying, done.tag, &InFlight::tag);
            if (space_runs_out_ && done.code == ENOSPC && found != flying.end()) {
                // Nothing of it may be found: it isn't answered.
                ++log.no_space;
                flying.erase(found);
                continue;
            }
            if (done.code != 0 || found == flying.end()) {
                log.wrong = "a write failed: " + done.reason;
                continue;
            }
            Sent& sent = log.sent[found->serial - 1];
            sent.answered = at;
            for (const size_t unit : found->units) {
                int64_t newest = units_[unit].newest;
                while (newest < sent.begun &&
                       !units_[unit].newest.compare_exchange_weak(newest, sent.begun)) {
                }
            }
            flying.erase(found);
        }
    }
}

void OverlapTest::run(const char* name, std::chrono::milliseconds time) {
    const uint64_t seed = test_seed();
    file_ = path(name);
    std::vector<Log> logs(kClients);
    {
        std::vector<std::jthread> threads;
        for (size_t id = 0; id < kClients; ++id)
            threads.emplace_back([&, id] {
                try {
                    write_for(time, seed, id, logs[id]);
                } catch (const std::exception& error) {
                    logs[id].wrong = error.what();
                }
            });
    }
    uint64_t writes = 0, reads = 0;
    for (const Log& log : logs) {
        EXPECT_EQ(log.wrong, "");
        writes += log.sent.size();
        reads += log.read;
        no_space_ += log.no_space;
    }
    fmt::print("{} overlapping writes, {} without space, {} reads among them\n", writes, no_space_,
               reads);
    for (const int flags : {0, O_DIRECT}) {
        const auto bytes = read_path(file_, 0, kUnits * kUnit, flags);
        for (size_t unit = 0; unit < kUnits; ++unit) {
            const auto part = std::span(bytes).subspan(unit * kUnit, kUnit);
            const auto last = whole(part, unit * kUnit);
            ASSERT_TRUE(last) << "unit " << unit << " is a mixture: " << describe(part);
            if (last->writer == 0) {
                EXPECT_EQ(units_[unit].newest, 0) << "unit " << unit << " is empty";
                continue;
            }
            ASSERT_LE(last->writer, kClients);
            const Sent& sent = logs[last->writer - 1].sent.at(last->serial - 1);
            EXPECT_GE(sent.answered, units_[unit].newest)
                << "unit " << unit << " has bytes that were overwritten later";
        }
    }
}

void OverlapTest::fill_volume(uint64_t left) {
    const UniqueFd filler = open_path(path("filler"), O_RDWR | O_CREAT);
    uint64_t size = 0;
    for (uint64_t step = kMiB; step >= 4096; step /= 2)
        while (::fallocate(filler.get(), 0, static_cast<off_t>(size), static_cast<off_t>(step)) ==
               0)
            size += step;
    ASSERT_EQ(errno, ENOSPC);
    ASSERT_EQ(::ftruncate(filler.get(), static_cast<off_t>(size - left)), 0);
    ASSERT_EQ(::fsync(filler.get()), 0);
}

TEST_F(OverlapTest, EveryUnitEndsAsOneWritersBytes) {
    serve();
    make_file("data", kUnits * kUnit);
    run("data", long_form() ? std::chrono::seconds(60) : std::chrono::seconds(20));
    stop_and_check();
}

TEST_F(OverlapTest, WithoutUringToo) {
    Volume volume;
    volume.daemon = {"--backend", "syscalls"};
    serve(volume);
    make_file("data", kUnits * kUnit);
    run("data", long_form() ? std::chrono::seconds(30) : std::chrono::seconds(2));
    stop_and_check();
}

// The file is a hole, and there is space for half of it; somebody takes some and gives it back.
TEST_F(OverlapTest, OnAVolumeThatIsNearlyFull) {
    Volume volume;
    volume.size = 24 * kMiB;
    volume.log = 2 * kMiB;
    serve(volume);
    {
        const UniqueFd fd = open_path(path("data"), O_RDWR | O_CREAT);
        ASSERT_EQ(::ftruncate(fd.get(), static_cast<off_t>(kUnits * kUnit)), 0);
        ASSERT_EQ(::fsync(fd.get()), 0);
    }
    {
        const UniqueFd churn = open_path(path("churn"), O_RDWR | O_CREAT);
        fill_volume(kUnits / 2 * kUnit);
        space_runs_out_ = true;
        std::jthread other([&](const std::stop_token& stop) {
            while (!stop.stop_requested()) {
                (void)::fallocate(churn.get(), 0, 0, 2 * kUnit);
                (void)::fsync(churn.get());
                (void)::ftruncate(churn.get(), 0);
                (void)::fsync(churn.get());
            }
        });
        run("data", long_form() ? std::chrono::seconds(30) : std::chrono::seconds(4));
    }
    EXPECT_GT(no_space_, 0u);
    EXPECT_TRUE(std::ranges::any_of(units_, [](const Unit& unit) { return unit.newest > 0; }));
    stop_and_check();
}

}  // namespace
}  // namespace atomic4::test
