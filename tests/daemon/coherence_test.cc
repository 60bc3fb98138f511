// What was acknowledged is seen at once by a program that had the file cached or mapped; and small
// buffered writes of others beside it lose nothing.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <numeric>

#include "support/forked.h"
#include "support/served_volume.h"
#include "support/shared_count.h"
#include "support/stamps.h"

namespace atomic4::test {
namespace {

constexpr size_t kUnits = 256;  // 4 MiB
constexpr size_t kBurst = 16;

// Handed over by turns: the test sets `ask`, the reader answers in `answered`.
struct Desk {
    struct Wish {
        uint64_t unit = 0;
        uint64_t serial = 0;
    };
    SharedCount ask;
    SharedCount answered;
    std::array<Wish, kBurst> wishes;
    std::atomic<uint64_t> looks{0}, stale_buffered{0}, stale_direct{0}, stale_mapped{0};
    std::array<char, 4096> first_stale{};
};

enum class Cached { Sequentially, Randomly, Mapped };

// Another program that has the file cached, and looks where it is told.
int read_along(Desk& desk, const std::string& path, Cached how) {
    const UniqueFd fd = open_path(path, O_RDONLY);
    const UniqueFd direct_fd = open_path(path, O_RDONLY | O_DIRECT);
    const DirectBuffer buffer(kUnit);
    auto* map = static_cast<const std::byte*>(
        how == Cached::Mapped ? ::mmap(nullptr, kUnits * kUnit, PROT_READ, MAP_SHARED, fd.get(), 0)
                              : nullptr);
    std::mt19937_64 random(1);
    uint64_t sum = 0;
    const auto fill_cache = [&] {
        for (size_t i = 0; i < kUnits; ++i) {
            if (how == Cached::Mapped) {
                for (size_t at = 0; at < kUnit; at += 4096)
                    sum += static_cast<uint64_t>(map[i * kUnit + at]);
            } else {
                const size_t unit = how == Cached::Randomly ? random() % kUnits : i;
                if (::pread(fd.get(), buffer.data(), kUnit, static_cast<off_t>(unit * kUnit)) < 0)
                    return;
            }
        }
    };
    if (how == Cached::Randomly) ::posix_fadvise(fd.get(), 0, 0, POSIX_FADV_RANDOM);
    fill_cache();
    for (uint32_t turn = 0;; ++turn) {
        desk.answered.set(turn);
        desk.ask.wait_for(turn + 1);
        const auto check = [&](const Desk::Wish& wish, std::span<const std::byte> bytes,
                               std::atomic<uint64_t>& stale) {
            ++desk.looks;
            const auto is = whole(bytes, wish.unit * kUnit);
            if (is && is->serial == wish.serial) return;
            if (stale++ == 0)
                fmt::format_to_n(desk.first_stale.data(), desk.first_stale.size() - 1,
                                 "unit {} serial {}: {}", wish.unit, wish.serial, describe(bytes));
        };
        for (const Desk::Wish& wish : desk.wishes) {
            const auto at = static_cast<off_t>(wish.unit * kUnit);
            if (map != nullptr) check(wish, {map + at, kUnit}, desk.stale_mapped);
            if (::pread(fd.get(), buffer.data(), kUnit, at) != static_cast<ssize_t>(kUnit))
                return 1;
            check(wish, buffer.span(), desk.stale_buffered);
            if (::pread(direct_fd.get(), buffer.data(), kUnit, at) != static_cast<ssize_t>(kUnit))
                return 1;
            check(wish, buffer.span(), desk.stale_direct);
        }
        // What the write threw out of the cache comes back into it.
        if (turn % 16 == 0) fill_cache();
        if (sum == 1) return 2;  // sum is used
    }
}

class CoherenceTest : public ServedTest, public ::testing::WithParamInterface<Cached> {};

TEST_P(CoherenceTest, AcknowledgedBytesAreSeenAtOnce) {
    serve();
    const uint64_t seed = test_seed();
    std::mt19937_64 random(seed);
    make_file("data", kUnits * kUnit);
    SharedValue<Desk> desk;
    Forked reader([&] { return read_along(*desk, path("data"), GetParam()); });
    const auto client = connect();
    const File file = open_through(*client, path("data"));
    // Looks, by each way of reading; the short form has them in all.
    const uint64_t total = long_form() ? 100'000 : 100'000 / 3 + 1;
    uint64_t serial = 0;
    for (uint32_t turn = 0; desk->looks < total; ++turn) {
        desk->answered.wait_for(turn);
        std::vector<uint64_t> tags;
        std::vector<size_t> units(kUnits);
        std::iota(units.begin(), units.end(), size_t{0});
        // In bursts near each other, so that they share folios, and far from each other.
        if (turn % 2 == 0) std::shuffle(units.begin(), units.end(), random);
        const size_t first = turn % 2 == 0 ? 0 : random() % (kUnits - kBurst);
        for (size_t i = 0; i < kBurst; ++i) {
            const size_t unit = units[first + i];
            desk->wishes[i] = {unit, ++serial};
            tags.push_back(must(client->submit_write(file.handle, ByteOffset(unit * kUnit),
                                                     stamped(kUnit, 1, serial, unit * kUnit))));
        }
        for (size_t answered = 0; answered < kBurst;)
            for (const Completion& done : client->reap(kBurst)) {
                ASSERT_EQ(done.code, 0) << done.reason;
                ++answered;
            }
        desk->ask.set(turn + 1);
    }
    desk->answered.wait_for(desk->ask.value());
    fmt::print("{} looks at acknowledged units\n", desk->looks.load());
    EXPECT_EQ(desk->stale_buffered, 0u) << desk->first_stale.data();
    EXPECT_EQ(desk->stale_direct, 0u) << desk->first_stale.data();
    EXPECT_EQ(desk->stale_mapped, 0u) << desk->first_stale.data();
}

INSTANTIATE_TEST_SUITE_P(Cached, CoherenceTest,
                         ::testing::Values(Cached::Sequentially, Cached::Randomly, Cached::Mapped),
                         [](const auto& param) {
                             return param.param == Cached::Sequentially ? "Sequentially"
                                    : param.param == Cached::Randomly   ? "Randomly"
                                                                        : "Mapped";
                         });

// Someone else writes ten bytes at a time, buffered, into the units between; now and then to disk.
struct Small {
    std::atomic<bool> stop{false};
    std::atomic<uint64_t> writes{0};
    // Of each of its units, how often each place was written: what must be there.
    std::array<std::atomic<uint8_t>, kUnits * 4> last{};
};

int write_small(Small& small, const std::string& path, uint64_t seed) {
    const UniqueFd fd = open_path(path, O_RDWR);
    // Large folios over all of it.
    std::vector<std::byte> all(kUnits * kUnit);
    std::mt19937_64 random(seed);
    while (!small.stop) {
        if (small.writes % 64 == 0 &&
            ::pread(fd.get(), all.data(), all.size(), 0) != static_cast<ssize_t>(all.size()))
            return 1;
        // The odd units are its own: at their edges too.
        const size_t unit = random() % (kUnits / 2) * 2 + 1;
        const size_t place = random() % 4;
        const size_t at = std::array<size_t, 4>{0, 4090, kUnit / 2 + 1, kUnit - 10}[place];
        const uint8_t value = static_cast<uint8_t>(random() % 255 + 1);
        const std::vector<std::byte> bytes(10, std::byte{value});
        if (::pwrite(fd.get(), bytes.data(), 10, static_cast<off_t>(unit * kUnit + at)) != 10)
            return 1;
        small.last[unit * 4 + place] = value;
        ++small.writes;
        if (random() % 32 == 0 && ::fdatasync(fd.get()) != 0) return 1;
    }
    return ::fsync(fd.get()) == 0 ? 0 : 1;
}

class NeighbourTest : public ServedTest {};

TEST_F(NeighbourTest, SmallBufferedWritesBesideLoseNothing) {
    serve();
    const uint64_t seed = test_seed();
    std::mt19937_64 random(seed);
    make_file("data", kUnits * kUnit);
    SharedValue<Small> small;
    Forked other([&] { return write_small(*small, path("data"), seed); });
    const auto client = connect();
    const File file = open_through(*client, path("data"));
    std::vector<uint64_t> serials(kUnits);
    const uint64_t total = long_form() ? 20'000 : 400;
    uint64_t strict = 0;
    for (uint64_t serial = 1; serial <= total; ++serial) {
        const size_t unit = random() % (kUnits / 2) * 2;
        const auto done = client->write(file.handle, ByteOffset(unit * kUnit),
                                        stamped(kUnit, 1, serial, unit * kUnit));
        ASSERT_TRUE(done) << done.error().message;
        strict += done->ack_mode == wire::AckMode::Strict;
        serials[unit] = serial;
        // At random one that was acknowledged earlier, by the cache.
        const size_t look = random() % (kUnits / 2) * 2;
        const auto is = whole(read_path(path("data"), look * kUnit, kUnit), look * kUnit);
        ASSERT_TRUE(is && is->serial == serials[look]) << "unit " << look;
    }
    EXPECT_GT(strict, 0u);
    small->stop = true;
    ASSERT_EQ(other.wait(), 0);
    fmt::print("{} writes, {} strict; {} small ones beside them\n", total, strict,
               small->writes.load());
    // From the disk alone.
    ASSERT_EQ(daemon_->stop(), 0);
    image_->unmount();
    image_->mount();
    const auto bytes = read_path(path("data"), 0, kUnits * kUnit);
    for (size_t unit = 0; unit < kUnits; ++unit) {
        if (unit % 2 == 0) {
            const auto part = std::span(bytes).subspan(unit * kUnit, kUnit);
            const auto is = whole(part, unit * kUnit);
            EXPECT_TRUE(is && is->serial == serials[unit]) << describe(part);
            continue;
        }
        for (size_t place = 0; place < 4; ++place) {
            const size_t at = std::array<size_t, 4>{0, 4090, kUnit / 2 + 1, kUnit - 10}[place];
            const std::vector<std::byte> expected(10,
                                                  std::byte{small->last[unit * 4 + place].load()});
            const auto there = std::span(bytes).subspan(unit * kUnit + at, 10);
            EXPECT_TRUE(std::ranges::equal(there, expected)) << "unit " << unit << " at " << at;
        }
    }
}

}  // namespace
}  // namespace atomic4::test
