// The C++ client against a daemon in memory: its calls, and the arena and spinning beneath them.
#include "client/client.h"

#include <poll.h>
#include <sys/socket.h>

#include <map>
#include <random>

#include "support/command.h"
#include "unit/client_fixture.h"

namespace atomic4::test {
namespace {

using namespace wire;
using std::chrono::milliseconds;
using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

class ClientWithAndWithoutArena : public testing::TestWithParam<uint64_t> {
  protected:
    FakeDaemon daemon;
    std::unique_ptr<Client> client = connect_to(daemon, Bytes(GetParam()));
};
INSTANTIATE_TEST_SUITE_P(Arena, ClientWithAndWithoutArena, testing::Values(0, 1 << 20));

TEST_P(ClientWithAndWithoutArena, SynchronousCalls) {
    EXPECT_EQ(client->daemon().block_size, Bytes(4096));
    EXPECT_EQ(client->daemon().uuid[0], 0xab);
    must(client->ping());
    const UniqueFd fd(::open("/dev/null", O_RDWR | O_CLOEXEC));
    const File file = must(client->open(fd.get(), kOpenRead | kOpenWrite));
    EXPECT_EQ(file.inode, 12u);
    EXPECT_EQ(file.generation, 34u);
    EXPECT_EQ(daemon.descriptors(), 1);
    EXPECT_NE(fcntl(fd.get(), F_GETFD), -1);  // the caller keeps it

    std::mt19937_64 random(1);
    const auto data = random_bytes(16384, random);
    const Written written = must(client->write(file.handle, ByteOffset(4096), data));
    EXPECT_EQ(written.engine, WireEngine::Logged);
    EXPECT_EQ(written.ack_mode, AckMode::Strict);
    must(client->write_plain(file.handle, ByteOffset(0), std::span(data).first(100)));
    std::vector<std::byte> back(16384);
    EXPECT_EQ(must(client->read(file.handle, ByteOffset(4096), back)), Bytes(16384));
    EXPECT_EQ(back, data);
    // Over the end of the file.
    EXPECT_EQ(must(client->read(file.handle, ByteOffset(20000), back)), Bytes(480));
    EXPECT_EQ(must(client->read(file.handle, ByteOffset(1 << 30), back)), Bytes(0));

    const BatchPart parts[] = {{file.handle, ByteOffset(0), std::span(data).first(4096)},
                               {file.handle, ByteOffset(8192), std::span(data).subspan(50, 60)}};
    EXPECT_EQ(must(client->write_batch(parts)).engine, WireEngine::Logged);
    const auto contents = daemon.file();
    EXPECT_TRUE(std::ranges::equal(std::span(contents).first(4096), parts[0].data));
    EXPECT_TRUE(std::ranges::equal(std::span(contents).subspan(8192, 60), parts[1].data));

    const FileStatus status = must(client->statx(file.handle));
    EXPECT_EQ(status.size, Bytes(20480));
    EXPECT_EQ(status.unit, Bytes(16384));
    EXPECT_TRUE(status.atomic);
    EXPECT_EQ(status.why_not_native, "not a device");
    EXPECT_EQ(status.why_strict, "open in");
    must(client->flush(file.handle));
    EXPECT_EQ(must(client->stats()), "{\"writes\": 1}");
    must(client->thaw());
    must(client->close(file.handle));
    EXPECT_EQ(daemon.inline_payloads(), GetParam() == 0 ? 4 : 0);
    EXPECT_EQ(client->in_flight(), 0u);
}

TEST_P(ClientWithAndWithoutArena, ErrorsComeWithTheirReasons) {
    const auto data = filled(4096, 1);
    const auto result = client->write(99, ByteOffset(0), data);
    EXPECT_EQ(code_of(result), EBADF);
    EXPECT_EQ(result.error().message, "no such handle");
    const auto frozen = client->freeze();
    EXPECT_EQ(code_of(frozen), EPERM);
    EXPECT_EQ(frozen.error().message, "only root may freeze");
    // A refusal by the validating code: an opening for nothing.
    const UniqueFd fd(::open("/dev/null", O_RDWR | O_CLOEXEC));
    EXPECT_EQ(code_of(client->open(fd.get(), 0)), EINVAL);
    EXPECT_EQ(code_of(client->open("/f", kOpenRead)), EINVAL);  // a mounted volume
    must(client->ping());
}

TEST_P(ClientWithAndWithoutArena, PipelinedCalls) {
    const uint64_t handle = open_file(*client);
    std::mt19937_64 random(2);
    const auto data = random_bytes(32 * 4096, random);
    std::vector<uint64_t> tags;
    for (size_t i = 0; i < 32; ++i)
        tags.push_back(must(client->submit_write(handle, ByteOffset(i * 4096),
                                                 std::span(data).subspan(i * 4096, 4096))));
    auto completions = reap_all(*client, 32);
    EXPECT_EQ(tags_of(completions), tags);
    EXPECT_THAT(codes_of(completions), Each(0));
    for (const Completion& completion : completions) EXPECT_EQ(completion.length, Bytes(4096));
    EXPECT_EQ(completions[0].written.ack_mode, AckMode::Strict);
    EXPECT_EQ(daemon.file(), data);

    std::vector<std::byte> back(data.size());
    for (size_t i = 0; i < 32; ++i)
        must(client->submit_read(handle, ByteOffset(i * 4096),
                                 std::span(back).subspan(i * 4096, 4096)));
    must(client->submit_statx(handle));
    must(client->submit_flush(handle));
    must(client->submit_write_plain(handle, ByteOffset(0), std::span(data).first(10)));
    const BatchPart part{handle, ByteOffset(0), std::span(data).first(4096)};
    must(client->submit_batch({&part, 1}));
    completions = reap_all(*client, 36);
    ASSERT_THAT(completions, SizeIs(36));
    EXPECT_THAT(codes_of(completions), Each(0));
    EXPECT_EQ(back, data);
    ASSERT_TRUE(completions[32].status);
    EXPECT_EQ(completions[32].status->inode, 12u);
    EXPECT_EQ(completions[35].length, Bytes(4096));
    EXPECT_THAT(client->reap(10), IsEmpty());  // nothing in flight: it doesn't wait
}

TEST(Client, AnswersInAnyOrder) {
    FakeDaemon daemon;
    const auto client = connect_to(daemon);
    const uint64_t handle = open_file(*client);
    Packets held;
    daemon.on(Type::Write, [&](const Request& request) -> FakeDaemon::Answer {
        held.insert(held.begin(), daemon.honest(request));
        return held.size() < 4 ? Packets() : std::exchange(held, {});
    });
    std::vector<uint64_t> tags;
    for (unsigned i = 0; i < 4; ++i)
        tags.push_back(must(client->submit_write(handle, ByteOffset(i), filled(1, i))));
    // A synchronous call in between keeps the others' answers.
    must(client->ping());
    std::ranges::reverse(tags);
    EXPECT_EQ(tags_of(reap_all(*client, 4)), tags);
}

TEST(Client, ReapTakesAtMostMaxAndWaitsAtMostItsTimeout) {
    FakeDaemon daemon;
    const auto client = connect_to(daemon);
    const uint64_t handle = open_file(*client);
    Packets held;
    daemon.on(Type::Flush, [&](const Request& request) -> FakeDaemon::Answer {
        held.push_back(daemon.honest(request));
        return Packets();
    });
    daemon.on(Type::Ping, [&](const Request& request) -> FakeDaemon::Answer {
        held.push_back(daemon.honest(request));
        return std::exchange(held, {});
    });
    for (int i = 0; i < 3; ++i) must(client->submit_flush(handle));
    EXPECT_THAT(client->reap(10, milliseconds(0)), IsEmpty());
    EXPECT_THAT(client->reap(10, milliseconds(5)), IsEmpty());
    EXPECT_EQ(client->in_flight(), 3u);
    must(client->ping());
    EXPECT_THAT(client->reap(0), IsEmpty());
    EXPECT_THAT(client->reap(2), SizeIs(2));
    EXPECT_THAT(client->reap(2, milliseconds::max()), SizeIs(1));
}

TEST(Client, DescriptorIsReadableWhenAnAnswerHasCome) {
    FakeDaemon daemon;
    const auto client = connect_to(daemon);
    const uint64_t handle = open_file(*client);
    pollfd ready{client->fd(), POLLIN, 0};
    EXPECT_EQ(poll(&ready, 1, 0), 0);
    must(client->submit_flush(handle));
    EXPECT_EQ(poll(&ready, 1, -1), 1);
    EXPECT_THAT(client->reap(1, milliseconds(0)), SizeIs(1));
    EXPECT_EQ(poll(&ready, 1, 0), 0);
}

TEST(Client, NeverMoreInFlightThanTheDaemonTakes) {
    FakeDaemon daemon({TargetKind::Mounted, 4});
    const auto client = connect_to(daemon);
    const uint64_t handle = open_file(*client);
    // Answers only when four requests have come: a client that stopped at three would hang, and one
    // that went on to five is seen.
    Packets held;
    daemon.on(Type::Write, [&](const Request& request) -> FakeDaemon::Answer {
        held.push_back(daemon.honest(request));
        return held.size() < 4 ? Packets() : std::exchange(held, {});
    });
    for (unsigned i = 0; i < 40; ++i) {
        must(client->submit_write(handle, ByteOffset(i), filled(1, i)));
        EXPECT_LE(client->in_flight(), 4u);
    }
    EXPECT_THAT(reap_all(*client, 40), SizeIs(40));
}

// Neither side reads while it writes, more than the sockets hold: answers are taken while sending.
TEST(Client, FullSocketsDontLockUp) {
    FakeDaemon daemon;
    const auto client = connect_to(daemon, kNoArena);
    const uint64_t handle = open_file(*client);
    const auto data = filled(60000, 7);
    must(client->write(handle, ByteOffset(0), data));
    std::vector<std::vector<std::byte>> back(200, std::vector<std::byte>(60000));
    for (auto& into : back) {
        must(client->submit_read(handle, ByteOffset(0), into));
        must(client->submit_write(handle, ByteOffset(0), data));
    }
    EXPECT_THAT(codes_of(reap_all(*client, 400)), Each(0));
    EXPECT_THAT(back, Each(data));
}

TEST(Client, ArenaExhausted) {
    FakeDaemon daemon;
    const auto client = connect_to(daemon, Bytes(256 << 10));
    const uint64_t handle = open_file(*client);
    // Larger than the inline limit: waits for answers.
    std::mt19937_64 random(3);
    const auto data = random_bytes(100'000, random);
    for (size_t i = 0; i < 20; ++i)
        must(client->submit_write(handle, ByteOffset(i * data.size()), data));
    EXPECT_THAT(codes_of(reap_all(*client, 20)), Each(0));
    const auto contents = daemon.file();
    for (size_t i = 0; i < 20; ++i)
        EXPECT_TRUE(std::ranges::equal(std::span(contents).subspan(i * 100'000, 100'000), data));
    EXPECT_EQ(daemon.inline_payloads(), 0);
    // Never fits.
    EXPECT_EQ(code_of(client->write(handle, ByteOffset(0), filled(300 << 10, 1))), ENOMEM);
    // Doesn't fit while the caller has it all; smaller ones travel inline.
    const auto mine = must(client->arena_alloc(Bytes(256 << 10)));
    EXPECT_EQ(code_of(client->arena_alloc(Bytes(1))), ENOMEM);
    EXPECT_EQ(code_of(client->write(handle, ByteOffset(0), data)), ENOMEM);
    must(client->write(handle, ByteOffset(0), filled(kInlineMax, 1)));
    EXPECT_EQ(daemon.inline_payloads(), 1);
    std::vector<std::byte> back(kInlineMax);
    EXPECT_EQ(must(client->read(handle, ByteOffset(0), back)), Bytes(kInlineMax));
    EXPECT_EQ(back, filled(kInlineMax, 1));
    client->arena_free(mine);
    must(client->write(handle, ByteOffset(0), data));
}

TEST(Client, WithoutArenaLargePayloadsAreRefused) {
    FakeDaemon daemon;
    const auto client = connect_to(daemon, kNoArena);
    const uint64_t handle = open_file(*client);
    must(client->write(handle, ByteOffset(0), filled(kInlineMax, 1)));
    const auto result = client->write(handle, ByteOffset(0), filled(kInlineMax + 1, 1));
    EXPECT_EQ(code_of(result), EMSGSIZE);
    EXPECT_THAT(result.error().message, HasSubstr("arena"));
    EXPECT_EQ(code_of(client->arena_alloc(Bytes(1))), EOPNOTSUPP);
    EXPECT_EQ(client->in_flight(), 0u);
}

TEST(Client, LengthsThatCantBeSent) {
    FakeDaemon daemon;
    const auto client = connect_to(daemon, Bytes(8 << 20));
    const uint64_t handle = open_file(*client);
    const auto large = filled(kWriteMax + 1, 1);
    EXPECT_EQ(code_of(client->write(handle, ByteOffset(0), large)), EINVAL);
    EXPECT_EQ(code_of(client->write_plain(handle, ByteOffset(0), large)), EMSGSIZE);
    EXPECT_EQ(code_of(client->write(handle, ByteOffset(0), {})), EINVAL);
    must(client->write(handle, ByteOffset(0), std::span(large).first(kWriteMax)));
    std::vector<std::byte> back(kReadMax + 1);
    EXPECT_EQ(code_of(client->read(handle, ByteOffset(0), back)), EMSGSIZE);
    EXPECT_EQ(code_of(client->read(handle, ByteOffset(0), {})), EINVAL);
    EXPECT_EQ(code_of(client->write_batch({})), EINVAL);
    const std::vector<BatchPart> many(kBatchRangesMax + 1,
                                      {handle, ByteOffset(0), std::span(large).first(1)});
    EXPECT_EQ(code_of(client->write_batch(many)), EMSGSIZE);
    must(client->write_batch(std::span(many).first(kBatchRangesMax)));
    // The daemon's log takes 1 MiB.
    const BatchPart halves[] = {{handle, ByteOffset(0), std::span(large).first(512 << 10)},
                                {handle, ByteOffset(0), std::span(large).first((512 << 10) + 1)}};
    EXPECT_EQ(code_of(client->write_batch(halves)), EMSGSIZE);
    EXPECT_EQ(code_of(client->open(std::string(kPathMax + 1, '/'), kOpenRead)), ENAMETOOLONG);
    // Past the largest offset: the daemon refuses.
    EXPECT_EQ(code_of(client->write(handle, ByteOffset(INT64_MAX), std::span(large).first(1))),
              EFBIG);
}

TEST(Client, ArenaMemoryIsNotCopied) {
    FakeDaemon daemon;
    const auto client = connect_to(daemon);
    const uint64_t handle = open_file(*client);
    const auto memory = must(client->arena_alloc(Bytes(32768)));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(memory.data()) % 4096, 0u);
    std::ranges::fill(memory, std::byte{5});
    must(client->write(handle, ByteOffset(0), memory.first(16384)));
    // The whole arena but this part is the caller's too: there is nowhere to copy to.
    const auto rest = must(client->arena_alloc(Bytes((1 << 20) - 32768)));
    EXPECT_EQ(must(client->read(handle, ByteOffset(0), memory.subspan(16384 + 7, 1000))),
              Bytes(1000));
    const BatchPart parts[] = {{handle, ByteOffset(0), memory.first(1000)},
                               {handle, ByteOffset(4096), rest.first(200'000)}};
    must(client->write_batch(parts));
    EXPECT_EQ(daemon.inline_payloads(), 0);
    EXPECT_EQ(daemon.file().size(), 204'096u);
    client->arena_free(rest);
    client->arena_free(memory);
    client->arena_free(memory);  // twice: nothing
    EXPECT_EQ(must(client->arena_alloc(Bytes(1 << 20))).size(), 1u << 20);
}

TEST(Client, CallersMemoryMayChangeAfterSubmit) {
    FakeDaemon daemon;
    const auto client = connect_to(daemon);
    const uint64_t handle = open_file(*client);
    auto data = filled(4096, 1);
    must(client->submit_write(handle, ByteOffset(0), data));
    data = filled(4096, 2);
    reap_all(*client, 1);
    EXPECT_EQ(daemon.file(), filled(4096, 1));
}

TEST(Client, OwnedVolumesAreOpenedByPath) {
    FakeDaemon daemon({TargetKind::Owned, 16});
    const auto client = connect_to(daemon);
    EXPECT_EQ(client->daemon().target, TargetKind::Owned);
    EXPECT_EQ(must(client->open("/dir/file", kOpenRead)).inode, 12u);
    EXPECT_EQ(code_of(client->open("file", kOpenRead)), EINVAL);
    EXPECT_EQ(code_of(client->open(0, kOpenRead)), EINVAL);  // by descriptor
}

TEST(Client, UnusableDescriptor) {
    FakeDaemon daemon;
    const auto client = connect_to(daemon);
    EXPECT_EQ(code_of(client->open(1 << 20, kOpenRead)), EBADF);
    must(client->ping());
}

TEST(Client, ConnectsToAPath) {
    const TempDir dir;
    const std::string path = dir.file("sock");
    const auto refused = Client::connect(path);
    EXPECT_EQ(code_of(refused), ENOENT);
    EXPECT_THAT(refused.error().message, HasSubstr(path));
    EXPECT_EQ(code_of(Client::connect(std::string(200, 'x'))), ENAMETOOLONG);
    FakeDaemon daemon(path, {});
    const auto client = must(Client::connect(path));
    must(client->ping());
}

TEST(SpinPolicy, SpinsOnlyWhileAnswersAreFast) {
    using std::chrono::microseconds;
    SpinPolicy spin(microseconds(50));
    EXPECT_TRUE(spin.worthwhile());
    for (int i = 0; i < 100; ++i) spin.measured(microseconds(10));
    EXPECT_TRUE(spin.worthwhile());
    // Durable writes.
    for (int i = 0; i < 10; ++i) spin.measured(microseconds(300));
    EXPECT_FALSE(spin.worthwhile());
    // Fast answers again, with the waking.
    for (int i = 0; i < 20; ++i) spin.measured(microseconds(60));
    EXPECT_TRUE(spin.worthwhile());
    // One that took a minute.
    spin.measured(std::chrono::minutes(1));
    for (int i = 0; i < 10; ++i) spin.measured(microseconds(60));
    EXPECT_TRUE(spin.worthwhile());
    EXPECT_FALSE(SpinPolicy(microseconds(0)).worthwhile());
}

TEST(ClientArena, GivesAndTakesBack) {
    std::mt19937_64 random(4);
    const auto arena = must(ClientArena::create(Bytes(64 * 4096 - 5)));
    EXPECT_EQ(arena->size(), Bytes(64 * 4096));
    EXPECT_NE(fcntl(arena->fd(), F_GET_SEALS) & F_SEAL_SHRINK, 0);
    EXPECT_FALSE(arena->allocate(0));
    EXPECT_FALSE(arena->allocate(UINT64_MAX));
    std::map<uint64_t, uint64_t> used;
    for (int round = 0; round < 20'000; ++round) {
        if (random() % 2 == 0 && !used.empty()) {
            const auto which = std::next(used.begin(), static_cast<long>(random() % used.size()));
            arena->release(which->first);
            used.erase(which);
        } else if (const uint64_t length = 1 + random() % 40'000;
                   const auto offset = arena->allocate(length)) {
            ASSERT_EQ(*offset % 4096, 0u);
            ASSERT_LE(*offset + length, arena->size().value());
            const auto next = used.lower_bound(*offset);
            ASSERT_TRUE(next == used.end() || *offset + length <= next->first);
            ASSERT_TRUE(next == used.begin() ||
                        std::prev(next)->first + std::prev(next)->second <= *offset);
            used.emplace(*offset, length);
        }
    }
    for (const auto& [offset, length] : used) arena->release(offset);
    EXPECT_EQ(arena->allocate(64 * 4096), 0u);
}

}  // namespace
}  // namespace atomic4::test
