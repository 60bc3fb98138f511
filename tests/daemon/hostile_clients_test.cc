// Clients that behave badly as a whole: many, silent, dying, standing in the way of others.
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <array>
#include <atomic>
#include <numeric>
#include <thread>

#include "daemon/volume_fixture.h"
#include "support/forked.h"
#include "support/shared_count.h"

namespace atomic4::test {
namespace {

using wire::Type;
using Clock = std::chrono::steady_clock;

const Identity kUser{12345, 12345, {}};
constexpr uint32_t kReadWrite = wire::kOpenRead | wire::kOpenWrite;

class HostileClients : public DaemonTest {
  protected:
    void prepare() override {
        std::filesystem::permissions(volume().file(""), std::filesystem::perms(0755));
        for (const char* const name : {"other", "users"}) {
            const UniqueFd fd = open_path(volume().file(name), O_RDWR | O_CREAT | O_EXCL);
            ASSERT_EQ(::ftruncate(fd.get(), kMiB), 0);
        }
        ASSERT_EQ(::chown(volume().file("users").c_str(), kUser.uid, kUser.gid), 0);
        ASSERT_EQ(::chmod(volume().file("data").c_str(), 0666), 0);
    }
    // Writes and reads of a well-behaved client, each answered. The slowest, in ms.
    double work(const std::string& name, int rounds) {
        WireClient client = volume().client();
        const uint64_t handle = volume().open(client, name, kReadWrite);
        double slowest = 0;
        for (int i = 0; i < rounds; ++i) {
            const auto page = filled(kUnit, static_cast<unsigned>(i));
            const auto begin = Clock::now();
            const Answer written =
                client.write(handle, static_cast<uint64_t>(i) % 32 * kUnit, page);
            EXPECT_EQ(written.error, 0u) << written.reason;
            EXPECT_EQ(client.with_handle(Type::Statx, handle).error, 0u);
            slowest = std::max(
                slowest, std::chrono::duration<double, std::milli>(Clock::now() - begin).count());
        }
        return slowest;
    }
};

TEST_P(HostileClients, AThousandThatDoNothing) {
    rlimit files{};
    ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &files), 0);
    files.rlim_cur = files.rlim_max;
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &files), 0);
    if (files.rlim_cur < 1200) A4_SKIP("the limit of open files is too low");
    // Counted when the daemon has dealt with those who left before.
    size_t before = 0;
    {
        WireClient asking = volume().client();
        ASSERT_EQ(asking.ask(Type::Ping).error, 0u);
        before = volume().descriptors() - 1;
    }
    const size_t memory = volume().resident_bytes();
    {
        std::vector<WireClient> idle;
        for (int i = 0; i < 1000; ++i) {
            idle.emplace_back(volume().socket());
            ASSERT_TRUE(i % 2 == 0 || idle.back().hello().error == 0);
        }
        fmt::print("with 1000 idle: slowest request {:.1f} ms, {} KiB of memory each\n",
                   work("data", 50), (volume().resident_bytes() - memory) / 1000 / kKiB);
        EXPECT_GE(volume().descriptors(), before + 1000);
    }
    EXPECT_TRUE(volume().descriptors_come_down_to(before));
    work("data", 5);
}

TEST_P(HostileClients, OneUserDoesNotTakeAllConnections) {
    rlimit files{};
    ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &files), 0);
    files.rlim_cur = files.rlim_max;
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &files), 0);
    if (files.rlim_cur < 1200) A4_SKIP("the limit of open files is too low");
    constexpr size_t kQuarter = 1024;
    std::vector<WireClient> taken;
    for (size_t i = 0; i < kQuarter; ++i) taken.push_back(volume().client(kUser));
    for (int i = 0; i < 3; ++i) EXPECT_TRUE(WireClient(volume().socket(), kUser).ends());
    EXPECT_THAT(
        volume().daemon().said(),
        ::testing::HasSubstr(fmt::format(
            "a connection by user 12345 (process {}): this user has 1024 already", ::getpid())));
    // Others don't notice; and what is given back can be had again.
    EXPECT_EQ(volume().client({12346, 12346, {}}).ask(Type::Ping).error, 0u);
    work("data", 5);
    EXPECT_EQ(taken.front().ask(Type::Ping).error, 0u);
    const size_t before = volume().descriptors();
    taken.pop_back();
    EXPECT_TRUE(volume().descriptors_come_down_to(before - 1));
    EXPECT_EQ(volume().client(kUser).ask(Type::Ping).error, 0u);
}

TEST_P(HostileClients, OnesThatFloodAndNeverReadAnAnswer) {
    const size_t before = volume().descriptors();
    const size_t memory = volume().resident_bytes();
    constexpr int kCount = 8;
    {
        std::vector<WireClient> silent;
        std::vector<Packet> requests;
        for (int i = 0; i < kCount; ++i) {
            silent.push_back(volume().client(kUser));
            const uint64_t handle = volume().open(silent.back(), "data", kReadWrite);
            if (i % 4 == 0) requests.push_back(read_packet(1, handle, 0, wire::kInlineMax));
            if (i % 4 == 1) requests.push_back(request_packet(Type::Stats, 1, Packet(8)));
            if (i % 4 == 2) requests.push_back(write_packet(1, handle, kMiB, filled(kUnit, 7)));
            if (i % 4 == 3) requests.push_back(request_packet(Type::Open, 1));
        }
        size_t sent = 0;
        const auto flood = [&] {
            for (size_t i = 0; i < silent.size(); ++i)
                while (silent[i].send_now(requests[i])) ++sent;
        };
        double slowest = 0;
        for (int round = 0; round < 10; ++round) {
            flood();
            slowest = std::max(slowest, work("other", 5));
        }
        const size_t grown = volume().resident_bytes() - memory;
        fmt::print("{} requests unread; slowest request of others {:.1f} ms, {} MiB of memory\n",
                   sent, slowest, grown / kMiB);
        // 4 MiB of answers and 256 requests of 64 KiB each, at the very most.
        EXPECT_TRUE(A4_SANITIZED || grown < kCount * (20 * kMiB)) << grown;
        // Then one reads after all, and gets every answer.
        EXPECT_TRUE(readable(silent[0].fd(), kPatienceMs));
        silent[1].half_close();
        silent[2].close();
        work("other", 5);
    }
    EXPECT_TRUE(volume().descriptors_come_down_to(before));
}

// The number of an entry of the STATS text.
size_t stat_of(WireClient& client, const std::string& name) {
    const wire::StatsRequest request{};
    const Answer answer = client.ask(Type::Stats, bytes_of(request));
    const std::string text(reinterpret_cast<const char*>(answer.body.data()), answer.body.size());
    const std::string key = "\"" + name + "\": ";
    const size_t at = text.find(key);
    if (at == std::string::npos) throw std::runtime_error("STATS without " + name);
    return std::stoull(text.substr(at + key.size()));
}

// Each of them keeps within its own bounds, and would take 16 MiB for good.
TEST_P(HostileClients, ManyWhoseWritesWaitTakeABoundedMemoryTogether) {
    constexpr size_t kCount = 40;
    constexpr size_t kLimit = 128 * kMiB;
    const size_t before = volume().descriptors();
    const size_t memory = volume().resident_bytes();
    {
        WireClient root = volume().client();
        std::vector<WireClient> many;
        std::vector<uint64_t> handles;
        for (size_t i = 0; i < kCount; ++i) {
            many.push_back(volume().client(kUser));
            handles.push_back(volume().open(many.back(), "data", kReadWrite));
        }
        WireClient reader = volume().client();
        const uint64_t reading = volume().open(reader, "other", kReadWrite);
        ASSERT_EQ(root.ask(Type::Freeze).error, 0u);
        std::array<size_t, kCount> sent{};
        const auto page = filled(wire::kInlineMax, 3);
        for (size_t news = 1; news > 0;) {
            news = 0;
            for (size_t i = 0; i < kCount; ++i)
                while (many[i].send_now(
                    write_packet(sent[i], handles[i], sent[i] % 128 * wire::kInlineMax, page))) {
                    ++sent[i];
                    ++news;
                }
            // It has looked at all who had sent something, meanwhile.
            for (int n = 0; n < 5; ++n) ASSERT_EQ(root.ask(Type::Ping).error, 0u);
        }
        const size_t taken = stat_of(root, "request_memory");
        const size_t grown = volume().resident_bytes() - memory;
        fmt::print("{} writes wait, {} MiB taken, {} MiB resident\n",
                   std::accumulate(sent.begin(), sent.end(), size_t{0}), taken / kMiB,
                   grown / kMiB);
        EXPECT_GT(taken, kLimit);  // else this has tested nothing
        EXPECT_LT(taken, 2 * kLimit + kCount * kMiB);
        EXPECT_TRUE(A4_SANITIZED || grown < 2 * kLimit + kCount * 2 * kMiB) << grown;
        // Who has asked for little is served.
        for (int n = 0; n < 10; ++n) {
            EXPECT_EQ(reader.read(reading, 0, wire::kInlineMax).error, 0u);
            EXPECT_EQ(reader.with_handle(Type::Statx, reading).error, 0u);
        }
        ASSERT_EQ(root.ask(Type::Thaw).error, 0u);
        for (size_t i = 0; i < kCount; ++i)
            for (size_t n = 0; n < sent[i]; ++n) {
                const auto answer = many[i].receive();
                ASSERT_TRUE(answer) << i << ": " << n << " of " << sent[i];
                ASSERT_EQ(answer->error, 0u) << answer->reason;
            }
        // All is given back but what this question takes.
        EXPECT_LT(stat_of(root, "request_memory"), kMiB);
    }
    work("other", 5);
    EXPECT_TRUE(volume().descriptors_come_down_to(before));
}

// An orderly end isn't prevented by somebody who doesn't read.
TEST_P(HostileClients, StoppingWhileAnswersAreUnread) {
    std::vector<WireClient> silent;
    for (int i = 0; i < 2; ++i) {
        silent.push_back(volume().client(kUser));
        const uint64_t handle = volume().open(silent.back(), "data", kReadWrite);
        for (uint64_t n = 0;
             n < 2000 && silent.back().send_now(read_packet(n, handle, 0, wire::kInlineMax));)
            ++n;
    }
    work("other", 2);
    stop();
}

// What waits for a frozen volume when the daemon is stopped is finished and answered.
TEST_P(HostileClients, StoppingWhileFrozen) {
    WireClient root = volume().client();
    WireClient waiting = volume().client();
    const uint64_t handle = volume().open(waiting, "data", kReadWrite);
    EXPECT_EQ(root.ask(Type::Freeze).error, 0u);
    EXPECT_TRUE(waiting.send(write_packet(5, handle, 0, filled(kUnit, 5))));
    EXPECT_EQ(waiting.ask(Type::Ping).error, 0u);
    stop();
    const auto answer = waiting.receive();
    ASSERT_TRUE(answer);
    EXPECT_EQ(answer->tag, 5u);
    EXPECT_EQ(answer->error, 0u) << answer->reason;
}

// Whatever was begun before the end is answered before it, and the rest of what was sent refused.
TEST_P(HostileClients, StoppingAnswersWhatWasSent) {
    WireClient busy = volume().client();
    const uint64_t handle = volume().open(busy, "data", kReadWrite);
    constexpr uint64_t kCount = 200;
    for (uint64_t i = 0; i < kCount; ++i)
        ASSERT_TRUE(busy.send(write_packet(i, handle, i * kUnit, filled(kUnit, 9))));
    ASSERT_TRUE(busy.receive());
    stop();
    uint64_t answers = 1, done = 1;
    while (const auto answer = busy.receive()) {
        ++answers;
        if (answer->error == 0) ++done;
        EXPECT_TRUE(answer->error == 0 || answer->error == ESHUTDOWN) << answer->reason;
    }
    EXPECT_EQ(answers, kCount);
    if (!volume().mounted()) return;
    uint64_t written = 0;
    for (uint64_t i = 0; i < kCount; ++i)
        written += read_path(volume().file("data"), i * kUnit, kUnit) == filled(kUnit, 9) ? 1 : 0;
    EXPECT_EQ(written, done);
}

TEST_P(HostileClients, OnesThatDieInTheMiddleOfWrites) {
    const size_t before = volume().descriptors();
    for (unsigned round = 0; round < 20; ++round) {
        int ends[2];
        ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
        UniqueFd told(ends[0]), tell(ends[1]);
        {
            Forked victim([&] {
                WireClient client = volume().client();
                const uint64_t handle = volume().open(client, "data", kReadWrite);
                for (uint64_t i = 0;; ++i) {
                    const auto unit = filled(kUnit, static_cast<unsigned>(i % 5 + 1) + round * 7);
                    if (!client.send(write_packet(i, handle, i % 64 * kUnit, unit))) return 1;
                    if (i == 50 && ::write(tell.get(), "x", 1) != 1) return 1;
                    if (i > 50) client.receive();
                }
            });
            EXPECT_TRUE(readable(told.get(), kPatienceMs));
        }  // SIGKILL
        work("other", 1);
    }
    // Its handles are closed, and with them the file: nobody has it open for writing.
    EXPECT_TRUE(volume().descriptors_come_down_to(before));
    if (volume().mounted()) {
        const UniqueFd alone = open_path(volume().file("data"), O_RDONLY);
        EXPECT_EQ(::fcntl(alone.get(), F_SETLEASE, F_RDLCK), 0) << std::strerror(errno);
    }
    WireClient reader = volume().client();
    const uint64_t handle = volume().open(reader, "data", kReadWrite);
    for (uint64_t unit = 0; unit < 64; ++unit) {
        const Answer read = reader.read(handle, unit * kUnit, kUnit);
        ASSERT_EQ(read.body.size(), sizeof(wire::ReadReply) + kUnit);
        const auto bytes = std::span(read.body).subspan(sizeof(wire::ReadReply));
        EXPECT_TRUE(std::ranges::all_of(bytes, [&](std::byte byte) { return byte == bytes[0]; }))
            << "unit " << unit << " is torn";
    }
}

class InTheWay : public HostileClients {};

// Somebody opens the file for writing while clients write as much as they can.
TEST_P(InTheWay, AnOpenerDoesNotWaitLong) {
    constexpr uint64_t kWrite = 4 * kMiB;
    constexpr int kClients = 3;
    std::atomic<bool> stop = false;
    SharedCount done;
    OtherProcess opener(volume().file("data"));
    std::vector<std::thread> floods;
    for (int i = 0; i < kClients; ++i) {
        floods.emplace_back([&, i] {
            WireClient client = volume().client();
            const uint64_t handle = volume().open(client, "data", kReadWrite);
            const UniqueFd memory(::memfd_create("arena", MFD_CLOEXEC | MFD_ALLOW_SEALING));
            if (::ftruncate(memory.get(), kWrite) != 0 ||
                ::fcntl(memory.get(), F_ADD_SEALS, F_SEAL_SHRINK) != 0 ||
                client.arena(memory.get(), kWrite).error != 0)
                std::abort();
            uint64_t sent = 0, answered = 0;
            while (!stop || answered < sent) {
                if (!stop && sent < answered + 8) {
                    client.send(arena_write_packet(
                        sent, handle, (sent + static_cast<uint64_t>(i)) % 4 * kWrite, kWrite, 0));
                    ++sent;
                    continue;
                }
                const auto answer = client.receive();
                if (!answer || answer->error != 0) std::abort();
                ++answered;
                done.add();
            }
        });
    }
    double slowest = 0;
    const int rounds = long_form() ? 100 : 12;
    for (int round = 0; round < rounds; ++round) {
        // Some writes in between, exclusive ones among them.
        done.wait_for(done.value() + 4);
        const auto begin = Clock::now();
        EXPECT_EQ(opener.step(round % 3 == 2 ? 'r' : 'w'), '+');
        slowest = std::max(slowest, std::chrono::duration<double>(Clock::now() - begin).count());
        EXPECT_EQ(opener.step('c'), '+');
    }
    stop = true;
    for (std::thread& flood : floods) flood.join();
    fmt::print("the slowest of {} openers waited {:.3f} s, during {} writes of 4 MiB\n", rounds,
               slowest, done.value());
    EXPECT_TRUE(A4_SANITIZED || slowest < 5.0) << slowest;
}

// A lease makes an open(2) of others wait, for 45 seconds by default: not the daemon's.
TEST_P(InTheWay, ALeaseOnAFileHoldsUpNobodyElse) {
    WireClient villain = volume().client(kUser);
    {
        const OpenedFile file = open_as(kUser, volume().file("users"), O_RDWR);
        ASSERT_TRUE(file.fd);
        int leased = 0;
        as_user(kUser, [&] { leased = ::fcntl(file.fd.get(), F_SETLEASE, F_WRLCK); });
        ASSERT_EQ(leased, 0) << std::strerror(errno);
        ::signal(SIGIO, SIG_IGN);
        const Answer answer = villain.open(file.fd.get(), kReadWrite);
        EXPECT_EQ(answer.error, uint32_t{EBUSY}) << answer.reason;
        work("other", 2);
    }
    // Without it there is nothing in the way.
    const OpenedFile file = open_as(kUser, volume().file("users"), O_RDWR);
    EXPECT_EQ(villain.open(file.fd.get(), kReadWrite).error, 0u);
}

// The moment that the daemon has no writable descriptor itself is enough for a reader's lease.
TEST_P(InTheWay, ALeaseInTheMomentOfAProbe) {
    ::signal(SIGIO, SIG_IGN);
    WireClient client = volume().client(kUser);
    const uint64_t handle = volume().open(client, "users", kReadWrite);
    int caught = 0;
    for (int round = 0; round < 300 && caught < 3; ++round) {
        OpenedFile file = open_as(kUser, volume().file("users"), O_RDONLY);
        ASSERT_TRUE(file.fd);
        int leased = -1;
        as_user(kUser, [&] { leased = ::fcntl(file.fd.get(), F_SETLEASE, F_RDLCK); });
        if (leased != 0) continue;
        ++caught;
        // Other files have nothing to do with it.
        work("other", 1);
        const Answer written = client.write(handle, 0, filled(kUnit, 3));
        EXPECT_TRUE(written.error == 0 || written.error == EBUSY) << written.reason;
    }
    fmt::print("{} leases in the way\n", caught);
    // Given up, all is as before: at the latest when the daemon looks again.
    uint32_t error = EBUSY;
    for (const auto end = Clock::now() + std::chrono::milliseconds(kPatienceMs);
         error == EBUSY && Clock::now() < end;)
        error = client.write(handle, 0, filled(kUnit, 4)).error;
    EXPECT_EQ(error, 0u);
}

// A descriptor of another mount of the volume: that mount isn't used, nor kept.
TEST_P(InTheWay, AMountOfItsOwn) {
    const TempDir place;
    std::filesystem::create_directory(place.file("bound"));
    WireClient client = volume().client();
    uint64_t handle = 0;
    {
        Mount bound(volume().file(""), place.file("bound"), {"--bind"});
        const UniqueFd fd = open_path(place.file("bound/other"), O_RDWR);
        handle = client.must_open(fd.get(), kReadWrite);
        EXPECT_EQ(client.write(handle, 0, filled(kUnit, 1)).error, 0u);
        const CommandOutput read_only =
            run_command({"mount", "-o", "remount,bind,ro", place.file("bound")});
        // Our own descriptor is for writing.
        EXPECT_NE(read_only.status, 0);
    }
    {
        Mount bound(volume().file(""), place.file("bound"), {"--bind"});
        {
            const UniqueFd fd = open_path(place.file("bound/users"), O_RDONLY);
            const uint64_t second = client.must_open(fd.get(), kReadWrite);
            EXPECT_EQ(client.write(second, 0, filled(kUnit, 2)).error, 0u);
        }
        EXPECT_EQ(run_command({"mount", "-o", "remount,bind,ro", place.file("bound")}).status, 0);
        EXPECT_NO_THROW(bound.unmount());
    }
    EXPECT_EQ(client.write(handle, 0, filled(kUnit, 1)).error, 0u);
}

INSTANTIATE_TEST_SUITE_P(Volume, HostileClients, ::testing::Bool(), volume_name);
INSTANTIATE_TEST_SUITE_P(Volume, InTheWay, ::testing::Values(true), volume_name);

}  // namespace
}  // namespace atomic4::test
