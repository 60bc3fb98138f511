// kill -9 of the daemon at random moments, with a record of the acknowledgements outside: what was
// acknowledged is there, all else is all old or all new, batches are whole.
#include <atomic>
#include <mutex>
#include <thread>

#include "support/served_volume.h"
#include "support/shared_count.h"
#include "support/stamps.h"

namespace atomic4::test {
namespace {

constexpr size_t kWriters = 4;
constexpr size_t kUnits = 24;      // of each writer
constexpr size_t kGrowing = 8;     // of them, at the end, in a file of its own that grows
constexpr size_t kPerWriter = 32;  // units of the common file that belong to a writer

class KillTest : public ServedTest {
  protected:
    struct Place {
        std::string file;
        uint64_t offset = 0;
        uint64_t acked = 0;
        std::vector<uint64_t> doubt;  // serials: at most those of one operation in flight
    };
    // Writes its own units, so that it knows what each must hold.
    class Writer;

    void storm(size_t rounds, bool others_open);
    std::atomic<bool> stop_{false};
    SharedCount acks_;
    SharedCount daemons_;  // that were ready
    std::atomic<uint64_t> exclusive_{0}, lost_connections_{0};
};

class KillTest::Writer {
  public:
    Writer(KillTest& test, size_t id, uint64_t seed) : test_(test), id_(id), random_(seed + id) {
        for (size_t i = 0; i < kUnits; ++i) {
            Place place;
            const bool grows = i >= kUnits - kGrowing;
            place.file = test.path(grows ? fmt::format("grow{}", id) : "common");
            // Neighbours in the common file belong to other writers.
            place.offset = (grows ? i - (kUnits - kGrowing) : i * kWriters + id) * kUnit;
            places_.push_back(place);
        }
    }

    void run() {
        while (!test_.stop_ && wrong.empty()) {
            const uint32_t daemon = test_.daemons_.value();
            try {
                session();
            } catch (const std::exception& lost) {
                // The daemon died: at connect, at open, or under a write. There will be another.
                ++test_.lost_connections_;
                test_.daemons_.wait_for(daemon + 1,
                                        std::chrono::steady_clock::now() + std::chrono::seconds(1));
            }
        }
    }
    // By the kernel, buffered or direct. Afterwards nothing is in doubt.
    void verify(int flags) {
        for (Place& place : places_) {
            auto bytes = read_path(place.file, place.offset, kUnit, flags);
            const bool beyond = bytes.empty();
            bytes.resize(kUnit);
            const auto is = whole(bytes, place.offset);
            const uint64_t serial = is ? is->serial : 0;
            const bool good =
                is && (is->writer == id_ + 1 || (serial == 0 && is->writer == 0)) &&
                (serial == place.acked || std::ranges::count(place.doubt, serial) > 0);
            if (!good) {
                complain(place, bytes, beyond);
                return;
            }
        }
        // A batch is there everywhere or nowhere.
        for (const auto& batch : batches_in_doubt_) {
            size_t there = 0;
            for (const size_t i : batch.places) {
                auto bytes = read_path(places_[i].file, places_[i].offset, kUnit, flags);
                bytes.resize(kUnit);
                const auto is = whole(bytes, places_[i].offset);
                there += is && is->serial >= batch.serial;
            }
            if (there != 0 && there != batch.places.size())
                wrong = fmt::format("batch {}.{} is there in {} of {} places", id_ + 1,
                                    batch.serial, there, batch.places.size());
        }
    }
    void settle() {
        for (Place& place : places_) {
            auto bytes = read_path(place.file, place.offset, kUnit);
            bytes.resize(kUnit);
            const auto is = whole(bytes, place.offset);
            place.acked = is ? is->serial : 0;
            place.doubt.clear();
        }
        batches_in_doubt_.clear();
    }

    std::string wrong;

  private:
    struct Flying {
        uint64_t tag = 0;
        uint64_t serial = 0;
        std::vector<size_t> places;
    };

    void complain(const Place& place, std::span<const std::byte> bytes, bool beyond) {
        wrong =
            fmt::format("writer {}: {} at {}: acknowledged {}, in doubt {}; there is {}{}", id_ + 1,
                        place.file, place.offset, place.acked, fmt::join(place.doubt, ","),
                        beyond ? "nothing: " : "", describe(bytes));
    }

    // Until the connection is lost or the test stops.
    void session() {
        const auto client = test_.connect({.arena = id_ % 2 ? Bytes(4 * kMiB) : Bytes(0)});
        const File common = open_through(*client, test_.path("common"));
        const File grows = open_through(*client, test_.path(fmt::format("grow{}", id_)));
        // The daemon serves: what was in doubt is decided.
        verify(random_() % 2 ? O_DIRECT : 0);
        if (!wrong.empty()) return;
        settle();
        const size_t depth = 1 + random_() % 4;
        std::vector<Flying> flying;
        std::vector<bool> busy(kUnits);
        while (!test_.stop_) {
            while (flying.size() < depth) {
                Flying next;
                next.serial = ++serial_;
                const size_t n = random_() % 3 == 0 ? 2 + random_() % 3 : 1;
                for (size_t i = 0; i < n; ++i) {
                    const size_t at = random_() % kUnits;
                    if (!busy[at]) next.places.push_back(at);
                    busy[at] = true;
                }
                if (next.places.empty()) continue;
                std::vector<std::vector<std::byte>> data;
                std::vector<BatchPart> parts;
                for (const size_t i : next.places) {
                    Place& place = places_[i];
                    place.doubt.push_back(next.serial);
                    data.push_back(stamped(kUnit, id_ + 1, next.serial, place.offset));
                }
                for (size_t i = 0; i < next.places.size(); ++i) {
                    const size_t at = next.places[i];
                    parts.push_back({at >= kUnits - kGrowing ? grows.handle : common.handle,
                                     ByteOffset(places_[at].offset), data[i]});
                }
                if (parts.size() > 1) batches_in_doubt_.push_back({0, next.serial, next.places});
                next.tag =
                    must(parts.size() == 1
                             ? client->submit_write(parts[0].handle, parts[0].offset, parts[0].data)
                             : client->submit_batch(parts));
                flying.push_back(next);
            }
            for (const Completion& done : client->reap(8)) {
                const auto found = std::ranges::find(flying, done.tag, &Flying::tag);
                if (found == flying.end()) throw std::runtime_error("an answer to nothing");
                if (done.code != 0) throw std::runtime_error(done.reason);
                test_.acks_.add();
                if (done.written.ack_mode == wire::AckMode::Exclusive) ++test_.exclusive_;
                for (const size_t i : found->places) {
                    places_[i].acked = found->serial;
                    places_[i].doubt.clear();
                    busy[i] = false;
                }
                std::erase_if(batches_in_doubt_,
                              [&](const Flying& batch) { return batch.serial == found->serial; });
                flying.erase(found);
            }
        }
        // In an orderly end everything is answered.
        while (!flying.empty()) {
            for (const Completion& done : client->reap(8)) {
                const auto found = std::ranges::find(flying, done.tag, &Flying::tag);
                if (done.code != 0) throw std::runtime_error(done.reason);
                for (const size_t i : found->places) {
                    places_[i].acked = found->serial;
                    places_[i].doubt.clear();
                }
                std::erase_if(batches_in_doubt_,
                              [&](const Flying& batch) { return batch.serial == found->serial; });
                flying.erase(found);
            }
        }
    }

    KillTest& test_;
    size_t id_;
    std::mt19937_64 random_;
    std::vector<Place> places_;
    std::vector<Flying> batches_in_doubt_;
    uint64_t serial_ = 0;
};

void KillTest::storm(size_t rounds, bool others_open) {
    const uint64_t seed = test_seed();
    std::mt19937_64 random(seed);
    make_file("common", kUnits * kWriters * kUnit);
    for (size_t id = 0; id < kWriters; ++id)
        open_path(path(fmt::format("grow{}", id)), O_RDWR | O_CREAT);
    // Somebody has it open for writing all the time: strict.
    UniqueFd other = others_open ? open_path(path("common"), O_RDWR) : UniqueFd();
    std::vector<std::unique_ptr<Writer>> writers;
    for (size_t id = 0; id < kWriters; ++id)
        writers.push_back(std::make_unique<Writer>(*this, id, seed));
    size_t worker_kills = 0, all_kills = 0;
    {
        std::vector<std::jthread> threads;
        for (const auto& writer : writers) threads.emplace_back([&writer] { writer->run(); });
        const auto stop = [&] { stop_ = true; };
        struct AtEnd {
            std::function<void()> call;
            ~AtEnd() { call(); }
        } at_end{stop};
        size_t of_this_keeper = 0;
        for (size_t round = 0; round < rounds; ++round) {
            // A random moment: when some have been acknowledged, and a while later.
            const auto enough = static_cast<uint32_t>(acks_.value() + random() % 48);
            acks_.wait_for(enough, std::chrono::steady_clock::now() + std::chrono::seconds(1));
            std::this_thread::sleep_for(std::chrono::microseconds(random() % 1000));
            // A keeper gives up after five deaths in ten seconds.
            if (of_this_keeper == 5 || random() % 6 == 0) {
                daemon_->kill_all();
                daemon_->start();
                daemons_.add();
                of_this_keeper = 0;
                ++all_kills;
            } else {
                daemon_->kill_worker();
                daemon_->wait_ready();
                daemons_.add();
                ++of_this_keeper;
                ++worker_kills;
            }
            if (std::ranges::any_of(writers, [](const auto& w) { return !w->wrong.empty(); }))
                break;
        }
    }
    for (const auto& writer : writers) {
        EXPECT_EQ(writer->wrong, "");
        writer->verify(O_DIRECT);
        EXPECT_EQ(writer->wrong, "");
    }
    fmt::print(
        "{} worker and {} whole kills, {} acknowledged ({} exclusive), {} connections lost\n",
        worker_kills, all_kills, acks_.value(), exclusive_.load(), lost_connections_.load());
    EXPECT_GT(acks_.value(), rounds);
    if (others_open)
        EXPECT_LT(exclusive_.load(), acks_.value());
    else
        EXPECT_GT(exclusive_.load(), 0u);
    other.reset();
    stop_and_check();
}

TEST_F(KillTest, AcknowledgedWritesSurviveAndNothingIsTorn) {
    serve();
    storm(long_form() ? 2000 : 100, false);
}

TEST_F(KillTest, AlsoWhileAnotherHasTheFileOpen) {
    serve();
    storm(long_form() ? 500 : 30, true);
}

TEST_F(KillTest, AlsoWithASmallLogWithoutUring) {
    Volume volume;
    volume.log = 512 * kKiB;  // wraps all the time
    volume.daemon = {"--backend", "syscalls"};
    serve(volume);
    storm(long_form() ? 500 : 30, false);
}

}  // namespace
}  // namespace atomic4::test
