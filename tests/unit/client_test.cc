// The C++ client against a daemon in memory.
#include "client/client.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <poll.h>
#include <sys/socket.h>

#include <future>
#include <random>

#include "support/bytes.h"
#include "support/command.h"
#include "support/fake_daemon.h"

namespace atomic4::test {
namespace {

using namespace wire;
using std::chrono::milliseconds;
using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

constexpr Bytes kNoArena(0);

template <class T>
T must(Result<T> result) {
    if (!result) throw std::runtime_error(result.error().message);
    if constexpr (!std::is_void_v<T>) return std::move(*result);
}
template <class T>
int code_of(const Result<T>& result) {
    return result ? 0 : result.error().code;
}

std::unique_ptr<Client> connect_to(FakeDaemon& daemon, Bytes arena = Bytes(1 << 20)) {
    return must(Client::from_socket(daemon.client_end(), {arena, std::chrono::microseconds(50)}));
}
uint64_t open_file(Client& client) {
    const UniqueFd fd(::open("/dev/null", O_RDWR | O_CLOEXEC));
    return must(client.open(fd.get(), kOpenRead | kOpenWrite)).handle;
}

std::vector<Completion> reap_all(Client& client, size_t count) {
    std::vector<Completion> all;
    while (all.size() < count) {
        auto some = client.reap(count - all.size());
        if (some.empty()) break;
        std::ranges::move(some, std::back_inserter(all));
    }
    return all;
}
std::vector<uint64_t> tags_of(const std::vector<Completion>& completions) {
    std::vector<uint64_t> tags;
    for (const Completion& completion : completions) tags.push_back(completion.tag);
    return tags;
}

std::vector<int> codes_of(const std::vector<Completion>& completions) {
    std::vector<int> codes;
    for (const Completion& completion : completions) codes.push_back(completion.code);
    return codes;
}

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
              EINVAL);
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

// --- the daemon goes away

TEST(Client, DaemonDiesWithRequestsPending) {
    FakeDaemon daemon;
    const auto client = connect_to(daemon);
    const uint64_t handle = open_file(*client);
    int writes = 0;
    std::promise<void> all_sent;
    daemon.on(Type::Write, [&](const Request& request) -> FakeDaemon::Answer {
        if (++writes == 1) return Packets{daemon.honest(request)};
        all_sent.get_future().wait();  // what follows lies unread in the socket
        return std::nullopt;
    });
    std::vector<uint64_t> tags;
    for (unsigned i = 0; i < 5; ++i)
        tags.push_back(must(client->submit_write(handle, ByteOffset(0), filled(4096, i))));
    all_sent.set_value();
    const auto completions = reap_all(*client, 5);
    EXPECT_EQ(tags_of(completions), tags);
    // An answer that was sent counts.
    EXPECT_EQ(completions[0].code, 0);
    for (size_t i = 1; i < 5; ++i) {
        EXPECT_EQ(completions[i].code, EIO);
        EXPECT_EQ(completions[i].reason,
                  "the daemon closed the connection; writes without an answer are in doubt: each "
                  "is all old or all new");
    }
    EXPECT_EQ(client->in_flight(), 0u);
    EXPECT_EQ(code_of(client->ping()), EIO);
    EXPECT_EQ(code_of(client->submit_write(handle, ByteOffset(0), filled(1, 1))), EIO);
    EXPECT_THAT(client->reap(1), IsEmpty());
    pollfd ready{client->fd(), POLLIN, 0};
    EXPECT_EQ(poll(&ready, 1, -1), 1);
}

TEST(Client, DaemonDiesDuringASynchronousCall) {
    FakeDaemon daemon;
    const auto client = connect_to(daemon);
    const uint64_t handle = open_file(*client);
    daemon.on(Type::Write, [](const Request&) -> FakeDaemon::Answer { return Packets(); });
    daemon.on(Type::Flush, [](const Request&) -> FakeDaemon::Answer { return std::nullopt; });
    const uint64_t tag = must(client->submit_write(handle, ByteOffset(0), filled(4096, 1)));
    const auto result = client->flush(handle);
    EXPECT_EQ(code_of(result), EIO);
    EXPECT_THAT(result.error().message, HasSubstr("in doubt"));
    EXPECT_THAT(tags_of(client->reap(10)), ElementsAre(tag));
}

TEST(Client, DaemonIsGoneWhenSending) {
    FakeDaemon daemon;
    const auto client = connect_to(daemon);
    const uint64_t handle = open_file(*client);
    daemon.on(Type::Flush, [](const Request&) -> FakeDaemon::Answer { return std::nullopt; });
    must(client->submit_flush(handle));
    pollfd ready{client->fd(), POLLIN, 0};
    EXPECT_EQ(poll(&ready, 1, -1), 1);
    const auto result = client->submit_flush(handle);
    EXPECT_EQ(code_of(result), EIO);
    EXPECT_THAT(codes_of(client->reap(10)), ElementsAre(EIO));
}

TEST(Client, DaemonRefusesTheGreeting) {
    FakeDaemon daemon;
    daemon.on(Type::Hello, [](const Request& request) -> FakeDaemon::Answer {
        return Packets{
            encode_error(request.type, request.tag, Error{EMFILE, "too many connections"})};
    });
    const auto refused = Client::from_socket(daemon.client_end());
    EXPECT_EQ(code_of(refused), EMFILE);
    EXPECT_EQ(refused.error().message, "HELLO: too many connections");
}

// --- the daemon lies

struct Lie {
    const char* name;
    std::function<Packets(Packet)> tell;
};

template <class T>
void put(Packet& packet, size_t offset, T value) {
    const LittleEndian<T> field = value;
    std::memcpy(packet.data() + offset, &field, sizeof field);
}
Packets resized(Packet packet, size_t size, bool consistent) {
    packet.resize(size);
    if (consistent)
        put<uint32_t>(packet, offsetof(ReplyHeader, length), static_cast<uint32_t>(size));
    return {packet};
}
template <class T>
Lie field_lie(const char* name, size_t offset, T value) {
    return {name, [=](Packet packet) {
                put<T>(packet, offset, value);
                return Packets{packet};
            }};
}

constexpr size_t kBody = sizeof(ReplyHeader);

const std::vector<Lie> kLies{
    field_lie<uint64_t>("tag 0", offsetof(ReplyHeader, tag), 0),
    field_lie<uint64_t>("tag never given", offsetof(ReplyHeader, tag), UINT64_MAX),
    field_lie<uint64_t>("tag given before", offsetof(ReplyHeader, tag), 1 << 8),
    field_lie<uint16_t>("type of another", offsetof(ReplyHeader, type), kReplyBit | 1),
    field_lie<uint16_t>("type of a request", offsetof(ReplyHeader, type), 6),
    field_lie<uint16_t>("flags", offsetof(ReplyHeader, flags), 1),
    field_lie<uint32_t>("length 0", offsetof(ReplyHeader, length), 0),
    field_lie<uint32_t>("length too large", offsetof(ReplyHeader, length), UINT32_MAX),
    field_lie<uint32_t>("error outside the set", offsetof(ReplyHeader, error), 4095),
    field_lie<uint32_t>("error negative", offsetof(ReplyHeader, error), UINT32_MAX),
    field_lie<uint32_t>("error with a body", offsetof(ReplyHeader, error), EIO),
    field_lie<uint32_t>("reason without error", offsetof(ReplyHeader, reason_length), 1),
    field_lie<uint32_t>("reason too long", offsetof(ReplyHeader, reason_length), UINT32_MAX),
    {"twice", [](Packet packet) { return Packets{packet, packet}; }},
    {"one byte more", [](Packet packet) { return resized(packet, packet.size() + 1, true); }},
    {"a byte of a header", [](Packet packet) { return resized(packet, 1, false); }},
    {"cut, length kept", [](Packet packet) { return resized(packet, packet.size() - 1, false); }},
    {"a huge packet", [](Packet packet) { return resized(packet, kPacketMax + 1, true); }},
};
const std::vector<Lie> kReadLies{
    field_lie<uint64_t>("read more than asked", kBody, 1 << 20),
    field_lie<uint64_t>("read 2^64-1", kBody, UINT64_MAX),
    field_lie<uint64_t>("read one byte less than came", kBody, 99),
};
const std::vector<Lie> kStatxLies{
    field_lie<uint32_t>("engine", kBody + offsetof(StatxReply, engine), 3),
    field_lie<uint32_t>("ack mode", kBody + offsetof(StatxReply, ack_mode), 3),
    field_lie<uint32_t>("atomic", kBody + offsetof(StatxReply, atomic), 2),
    field_lie<uint32_t>("reason", kBody + offsetof(StatxReply, why_not_native_length), UINT32_MAX),
    field_lie<uint32_t>("reason", kBody + offsetof(StatxReply, why_strict_length), 6),
};
const std::vector<Lie> kWriteLies{
    field_lie<uint32_t>("engine", kBody, 3),
    field_lie<uint32_t>("ack mode", kBody + 4, UINT32_MAX),
};

int call(Client& client, Type type, uint64_t handle) {
    std::vector<std::byte> memory(100);
    switch (type) {
        case Type::Read:
            return code_of(client.read(handle, ByteOffset(0), memory));
        case Type::Write:
            return code_of(client.write(handle, ByteOffset(0), memory));
        case Type::Statx:
            return code_of(client.statx(handle));
        case Type::Stats:
            return code_of(client.stats());
        default:
            return code_of(client.ping());
    }
}

void expect_caught(Type type, const Lie& lie) {
    SCOPED_TRACE(lie.name);
    for (const Bytes arena : {kNoArena, Bytes(1 << 20)}) {
        FakeDaemon daemon;
        const auto client = connect_to(daemon, arena);
        const uint64_t handle = open_file(*client);
        must(client->write(handle, ByteOffset(0), filled(200, 1)));
        daemon.on(type, [&](const Request& request) -> FakeDaemon::Answer {
            return lie.tell(daemon.honest(request));
        });
        // A second answer is seen by the next call.
        int code = call(*client, type, handle);
        if (code == 0) code = code_of(client->ping());
        // With an arena the count alone can't show that bytes are missing.
        if (code == 0 && arena != kNoArena && std::string_view(lie.name).starts_with("read one"))
            continue;
        EXPECT_EQ(code, EPROTO);
        EXPECT_EQ(code_of(client->ping()), EPROTO);
        EXPECT_EQ(client->in_flight(), 0u);
    }
}

TEST(ClientAgainstLies, OfEveryAnswer) {
    for (const Type type : {Type::Read, Type::Write, Type::Statx, Type::Ping})
        for (const Lie& lie : kLies) {
            // PING's answer has no body: with an error and no reason it is a plain error.
            if (type == Type::Ping && std::string_view(lie.name) == "error with a body") continue;
            expect_caught(type, lie);
        }
}

TEST(ClientAgainstLies, OfOneAnswer) {
    for (const Lie& lie : kReadLies) expect_caught(Type::Read, lie);
    for (const Lie& lie : kStatxLies) expect_caught(Type::Statx, lie);
    for (const Lie& lie : kWriteLies) expect_caught(Type::Write, lie);
}

TEST(ClientAgainstLies, AnswersCutAnywhere) {
    for (const Type type : {Type::Read, Type::Write, Type::Statx})
        for (size_t size = 1; size < 130; size += size < 40 ? 1 : 9) {
            FakeDaemon daemon;
            const auto client = connect_to(daemon, kNoArena);
            const uint64_t handle = open_file(*client);
            must(client->write(handle, ByteOffset(0), filled(200, 1)));
            bool cut = false;
            daemon.on(type, [&](const Request& request) -> FakeDaemon::Answer {
                const Packet packet = daemon.honest(request);
                cut = size < packet.size();
                return cut ? resized(packet, size, size >= kBody) : Packets{packet};
            });
            const int code = call(*client, type, handle);
            EXPECT_EQ(code, cut ? EPROTO : 0) << size;
        }
}

TEST(ClientAgainstLies, OfTheGreeting) {
    for (const size_t field : {offsetof(HelloReply, version), offsetof(HelloReply, target),
                               offsetof(HelloReply, reserved)}) {
        FakeDaemon daemon;
        daemon.on(Type::Hello, [&](const Request& request) -> FakeDaemon::Answer {
            Packet packet = daemon.honest(request);
            put<uint32_t>(packet, kBody + field, 9);
            return Packets{packet};
        });
        EXPECT_EQ(code_of(Client::from_socket(daemon.client_end())), EPROTO);
    }
    // Limits beyond the protocol's are not believed.
    FakeDaemon daemon({TargetKind::Mounted, UINT32_MAX});
    const auto client = connect_to(daemon);
    EXPECT_EQ(client->daemon().outstanding_max, kOutstandingMax);
}

TEST(ClientAgainstLies, RandomlyChangedAnswers) {
    std::mt19937_64 random(20240703);
    for (int round = 0; round < 300; ++round) {
        FakeDaemon daemon;
        const auto client = connect_to(daemon, Bytes(round % 2 == 0 ? 0 : 1 << 20));
        const uint64_t handle = open_file(*client);
        constexpr Type kTypes[] = {Type::Read, Type::Write, Type::Statx, Type::Stats};
        const Type type = kTypes[random() % std::size(kTypes)];
        daemon.on(type, [&](const Request& request) -> FakeDaemon::Answer {
            Packet packet = daemon.honest(request);
            for (int i = 0; i < 2; ++i)
                packet[random() % packet.size()] = static_cast<std::byte>(random());
            return Packets{packet};
        });
        call(*client, type, handle);  // whatever it says, it comes back
    }
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
