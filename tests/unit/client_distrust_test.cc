// The C++ client against a daemon that goes away, or lies: an error of its own, and never a hang.
#include <poll.h>
#include <sys/socket.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <future>
#include <optional>
#include <random>
#include <thread>

#include "unit/client_fixture.h"

namespace atomic4::test {
namespace {

using namespace wire;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

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

// A daemon that is killed with requests unread in its socket: the kernel tells the client so before
// it gives out the answers that had been sent.
class ClientOfAKilledDaemon : public testing::Test {
  protected:
    ClientOfAKilledDaemon() : client_(connect_to(*daemon_)), handle_(open_file(*client_)) {
        std::promise<void> all_sent;
        auto sent = all_sent.get_future().share();
        daemon_->on(Type::Write, [this, sent](const Request& request) -> FakeDaemon::Answer {
            sent.wait();
            if (++writes_ > kAnswered) return std::nullopt;
            return Packets{daemon_->honest(request)};
        });
        for (unsigned i = 0; i < kAnswered + 3; ++i)
            tags_.push_back(must(client_->submit_write(handle_, ByteOffset(0), filled(4096, i))));
        all_sent.set_value();
        // Closes its socket, when it has come to its end.
        while (writes_ <= kAnswered) std::this_thread::yield();
        daemon_.reset();
    }
    void expect_completions() {
        const auto completions = reap_all(*client_, tags_.size());
        EXPECT_EQ(tags_of(completions), tags_);
        std::vector<int> codes(kAnswered, 0);
        codes.resize(tags_.size(), EIO);
        EXPECT_EQ(codes_of(completions), codes);
        EXPECT_EQ(client_->in_flight(), 0u);
        EXPECT_EQ(code_of(client_->ping()), EIO);
    }
    static constexpr int kAnswered = 5;
    std::atomic<int> writes_ = 0;
    std::optional<FakeDaemon> daemon_{std::in_place};
    std::unique_ptr<Client> client_;
    uint64_t handle_;
    std::vector<uint64_t> tags_;
};

TEST_F(ClientOfAKilledDaemon, TheKernelTellsItFirst) {
    char byte = 0;
    EXPECT_EQ(::recv(client_->fd(), &byte, 1, MSG_DONTWAIT), -1);
    EXPECT_EQ(errno, ECONNRESET);
    expect_completions();
}

TEST_F(ClientOfAKilledDaemon, GetsItsAnswersByReaping) {
    expect_completions();
}

TEST_F(ClientOfAKilledDaemon, GetsItsAnswersWhenSendingFails) {
    EXPECT_EQ(code_of(client_->submit_flush(handle_)), EIO);
    expect_completions();
}

TEST_F(ClientOfAKilledDaemon, GetsItsAnswersWhenACallFails) {
    EXPECT_EQ(code_of(client_->write(handle_, ByteOffset(0), filled(4096, 9))), EIO);
    expect_completions();
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

}  // namespace
}  // namespace atomic4::test
