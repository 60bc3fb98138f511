// Others at work: programs that know nothing of the daemon write other units of the same file,
// truncate, rename, unlink and defragment, while clients write, and while the daemon is killed.
// Nobody's acknowledged or synchronised bytes are lost: each checks its own units before it writes
// them again, and in the end the disk is asked.
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "support/forked.h"
#include "support/served_volume.h"
#include "support/stamps.h"

namespace atomic4::test {
namespace {

using Clock = std::chrono::steady_clock;

// Unit i of the common file belongs to owner i % kOwners; behind them is the truncater's area.
enum Owner : size_t { Client0, Client1, Buffered, Direct, Mapped, kOwners };
constexpr size_t kRows = 20;
constexpr size_t kUnits = kRows * kOwners;
constexpr uint64_t kTail = kUnits * kUnit;

struct Board {
    std::atomic<bool> stop{false};
    // What each unit must hold: the serial of the last write that was acknowledged or synchronised.
    std::array<std::atomic<uint64_t>, kUnits> last{};
    std::array<std::atomic<uint64_t>, kOwners> writes{};
    std::atomic<uint64_t> truncations{0}, moves{0}, defragmentations{0};
    std::array<char, 2048> wrong{};

    void complain(const std::string& words) {
        if (wrong[0] == '\0') fmt::format_to_n(wrong.data(), wrong.size() - 1, "{}", words);
    }
};

bool right(Board& board, size_t unit, std::span<const std::byte> bytes, const char* who) {
    const auto is = whole(bytes, unit * kUnit);
    const uint64_t serial = board.last[unit];
    if (is && is->serial == serial) return true;
    board.complain(fmt::format("{}: unit {} has lost {}: {}", who, unit, serial, describe(bytes)));
    return false;
}

size_t pick(std::mt19937_64& random, size_t owner) {
    return random() % kRows * kOwners + owner;
}

// Buffered with fsync, or O_DIRECT with fdatasync.
int write_plainly(Board& board, const std::string& path, size_t owner, uint64_t seed) {
    std::mt19937_64 random(seed + owner);
    const UniqueFd fd = open_path(path, O_RDWR | (owner == Direct ? O_DIRECT : 0));
    const DirectBuffer buffer(kUnit);
    for (uint64_t serial = 1; !board.stop; ++serial) {
        const size_t unit = pick(random, owner);
        const auto at = static_cast<off_t>(unit * kUnit);
        if (::pread(fd.get(), buffer.data(), kUnit, at) != static_cast<ssize_t>(kUnit)) return 1;
        if (!right(board, unit, buffer.span(), owner == Direct ? "direct" : "buffered")) return 2;
        stamp(buffer.span(), owner + 1, serial, unit * kUnit);
        // In two halves: folios are dirty in part.
        for (const uint64_t half : {uint64_t{0}, kUnit / 2})
            if (::pwrite(fd.get(), buffer.data() + half, kUnit / 2,
                         at + static_cast<off_t>(half)) != static_cast<ssize_t>(kUnit / 2)) {
                board.complain(fmt::format("writing: {}", std::strerror(errno)));
                return 3;
            }
        if ((owner == Direct ? ::fdatasync(fd.get()) : ::fsync(fd.get())) != 0) {
            board.complain(fmt::format("fsync: {}", std::strerror(errno)));
            return 4;
        }
        board.last[unit] = serial;
        ++board.writes[owner];
    }
    return 0;
}

int write_mapped(Board& board, const std::string& path, uint64_t seed) {
    std::mt19937_64 random(seed + Mapped);
    const UniqueFd fd = open_path(path, O_RDWR);
    void* const map = ::mmap(nullptr, kTail, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
    if (map == MAP_FAILED) return 1;
    auto* const bytes = static_cast<std::byte*>(map);
    for (uint64_t serial = 1; !board.stop; ++serial) {
        const size_t unit = pick(random, Mapped);
        const std::span<std::byte> here(bytes + unit * kUnit, kUnit);
        if (!right(board, unit, here, "mapped")) return 2;
        stamp(here, Mapped + 1, serial, unit * kUnit);
        if (::msync(here.data(), kUnit, MS_SYNC) != 0) {
            board.complain(fmt::format("msync: {}", std::strerror(errno)));
            return 3;
        }
        board.last[unit] = serial;
        ++board.writes[Mapped];
    }
    return 0;
}

// Shortens and lengthens the file behind everybody's units.
int truncate_tail(Board& board, const std::string& path, uint64_t seed) {
    std::mt19937_64 random(seed + 100);
    for (; !board.stop; ++board.truncations) {
        const auto size = static_cast<off_t>(kTail + random() % (16 * kUnit));
        if (random() % 2 != 0) {
            if (::truncate(path.c_str(), size) != 0) return 1;
        } else {
            const UniqueFd fd = open_path(path, O_WRONLY);
            if (::ftruncate(fd.get(), size) != 0) return 1;
            if (::pwrite(fd.get(), "tail", 4, size) != 4) return 1;
        }
        ::usleep(1000);
    }
    return 0;
}

// "moving" goes from name to name; what is called doomed loses its name.
int move_and_unlink(Board& board, const std::string& directory) {
    for (; !board.stop; ++board.moves) {
        const std::string one = directory + "/moving", two = directory + "/moved";
        if (::rename(one.c_str(), two.c_str()) != 0 || ::rename(two.c_str(), one.c_str()) != 0)
            return 1;
        for (const char* doomed : {"/doomed0", "/doomed1"}) ::unlink((directory + doomed).c_str());
        ::usleep(1000);
    }
    return 0;
}

// EXT4_IOC_MOVE_EXT of ext4(5), which e4defrag uses; no header of the kernel's exports it.
struct MoveExtent {
    uint32_t reserved;
    uint32_t donor_fd;
    uint64_t orig_start;
    uint64_t donor_start;
    uint64_t length;
    uint64_t moved;
};
constexpr unsigned long kMoveExtent = _IOWR('f', 15, MoveExtent);

// e4defrag leaves alone what is contiguous, so the blocks are also moved to a donor's and back.
int defragment(Board& board, const std::string& path) {
    const std::string donor_path = path + ".donor";
    while (!board.stop) {
        run_command({"e4defrag", path});
        const UniqueFd fd = open_path(path, O_RDWR);
        const UniqueFd donor = open_path(donor_path, O_RDWR | O_CREAT);
        if (::fallocate(donor.get(), 0, 0, kTail) != 0) return 1;
        MoveExtent all{};
        all.donor_fd = static_cast<uint32_t>(donor.get());
        all.length = kTail / 4096;
        if (::ioctl(fd.get(), kMoveExtent, &all) == 0 && all.moved == all.length)
            ++board.defragmentations;
        ::usleep(50000);
    }
    return 0;
}

class OthersTest : public ServedTest {
  protected:
    void client(size_t id, uint64_t seed);
    void run(std::chrono::milliseconds time, bool kills);

    SharedValue<Board> board_;
    bool daemon_may_die_ = false;
    UniqueFd moving_;  // known, however it is called
};

// Writes its units of the common file, and those of files that move and vanish. After the daemon's
// death it connects again, and what was in doubt is all old or all new.
void OthersTest::client(size_t id, uint64_t seed) {
    std::mt19937_64 random(seed + 1000 + id);
    Board& board = *board_;
    std::array<uint64_t, kUnits> doubt{};
    uint64_t serial = 0;
    uint64_t moving_last = 0, moving_doubt = 0;
    const std::string moving_path = fmt::format("/proc/self/fd/{}", moving_.get());
    const uint64_t moving_at = id * kUnit;
    const auto settle_doubts = [&] {
        for (size_t unit = id; unit < kUnits; unit += kOwners) {
            if (doubt[unit] == 0) continue;
            const auto is = whole(read_path(path("data"), unit * kUnit, kUnit), unit * kUnit);
            if (is && is->serial == doubt[unit]) board.last[unit] = doubt[unit];
            doubt[unit] = 0;
        }
        if (moving_doubt != 0) {
            const auto is = whole(read_path(moving_path, moving_at, kUnit), moving_at);
            if (is && is->serial == moving_doubt) moving_last = moving_doubt;
            moving_doubt = 0;
        }
    };
    while (!board.stop && board.wrong[0] == '\0') try {
            const auto client = connect();
            const File file = open_through(*client, path("data"));
            const File moving = open_through(*client, moving_path);
            settle_doubts();
            while (!board.stop) {
                const size_t unit = pick(random, id);
                if (!right(board, unit,
                           read_path(path("data"), unit * kUnit, kUnit,
                                     random() % 2 != 0 ? O_DIRECT : 0),
                           "a client"))
                    return;
                doubt[unit] = ++serial;
                must(client->write(file.handle, ByteOffset(unit * kUnit),
                                   stamped(kUnit, id + 1, serial, unit * kUnit)));
                doubt[unit] = 0;
                board.last[unit] = serial;
                ++board.writes[id];

                const auto is = whole(read_path(moving_path, moving_at, kUnit), moving_at);
                if (!is || is->serial != moving_last) {
                    board.complain(fmt::format("the renamed file has lost {}", moving_last));
                    return;
                }
                moving_doubt = ++serial;
                must(client->write(moving.handle, ByteOffset(moving_at),
                                   stamped(kUnit, id + 1, serial, moving_at)));
                moving_last = serial;
                moving_doubt = 0;

                if (random() % 8 != 0) continue;
                // A file without a name takes writes as long as it is open.
                const std::string doomed = path(fmt::format("doomed{}", id));
                const UniqueFd fd = open_path(doomed, O_RDWR | O_CREAT);
                const File vanishing =
                    must(client->open(fd.get(), wire::kOpenRead | wire::kOpenWrite));
                for (uint64_t i = 0; i < 3; ++i)
                    must(client->write(vanishing.handle, ByteOffset(i * kUnit),
                                       stamped(kUnit, id + 1, i + 1, i * kUnit)));
                std::vector<std::byte> back(kUnit);
                must(client->read(vanishing.handle, ByteOffset(kUnit), back));
                if (whole(back, kUnit) != Stamp{id + 1, 2, kUnit})
                    board.complain("an unlinked file has lost its bytes");
                must(client->close(vanishing.handle));
            }
        } catch (const std::exception& lost) {
            if (!daemon_may_die_) {
                board.complain(fmt::format("client {}: {}", id, lost.what()));
                return;
            }
            std::this_thread::sleep_for(std::chrono::milliseconds(2));
        }
    // The last death may have come just before the end; the daemon has recovered since.
    settle_doubts();
}

void OthersTest::run(std::chrono::milliseconds time, bool kills) {
    const uint64_t seed = test_seed();
    std::mt19937_64 random(seed);
    make_file("data", kTail);
    make_file("moving", 2 * kUnit);
    moving_ = open_path(path("moving"), O_RDONLY);
    daemon_may_die_ = kills;
    Board& board = *board_;
    const std::string data = path("data");
    std::vector<std::unique_ptr<Forked>> others;
    const auto start = [&](const std::function<int()>& body) {
        others.push_back(std::make_unique<Forked>(body));
    };
    start([&] { return write_plainly(board, data, Buffered, seed); });
    start([&] { return write_plainly(board, data, Direct, seed); });
    start([&] { return write_mapped(board, data, seed); });
    start([&] { return truncate_tail(board, data, seed); });
    start([&] { return move_and_unlink(board, image_->dir()); });
    start([&] { return defragment(board, data); });
    size_t killed = 0;
    {
        std::vector<std::jthread> clients;
        for (size_t id : {Client0, Client1})
            clients.emplace_back([this, id, seed] { client(id, seed); });
        const auto end = Clock::now() + time;
        size_t of_this_keeper = 0;
        try {
            while (Clock::now() < end && board.wrong[0] == '\0') {
                std::this_thread::sleep_for(std::chrono::microseconds(random() % 200'000));
                if (!kills) continue;
                ++killed;
                if (of_this_keeper == 5 || random() % 4 == 0) {
                    daemon_->kill_all();
                    daemon_->start();
                    of_this_keeper = 0;
                } else {
                    daemon_->kill_worker();
                    daemon_->wait_ready();
                    ++of_this_keeper;
                }
            }
        } catch (const std::exception& error) {
            board.complain(error.what());
        }
        board.stop = true;
    }
    for (const auto& other : others) EXPECT_EQ(other->wait(), 0);
    fmt::print(
        "{} kills; writes: clients {}, {}, buffered {}, direct {}, mapped {}; {} truncations, {} "
        "renames, {} defragmentations\n",
        killed, board.writes[0].load(), board.writes[1].load(), board.writes[2].load(),
        board.writes[3].load(), board.writes[4].load(), board.truncations.load(),
        board.moves.load(), board.defragmentations.load());
    EXPECT_STREQ(board.wrong.data(), "");
    EXPECT_GT(board.defragmentations, 0u);
    for (size_t owner = 0; owner < kOwners; ++owner) EXPECT_GT(board.writes[owner], 0u) << owner;
    ASSERT_EQ(daemon_->stop(), 0);
    moving_.reset();
    // The disk alone decides.
    image_->unmount();
    EXPECT_EQ(fsck_complaints(image_->load()), "");
    image_->mount();
    for (size_t unit = 0; unit < kUnits; ++unit)
        EXPECT_TRUE(right(board, unit, read_path(data, unit * kUnit, kUnit), "at the end"))
            << board.wrong.data();
}

TEST_F(OthersTest, NobodyLosesAnything) {
    serve();
    run(long_form() ? std::chrono::seconds(120) : std::chrono::seconds(6), false);
}

TEST_F(OthersTest, NorWhenTheDaemonIsKilled) {
    serve();
    run(long_form() ? std::chrono::seconds(300) : std::chrono::seconds(10), true);
}

}  // namespace
}  // namespace atomic4::test
