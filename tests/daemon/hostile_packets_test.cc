// Whatever can be put into a packet: the daemon answers or hangs up, and others don't notice.
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <random>

#include "daemon/volume_fixture.h"

namespace atomic4::test {
namespace {

using wire::Type;

const Identity kUser{12345, 12345, {}};
constexpr uint32_t kReadWrite = wire::kOpenRead | wire::kOpenWrite;

class HostilePackets : public DaemonTest {
  protected:
    void prepare() override {
        const std::string path = volume().file("data");
        ASSERT_EQ(::chmod(path.c_str(), 0666), 0);
        std::filesystem::permissions(volume().file(""), std::filesystem::perms(0755));
    }
    // An unprivileged client with the file open: it can do everything but freeze.
    WireClient client() {
        WireClient made = volume().client(kUser);
        handle_ = volume().open(made, "data", kReadWrite);
        return made;
    }
    // Somebody else's work goes on.
    void expect_service() {
        WireClient other = volume().client();
        const uint64_t handle = volume().open(other, "data", kReadWrite);
        const auto page = filled(kUnit, 0x42);
        EXPECT_EQ(other.write(handle, 0, page).error, 0u);
        const Answer read = other.read(handle, 0, kUnit);
        ASSERT_EQ(read.body.size(), sizeof(wire::ReadReply) + kUnit);
        EXPECT_TRUE(
            std::equal(page.begin(), page.end(), read.body.begin() + sizeof(wire::ReadReply)));
    }
    UniqueFd data_descriptor() const {
        return UniqueFd(::open(const_cast<HostilePackets*>(this)->volume().file("data").c_str(),
                               O_RDWR | O_CLOEXEC));
    }

    // One valid packet of each type but HELLO and ARENA, which come once.
    std::vector<Packet> valid_packets() const {
        std::vector<Packet> packets;
        wire::OpenRequest open{};
        open.flags = kReadWrite;
        packets.push_back(request_packet(Type::Open, 1, bytes_of(open)));
        open.path_length = 5;
        packets.push_back(request_packet(Type::Open, 2, bytes_of(open), bytes_of("/data")));
        packets.push_back(write_packet(3, handle_, 0, filled(4096, 1)));
        packets.push_back(write_packet(4, handle_, 5, filled(100, 2), wire::kWritePlain));
        packets.push_back(arena_write_packet(5, handle_, 0, kUnit, 4096));
        packets.push_back(read_packet(6, handle_, 0, 4096));
        wire::BatchRequest batch{};
        batch.count = 2;
        std::vector<wire::BatchRange> ranges(2);
        ranges[0].handle = ranges[1].handle = handle_;
        ranges[0].length = ranges[1].length = 4096;
        ranges[1].offset = 8192;
        Packet body;
        const auto range_bytes = std::as_bytes(std::span(ranges));
        const auto head = bytes_of(batch);
        body.assign(head.begin(), head.end());
        body.insert(body.end(), range_bytes.begin(), range_bytes.end());
        packets.push_back(request_packet(Type::Batch, 7, body, filled(8192, 3)));
        wire::HandleRequest handle{};
        handle.handle = handle_;
        for (const Type type : {Type::Statx, Type::Flush, Type::Close})
            packets.push_back(request_packet(type, 8, bytes_of(handle)));
        packets.push_back(request_packet(Type::Stats, 9, bytes_of(wire::StatsRequest{})));
        for (const Type type : {Type::Ping, Type::Freeze, Type::Thaw})
            packets.push_back(request_packet(type, 10));
        wire::HelloRequest hello{};
        hello.magic = wire::kMagic;
        hello.version_min = hello.version_max = 1;
        packets.push_back(request_packet(Type::Hello, 11, bytes_of(hello)));
        wire::ArenaRequest arena{};
        arena.size = 65536;
        packets.push_back(request_packet(Type::Arena, 12, bytes_of(arena)));
        return packets;
    }

    // Sends it: one answer with its tag, or the end of the connection, which is made anew.
    void expect_bearable(WireClient& client, const Packet& packet,
                         const std::vector<int>& descriptors = {}) {
        ++sent_;
        if (!client.send(packet, descriptors)) FAIL() << "sending: " << std::strerror(errno);
        const auto answer = client.receive();
        if (answer) {
            wire::RequestHeader header;
            ASSERT_GE(packet.size(), sizeof header);
            std::memcpy(&header, packet.data(), sizeof header);
            EXPECT_EQ(answer->tag, uint64_t{header.tag});
            ++(answer->error == 0 ? accepted_ : refused_);
        }
        if (!answer || answer->error == EPROTO) {
            EXPECT_TRUE(client.ends());
            client = this->client();
            ++ended_;
        }
    }

    uint64_t handle_ = 0;
    size_t sent_ = 0, accepted_ = 0, refused_ = 0, ended_ = 0;
};

TEST_P(HostilePackets, OutOfTurn) {
    for (uint16_t type = 0; type < 20; ++type) {
        if (type == static_cast<uint16_t>(Type::Hello)) continue;
        const WireClient early(volume().socket());
        EXPECT_TRUE(early.send(request_packet(static_cast<Type>(type), 1)));
        const auto answer = early.receive();
        ASSERT_TRUE(answer) << type;
        EXPECT_EQ(answer->error, uint32_t{EPROTO}) << type;
        EXPECT_TRUE(early.ends());
    }
    WireClient twice(volume().socket());
    EXPECT_EQ(twice.hello().error, 0u);
    EXPECT_EQ(twice.hello().error, uint32_t{EPROTO});
    EXPECT_TRUE(twice.ends());

    WireClient stranger(volume().socket());
    wire::HelloRequest hello{};
    hello.magic = {'G', 'E', 'T', ' ', '/', ' ', 'H', 'T'};
    hello.version_min = hello.version_max = 1;
    EXPECT_NE(stranger.ask(Type::Hello, bytes_of(hello)).error, 0u);

    WireClient newer(volume().socket());
    hello.magic = wire::kMagic;
    hello.version_min = 2;
    hello.version_max = 0xffffffff;
    EXPECT_EQ(newer.ask(Type::Hello, bytes_of(hello)).error, uint32_t{EOPNOTSUPP});
    hello.version_min = 3;
    hello.version_max = 1;
    EXPECT_NE(newer.ask(Type::Hello, bytes_of(hello)).error, 0u);
    EXPECT_EQ(newer.hello().error, 0u);  // it may greet again

    const UniqueFd memory(::memfd_create("arena", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    ASSERT_EQ(::ftruncate(memory.get(), 65536), 0);
    ASSERT_EQ(::fcntl(memory.get(), F_ADD_SEALS, F_SEAL_SHRINK), 0);
    EXPECT_EQ(newer.arena(memory.get(), 65536).error, 0u);
    EXPECT_EQ(newer.arena(memory.get(), 65536).error, uint32_t{EPROTO});
    EXPECT_TRUE(newer.ends());
    expect_service();
}

TEST_P(HostilePackets, EveryFieldAtItsLimits) {
    std::vector<uint64_t> values = {0, 1, 2, 3, 4, 5, 16, 255, 256, 257, 4095, 4096, 4097};
    for (const uint64_t limit :
         {uint64_t{wire::kInlineMax}, uint64_t{wire::kPacketMax}, wire::kArenaMax, wire::kReadMax,
          wire::kBatchMax, uint64_t{wire::kBatchRangesMax}, uint64_t{1} << 31, uint64_t{1} << 32,
          uint64_t{1} << 63, kFileSize})
        values.insert(values.end(), {limit - 1, limit, limit + 1});
    values.insert(values.end(), {~uint64_t{0}, ~uint64_t{0} - 4095, uint64_t{INT64_MAX}});
    WireClient bad = client();
    for (const Packet& valid : valid_packets()) {
        const size_t end =
            std::min(valid.size(), sizeof(wire::RequestHeader) + sizeof(wire::BatchRequest) +
                                       2 * sizeof(wire::BatchRange));
        for (size_t at = 0; at < end; at += 4) {
            for (const uint64_t value : values) {
                for (const size_t width : {size_t{4}, size_t{8}}) {
                    if (at + width > end || (width == 4 && value > 0xffffffff)) continue;
                    Packet packet = valid;
                    std::memcpy(packet.data() + at, &value, width);
                    // FLUSH and the like would be a second one of a handle that is closed.
                    expect_bearable(bad, packet);
                    if (HasFatalFailure()) return;
                }
            }
        }
        bad = client();
    }
    fmt::print("{} packets: {} carried out, {} refused, {} ended the connection\n", sent_,
               accepted_, refused_, ended_);
    EXPECT_GT(sent_, 3000u);
    expect_service();
}

TEST_P(HostilePackets, RandomOnes) {
    std::mt19937_64 random(test_seed());
    const auto below = [&](uint64_t n) { return random() % n; };
    int ends[2];
    ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    const UniqueFd read_end(ends[0]), write_end(ends[1]);
    const UniqueFd directory(::open("/", O_RDONLY | O_CLOEXEC));
    const UniqueFd path(::open("/etc/passwd", O_PATH | O_CLOEXEC));
    const UniqueFd memory(::memfd_create("m", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    const UniqueFd data = volume().mounted() ? data_descriptor() : UniqueFd();
    const size_t before = volume().descriptors();
    {
        WireClient bad = client();
        for (int i = 0; i < 4000; ++i) {
            const std::vector<int> any = {read_end.get(), directory.get(),
                                          path.get(),     memory.get(),
                                          bad.fd(),       data ? data.get() : write_end.get()};
            const auto all = valid_packets();
            Packet packet = all[below(all.size())];
            for (uint64_t n = below(4); n > 0; --n)
                packet[below(std::min<size_t>(packet.size(), 96))] =
                    static_cast<std::byte>(below(3) == 0 ? below(256) : below(3));
            if (below(8) == 0) packet.resize(below(packet.size() + 200));
            if (below(4) != 0 && packet.size() >= sizeof(wire::RequestHeader)) set_length(packet);
            std::vector<int> descriptors;
            for (uint64_t n = below(3) == 0 ? below(4) : 0; n > 0; --n)
                descriptors.push_back(any[below(any.size())]);
            // The one in the air would keep the connection itself alive.
            if (packet.empty()) std::erase(descriptors, bad.fd());
            expect_bearable(bad, packet, descriptors);
            if (HasFatalFailure()) return;
        }
    }
    fmt::print("{} packets: {} carried out, {} refused, {} ended the connection\n", sent_,
               accepted_, refused_, ended_);
    EXPECT_TRUE(volume().descriptors_come_down_to(before));
    expect_service();
}

TEST_P(HostilePackets, TooShortAndTooLong) {
    WireClient bad = client();
    for (const Packet& valid : valid_packets()) {
        const size_t head = std::min<size_t>(valid.size(), 120);
        for (size_t length = 0; length < head; ++length) {
            Packet cut(valid.begin(), valid.begin() + static_cast<ptrdiff_t>(length));
            for (const bool says_so : {false, true}) {
                if (says_so && length < sizeof(wire::RequestHeader)) continue;
                if (says_so) set_length(cut);
                expect_bearable(bad, cut);
                if (HasFatalFailure()) return;
            }
        }
        Packet longer = valid;
        longer.push_back(std::byte{0});
        set_length(longer);
        expect_bearable(bad, longer);
    }
    Packet most = request_packet(Type::Ping, 77, filled(wire::kPacketMax - 16, 0));
    EXPECT_TRUE(bad.send(most));
    auto answer = bad.receive();
    ASSERT_TRUE(answer);
    EXPECT_EQ(answer->error, uint32_t{EINVAL});
    most.push_back(std::byte{0});
    set_length(most);
    EXPECT_TRUE(bad.send(most));
    answer = bad.receive();
    ASSERT_TRUE(answer);
    EXPECT_EQ(answer->error, uint32_t{EPROTO});
    EXPECT_TRUE(bad.ends());
    expect_service();
}

TEST_P(HostilePackets, AnyNumberOfAnyDescriptors) {
    const size_t before = volume().descriptors();
    {
        const UniqueFd file(::open("/etc/passwd", O_RDONLY | O_CLOEXEC));
        const UniqueFd event(::eventfd(0, EFD_CLOEXEC));
        wire::OpenRequest open{};
        open.flags = wire::kOpenRead;
        wire::ArenaRequest arena{};
        arena.size = 4096;
        // None has a file open: while so many are being closed this user can pass none.
        WireClient bad = volume().client(kUser);
        for (const size_t count : {0, 1, 2, 3, 60, 61, 200, 253}) {
            for (const int fd : {file.get(), event.get(), bad.fd()}) {
                const std::vector<int> many(count, fd);
                const Answer opened = bad.ask(Type::Open, bytes_of(open), {}, many);
                EXPECT_NE(opened.error, 0u) << count;
                EXPECT_NE(opened.error, uint32_t{EPIPE}) << count << ": the connection was closed";
                // EBUSY: they were lost because too many are being closed.
                const Answer shared = bad.ask(Type::Arena, bytes_of(arena), {}, many);
                EXPECT_TRUE(shared.error == EINVAL || (count > 0 && shared.error == EBUSY))
                    << shared.reason;
                const Answer ping = bad.ask(Type::Ping, {}, {}, many);
                EXPECT_TRUE(ping.error == (count == 0 ? 0 : EINVAL) ||
                            (count > 0 && ping.error == EBUSY))
                    << ping.reason;
            }
        }
        // In packets that end the connection, one without any byte among them.
        for (const size_t length : {0, 1, 15}) {
            for (int i = 0; i < 20; ++i) {
                const WireClient ending = volume().client(kUser);
                EXPECT_TRUE(ending.send(Packet(length), std::vector<int>(10, file.get())));
                EXPECT_TRUE(ending.ends());
            }
        }
        // Still unread when the connection ends.
        for (int i = 0; i < 20; ++i) {
            const WireClient ending = volume().client(kUser);
            for (int n = 0; n < 10; ++n)
                ending.send_now(request_packet(Type::Ping, 1), std::vector<int>(10, file.get()));
        }
    }
    EXPECT_TRUE(volume().descriptors_come_down_to(before));
    expect_service();
}

TEST_P(HostilePackets, ADescriptorThatTheDaemonHasNoRoomForMayBePassedAgain) {
    WireClient client = volume().client(kUser);
    const UniqueFd memory(::memfd_create("arena", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    ASSERT_EQ(::ftruncate(memory.get(), 4096), 0);
    ASSERT_EQ(::fcntl(memory.get(), F_ADD_SEALS, F_SEAL_SHRINK), 0);
    const pid_t daemon = volume().daemon().worker();
    rlimit before{};
    ASSERT_EQ(::prlimit(daemon, RLIMIT_NOFILE, nullptr, &before), 0);
    rlimit none = before;
    none.rlim_cur = 0;
    ASSERT_EQ(::prlimit(daemon, RLIMIT_NOFILE, &none, nullptr), 0);
    wire::ArenaRequest request{};
    request.size = 4096;
    const Answer lost = client.ask(Type::Arena, bytes_of(request), {}, {memory.get()});
    const Answer ping = client.ask(Type::Ping);
    ASSERT_EQ(::prlimit(daemon, RLIMIT_NOFILE, &before, nullptr), 0);
    EXPECT_EQ(lost.error, uint32_t{EBUSY}) << lost.reason;
    EXPECT_THAT(lost.reason, ::testing::HasSubstr("try again"));
    EXPECT_EQ(ping.error, 0u);
    EXPECT_EQ(client.arena(memory.get(), 4096).error, 0u);
    expect_service();
}

TEST_P(HostilePackets, NoMoreHandlesThanAllowed) {
    WireClient client = volume().client(kUser);
    std::vector<uint64_t> handles;
    for (uint32_t i = 0; i < wire::kHandlesMax; ++i)
        handles.push_back(volume().open(client, "data", kReadWrite));
    const UniqueFd data = volume().mounted() ? data_descriptor() : UniqueFd();
    const auto once_more = [&] {
        return client
            .open(data ? data.get() : -1, kReadWrite, wire::WireEngine::Auto, data ? "" : "/data")
            .error;
    };
    EXPECT_EQ(once_more(), uint32_t{EMFILE});
    EXPECT_EQ(client.with_handle(Type::Close, handles[500]).error, 0u);
    EXPECT_EQ(once_more(), 0u);
    expect_service();
}

INSTANTIATE_TEST_SUITE_P(Volume, HostilePackets, ::testing::Bool(), volume_name);

}  // namespace
}  // namespace atomic4::test
