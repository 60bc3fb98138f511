// The daemon's side of the protocol: what decode accepts, and with which error it refuses.
#include "client/message.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "support/bytes.h"
#include "support/wire_packets.h"

namespace atomic4::test {
namespace {

using namespace wire;

constexpr uint64_t kMax = UINT64_MAX;
constexpr uint64_t kFileMax = INT64_MAX;
constexpr Bytes kArena(1 << 20);

Connection mounted() {
    return {true, TargetKind::Mounted, kArena};
}
Connection owned() {
    return {true, TargetKind::Owned, kArena};
}
Connection without_arena() {
    return {true, TargetKind::Mounted, Bytes(0)};
}

HelloRequest hello(uint32_t lowest = 1, uint32_t highest = 1) {
    HelloRequest request;
    request.magic = kMagic;
    request.version_min = lowest;
    request.version_max = highest;
    return request;
}
ArenaRequest arena(uint64_t size) {
    ArenaRequest request;
    request.size = size;
    return request;
}
OpenRequest open_request(uint32_t path_length = 0) {
    OpenRequest request;
    request.flags = kOpenRead | kOpenWrite;
    request.path_length = path_length;
    return request;
}
WriteRequest write_request(uint64_t offset, uint64_t length, Source source = Source::Arena) {
    WriteRequest request;
    request.handle = 7;
    request.offset = offset;
    request.length = length;
    request.source = static_cast<uint32_t>(source);
    return request;
}
ReadRequest read_request(uint64_t offset, uint64_t length, Source source = Source::Arena) {
    ReadRequest request;
    request.handle = 7;
    request.offset = offset;
    request.length = length;
    request.source = static_cast<uint32_t>(source);
    return request;
}
HandleRequest handle_request(uint64_t handle) {
    HandleRequest request;
    request.handle = handle;
    return request;
}
BatchRange batch_range(uint64_t offset, uint64_t length, uint64_t arena_offset = 0) {
    BatchRange range;
    range.handle = 7;
    range.offset = offset;
    range.length = length;
    range.arena_offset = arena_offset;
    return range;
}
Packet batch(const std::vector<BatchRange>& ranges, Source source = Source::Arena,
             std::span<const std::byte> payload = {}) {
    BatchRequest request;
    request.count = static_cast<uint32_t>(ranges.size());
    request.source = static_cast<uint32_t>(source);
    Packet tail(ranges.size() * sizeof(BatchRange));
    if (!ranges.empty()) std::memcpy(tail.data(), ranges.data(), tail.size());
    tail.insert(tail.end(), payload.begin(), payload.end());
    return request_packet(Type::Batch, 9, bytes_of(request), tail);
}

// 0, or the error.
int refusal(const Packet& packet, const Connection& connection = mounted(), size_t fds = 0) {
    const auto result = decode(packet, fds, connection);
    if (!result) {
        EXPECT_FALSE(result.error().message.empty());
        return result.error().code;
    }
    EXPECT_TRUE(holds(*result, packet, connection));
    return 0;
}
template <class Request>
int refusal(Type type, const Request& request, const Connection& connection = mounted(),
            size_t fds = 0, std::span<const std::byte> tail = {}) {
    return refusal(request_packet(type, 9, bytes_of(request), tail), connection, fds);
}

template <class Body>
Body must_decode(const Packet& packet, const Connection& connection = mounted(), size_t fds = 0) {
    const auto result = decode(packet, fds, connection);
    if (!result) throw std::runtime_error(result.error().message);
    EXPECT_TRUE(holds(*result, packet, connection));
    return std::get<Body>(result->body);
}

// One valid packet of each kind.
struct Sample {
    Packet packet;
    Connection connection;
    size_t fds;
};
std::vector<Sample> samples() {
    const auto payload = filled(100, 3);
    StatsRequest stats;
    stats.format = 1;
    std::vector<Sample> all{
        {request_packet(Type::Hello, 1, bytes_of(hello())), {}, 0},
        {request_packet(Type::Arena, 2, bytes_of(arena(4096))), without_arena(), 1},
        {request_packet(Type::Open, 3, bytes_of(open_request())), mounted(), 1},
        {request_packet(Type::Open, 3, bytes_of(open_request(2)), bytes_of("/f")), owned(), 0},
        {request_packet(Type::Write, 4, bytes_of(write_request(4096, 4096))), mounted(), 0},
        {request_packet(Type::Write, 4, bytes_of(write_request(0, 100, Source::Inline)), payload),
         without_arena(), 0},
        {batch({batch_range(0, 4096), batch_range(8192, 4096, 4096)}), mounted(), 0},
        {batch({batch_range(0, 60), batch_range(60, 40)}, Source::Inline, payload), mounted(), 0},
        {request_packet(Type::Read, 6, bytes_of(read_request(0, 4096))), mounted(), 0},
        {request_packet(Type::Stats, 8, bytes_of(stats)), mounted(), 0},
    };
    for (const Type type : {Type::Statx, Type::Flush, Type::Close})
        all.push_back({request_packet(type, 7, bytes_of(handle_request(5))), mounted(), 0});
    for (const Type type : {Type::Ping, Type::Freeze, Type::Thaw})
        all.push_back({request_packet(type, kMax), mounted(), 0});
    return all;
}

TEST(Message, HeaderTooShort) {
    for (size_t size = 0; size < sizeof(RequestHeader); ++size) {
        EXPECT_EQ(decode_header(Packet(size)).error().code, EPROTO);
        EXPECT_EQ(refusal(Packet(size)), EPROTO);
    }
    const auto header = decode_header(request_packet(Type::Ping, 0x1122334455667788));
    ASSERT_TRUE(header);
    EXPECT_EQ(header->tag, 0x1122334455667788u);
}

TEST(Message, TagAndTypeAreTheRequests) {
    for (const Sample& sample : samples()) {
        const auto request = decode(sample.packet, sample.fds, sample.connection);
        ASSERT_TRUE(request) << request.error().message;
        const auto header = decode_header(sample.packet);
        EXPECT_EQ(request->tag, header->tag);
        EXPECT_EQ(static_cast<uint16_t>(request->type), header->type);
    }
}

// Each kind of message: cut at every byte, one byte longer, with flags, with wrong descriptors.
TEST(Message, LengthFlagsAndDescriptorsOfEveryType) {
    for (const Sample& sample : samples()) {
        const auto check = [&](const Packet& packet) {
            return refusal(packet, sample.connection, sample.fds);
        };
        EXPECT_EQ(check(sample.packet), 0);
        for (size_t size = sizeof(RequestHeader); size < sample.packet.size(); ++size) {
            Packet cut(sample.packet.begin(), sample.packet.begin() + static_cast<long>(size));
            EXPECT_EQ(check(cut), EINVAL) << size;  // the header's length is not the packet's
            set_length(cut);
            EXPECT_EQ(check(cut), EINVAL) << size;
        }
        for (const size_t length :
             {size_t{0}, sample.packet.size() - 1, sample.packet.size() + 1}) {
            Packet wrong = sample.packet;
            const le32 field = static_cast<uint32_t>(length);
            std::memcpy(wrong.data() + offsetof(RequestHeader, length), &field, sizeof field);
            EXPECT_EQ(check(wrong), EINVAL);
        }
        Packet longer = sample.packet;
        longer.push_back(std::byte{0});
        EXPECT_EQ(check(longer), EINVAL);
        set_length(longer);
        EXPECT_EQ(check(longer), EINVAL);
        for (int bit = 0; bit < 16; ++bit) {
            Packet flagged = sample.packet;
            flagged[static_cast<size_t>(2 + bit / 8)] |= static_cast<std::byte>(1 << (bit % 8));
            EXPECT_EQ(check(flagged), EINVAL);
        }
        for (const size_t fds : {0, 1, 2, 253})
            EXPECT_EQ(refusal(sample.packet, sample.connection, fds),
                      fds == sample.fds ? 0 : EINVAL);
    }
}

TEST(Message, HelloComesFirstAndOnce) {
    for (const Sample& sample : samples()) {
        Connection other = sample.connection;
        other.greeted = !other.greeted;
        EXPECT_EQ(refusal(sample.packet, other, sample.fds), EPROTO);
    }
    EXPECT_EQ(refusal(request_packet(static_cast<Type>(99), 1), Connection{}), EPROTO);
}

TEST(Message, UnknownTypes) {
    for (const unsigned type : {0u, 14u, 0x7fffu, 0x8001u, 0xffffu})
        EXPECT_EQ(refusal(request_packet(static_cast<Type>(type), 1)), EOPNOTSUPP) << type;
}

TEST(Message, LongestPacket) {
    Packet packet = request_packet(Type::Ping, 1);
    packet.resize(kPacketMax);
    set_length(packet);
    EXPECT_EQ(refusal(packet), EINVAL);
    packet.resize(kPacketMax + 1);
    set_length(packet);
    EXPECT_EQ(refusal(packet), EMSGSIZE);
}

TEST(Message, HelloVersions) {
    for (const auto& [lowest, highest, expected] : {std::tuple(1u, 1u, 0),
                                                    {0u, 1u, 0},
                                                    {1u, 2u, 0},
                                                    {0u, UINT32_MAX, 0},
                                                    {2u, 3u, EOPNOTSUPP},
                                                    {0u, 0u, EOPNOTSUPP},
                                                    {UINT32_MAX, UINT32_MAX, EOPNOTSUPP},
                                                    {2u, 1u, EINVAL},
                                                    {UINT32_MAX, 0u, EINVAL}})
        EXPECT_EQ(refusal(Type::Hello, hello(lowest, highest), Connection{}), expected)
            << lowest << " " << highest;
    HelloRequest other = hello();
    other.magic[7] = 'X';
    EXPECT_EQ(refusal(Type::Hello, other, Connection{}), EPROTO);
    EXPECT_EQ(must_decode<Hello>(request_packet(Type::Hello, 1, bytes_of(hello(0, 9))), {}).version,
              kVersion);
}

TEST(Message, ArenaSizes) {
    for (const auto& [size, expected] : {std::pair(uint64_t{1}, 0),
                                         {kArenaMax, 0},
                                         {uint64_t{0}, EINVAL},
                                         {kArenaMax + 1, EMSGSIZE},
                                         {kMax, EMSGSIZE}})
        EXPECT_EQ(refusal(Type::Arena, arena(size), without_arena(), 1), expected) << size;
    EXPECT_EQ(refusal(Type::Arena, arena(4096), mounted(), 1), EPROTO);  // the second
}

TEST(Message, OpenOnMountedVolume) {
    for (uint32_t flags = 0; flags <= kOpenFlags; ++flags) {
        OpenRequest request = open_request();
        request.flags = flags;
        EXPECT_EQ(refusal(Type::Open, request, mounted(), 1),
                  (flags & (kOpenRead | kOpenWrite)) != 0 ? 0 : EINVAL);
    }
    for (int bit = 4; bit < 32; ++bit) {
        OpenRequest request = open_request();
        request.flags = kOpenRead | 1u << bit;
        EXPECT_EQ(refusal(Type::Open, request, mounted(), 1), EINVAL);
    }
    for (const uint32_t engine : {0u, 1u, 2u, 3u, UINT32_MAX}) {
        OpenRequest request = open_request();
        request.engine = engine;
        EXPECT_EQ(refusal(Type::Open, request, mounted(), 1), engine <= 2 ? 0 : EINVAL);
    }
    OpenRequest request = open_request();
    request.reserved = 1;
    EXPECT_EQ(refusal(Type::Open, request, mounted(), 1), EINVAL);
    EXPECT_EQ(refusal(Type::Open, open_request(2), mounted(), 1, bytes_of("/f")), EINVAL);
    EXPECT_EQ(refusal(Type::Open, open_request(2), mounted(), 1), EINVAL);
    const auto open =
        must_decode<Open>(request_packet(Type::Open, 1, bytes_of(open_request())), mounted(), 1);
    EXPECT_EQ(open.flags, kOpenRead | kOpenWrite);
    EXPECT_EQ(open.engine, WireEngine::Auto);
}

TEST(Message, OpenPaths) {
    const auto check = [](std::string_view path) {
        return refusal(Type::Open, open_request(static_cast<uint32_t>(path.size())), owned(), 0,
                       bytes_of(path));
    };
    EXPECT_EQ(check("/"), 0);
    EXPECT_EQ(check("/dir/file"), 0);
    EXPECT_EQ(check("/" + std::string(kPathMax - 1, 'x')), 0);
    EXPECT_EQ(check("/" + std::string(kPathMax, 'x')), ENAMETOOLONG);
    EXPECT_EQ(check(""), EINVAL);
    EXPECT_EQ(check("file"), EINVAL);
    EXPECT_EQ(check(std::string_view("/a\0b", 4)), EINVAL);
    EXPECT_EQ(check(std::string_view("/a\0", 3)), EINVAL);
    EXPECT_EQ(refusal(Type::Open, open_request(UINT32_MAX), owned(), 0, bytes_of("/f")),
              ENAMETOOLONG);
    EXPECT_EQ(must_decode<Open>(
                  request_packet(Type::Open, 1, bytes_of(open_request(2)), bytes_of("/f")), owned())
                  .path,
              "/f");
}

// Offsets and lengths of WRITE and READ follow the same rules.
template <class Request>
void check_ranges(Type type, Request make(uint64_t, uint64_t, Source), uint64_t max, int too_long) {
    const Connection large{true, TargetKind::Mounted, Bytes(kArenaMax)};
    for (const auto& [offset, length, expected] : {std::tuple(uint64_t{0}, uint64_t{1}, 0),
                                                   {0, max, 0},
                                                   {kFileMax - 1, 1, 0},
                                                   {kFileMax - max, max, 0},
                                                   {0, 0, EINVAL},
                                                   {0, max + 1, too_long},
                                                   {0, kMax, too_long},
                                                   {kFileMax, 1, EFBIG},
                                                   {kFileMax - max + 1, max, EFBIG},
                                                   {kMax, 1, EFBIG},
                                                   {kMax - 4095, 4096, EFBIG},
                                                   {uint64_t{1} << 63, 4096, EFBIG}})
        EXPECT_EQ(refusal(type, make(offset, length, Source::Arena), large), expected)
            << offset << " " << length;
    for (const auto& [arena_offset, length, expected] : {std::tuple(uint64_t{0}, kArena.value(), 0),
                                                         {kArena.value() - 1, 1, 0},
                                                         {kArena.value(), 1, EINVAL},
                                                         {1, kArena.value(), EINVAL},
                                                         {0, kArena.value() + 1, EINVAL},
                                                         {kMax, 1, EINVAL},
                                                         {kMax - 4094, 4096, EINVAL}}) {
        Request request = make(0, length, Source::Arena);
        request.arena_offset = arena_offset;
        EXPECT_EQ(refusal(type, request), expected) << arena_offset << " " << length;
        EXPECT_EQ(refusal(type, request, without_arena()), EINVAL);
    }
    for (const uint32_t source : {2u, 3u, UINT32_MAX}) {
        Request request = make(0, 4096, Source::Arena);
        request.source = source;
        EXPECT_EQ(refusal(type, request), EINVAL);
    }
}

TEST(Message, WriteFields) {
    check_ranges<WriteRequest>(Type::Write, write_request, kWriteMax, EINVAL);
    const auto plain = [](uint64_t offset, uint64_t length, Source source) {
        WriteRequest request = write_request(offset, length, source);
        request.flags = kWritePlain;
        return request;
    };
    check_ranges<WriteRequest>(Type::Write, plain, kWriteMax, EMSGSIZE);
    for (int bit = 0; bit < 32; ++bit) {
        WriteRequest request = write_request(0, 4096);
        request.flags = 1u << bit;
        EXPECT_EQ(refusal(Type::Write, request), bit == 0 ? 0 : EINVAL);
    }
    WriteRequest request = write_request(4096, 8192);
    request.handle = kMax;
    request.flags = kWritePlain;
    request.arena_offset = 12345;
    const auto write = must_decode<Write>(request_packet(Type::Write, 1, bytes_of(request)));
    EXPECT_EQ(write.handle, kMax);
    EXPECT_EQ(write.offset, ByteOffset(4096));
    EXPECT_EQ(write.length, Bytes(8192));
    EXPECT_TRUE(write.plain);
    EXPECT_EQ(write.payload.source, Source::Arena);
    EXPECT_EQ(write.payload.arena_offset, 12345u);
}

TEST(Message, WriteInline) {
    std::mt19937_64 random(1);
    const auto payload = random_bytes(kInlineMax + 1, random);
    const auto check = [&](uint64_t length, size_t in_packet) {
        return refusal(Type::Write, write_request(0, length, Source::Inline), without_arena(), 0,
                       std::span(payload).first(in_packet));
    };
    EXPECT_EQ(check(1, 1), 0);
    EXPECT_EQ(check(kInlineMax, kInlineMax), 0);
    EXPECT_EQ(check(kInlineMax + 1, kInlineMax + 1), EMSGSIZE);
    EXPECT_EQ(check(4096, 4095), EINVAL);
    EXPECT_EQ(check(4096, 4097), EINVAL);
    EXPECT_EQ(check(kWriteMax, 4096), EMSGSIZE);
    WriteRequest request = write_request(0, 16, Source::Inline);
    const auto tail = std::span(payload).first(16);
    const Packet packet = request_packet(Type::Write, 1, bytes_of(request), tail);
    const auto write = must_decode<Write>(packet);
    EXPECT_TRUE(std::ranges::equal(write.payload.bytes, tail));
    EXPECT_FALSE(write.plain);
    request.arena_offset = 1;
    EXPECT_EQ(refusal(Type::Write, request, mounted(), 0, tail), EINVAL);
    // From the arena, with bytes in the packet too.
    EXPECT_EQ(refusal(Type::Write, write_request(0, 16), mounted(), 0, tail), EINVAL);
}

TEST(Message, ReadFields) {
    check_ranges<ReadRequest>(Type::Read, read_request, kReadMax, EMSGSIZE);
    EXPECT_EQ(refusal(Type::Read, read_request(0, kInlineMax, Source::Inline), without_arena()), 0);
    EXPECT_EQ(refusal(Type::Read, read_request(0, kInlineMax + 1, Source::Inline)), EMSGSIZE);
    ReadRequest request = read_request(4096, 100);
    request.arena_offset = 50;
    const auto read = must_decode<Read>(request_packet(Type::Read, 1, bytes_of(request)));
    EXPECT_EQ(read.handle, 7u);
    EXPECT_EQ(read.offset, ByteOffset(4096));
    EXPECT_EQ(read.length, Bytes(100));
    EXPECT_EQ(read.into, Source::Arena);
    EXPECT_EQ(read.arena_offset, 50u);
    request.source = 0;  // inline, but with an arena offset
    EXPECT_EQ(refusal(Type::Read, request), EINVAL);
    request = read_request(0, 100);
    request.reserved = 1;
    EXPECT_EQ(refusal(Type::Read, request), EINVAL);
}

TEST(Message, BatchCounts) {
    EXPECT_EQ(refusal(batch({})), EINVAL);
    EXPECT_EQ(refusal(batch(std::vector(kBatchRangesMax, batch_range(0, 4096)))), 0);
    EXPECT_EQ(refusal(batch(std::vector(kBatchRangesMax + 1, batch_range(0, 4096)))), EMSGSIZE);
    for (const uint32_t count : {1u, 3u, kBatchRangesMax, UINT32_MAX}) {
        Packet packet = batch({batch_range(0, 4096), batch_range(4096, 4096)});
        const le32 field = count;
        std::memcpy(packet.data() + sizeof(RequestHeader), &field, sizeof field);
        EXPECT_NE(refusal(packet), 0) << count;
    }
    for (const uint32_t source : {2u, UINT32_MAX})
        EXPECT_EQ(refusal(batch({batch_range(0, 4096)}, static_cast<Source>(source))), EINVAL);
}

TEST(Message, BatchRanges) {
    const Connection large{true, TargetKind::Mounted, Bytes(kArenaMax)};
    const auto check = [&](const std::vector<BatchRange>& ranges) {
        return refusal(batch(ranges), large);
    };
    EXPECT_EQ(check({batch_range(0, kBatchMax)}), 0);
    EXPECT_EQ(check({batch_range(0, kBatchMax + 1)}), EMSGSIZE);
    EXPECT_EQ(check({batch_range(0, kBatchMax / 2), batch_range(0, kBatchMax / 2)}), 0);
    EXPECT_EQ(check({batch_range(0, kBatchMax / 2), batch_range(0, kBatchMax / 2 + 1)}), EMSGSIZE);
    EXPECT_EQ(check({batch_range(0, 4096), batch_range(0, kMax)}), EMSGSIZE);
    EXPECT_EQ(check({batch_range(0, 4096), batch_range(0, 0)}), EINVAL);
    EXPECT_EQ(check({batch_range(0, 4096), batch_range(kFileMax, 1)}), EFBIG);
    EXPECT_EQ(check({batch_range(0, 4096, kArenaMax - 4096)}), 0);
    EXPECT_EQ(check({batch_range(0, 4096), batch_range(0, 4096, kArenaMax - 4095)}), EINVAL);
    EXPECT_EQ(check({batch_range(0, 4096, kMax)}), EINVAL);
    EXPECT_EQ(refusal(batch({batch_range(0, 4096)}), without_arena()), EINVAL);
}

TEST(Message, BatchInline) {
    std::mt19937_64 random(1);
    const auto payload = random_bytes(kInlineMax + 1, random);
    const auto inline_batch = [&](const std::vector<BatchRange>& ranges, size_t in_packet) {
        return batch(ranges, Source::Inline, std::span(payload).first(in_packet));
    };
    EXPECT_EQ(refusal(inline_batch({batch_range(0, 4096), batch_range(0, 100, 1)}, 4196)), EINVAL);
    EXPECT_EQ(refusal(inline_batch({batch_range(0, 4096), batch_range(0, 100)}, 4195)), EINVAL);
    EXPECT_EQ(refusal(inline_batch({batch_range(0, 4096), batch_range(0, 100)}, 4197)), EINVAL);
    EXPECT_EQ(
        refusal(inline_batch({batch_range(0, kInlineMax), batch_range(0, 1)}, kInlineMax + 1)),
        EMSGSIZE);
    std::vector<BatchRange> many(kBatchRangesMax, batch_range(0, kInlineMax / kBatchRangesMax));
    EXPECT_EQ(refusal(inline_batch(many, kInlineMax), without_arena()), 0);
    const Packet packet = inline_batch({batch_range(512, 60), batch_range(9, 40)}, 100);
    const auto decoded = must_decode<Batch>(packet, without_arena());
    ASSERT_EQ(decoded.ranges.size(), 2u);
    EXPECT_EQ(decoded.ranges[0].offset, ByteOffset(512));
    EXPECT_EQ(decoded.ranges[1].handle, 7u);
    EXPECT_TRUE(std::ranges::equal(decoded.ranges[0].payload.bytes, std::span(payload).first(60)));
    EXPECT_TRUE(
        std::ranges::equal(decoded.ranges[1].payload.bytes, std::span(payload).subspan(60, 40)));
}

TEST(Message, Handles) {
    for (const uint64_t handle : {uint64_t{0}, uint64_t{1}, kMax}) {
        const HandleRequest request = handle_request(handle);
        EXPECT_EQ(must_decode<Statx>(request_packet(Type::Statx, 1, bytes_of(request))).handle,
                  handle);
        EXPECT_EQ(must_decode<Flush>(request_packet(Type::Flush, 1, bytes_of(request))).handle,
                  handle);
        EXPECT_EQ(must_decode<Close>(request_packet(Type::Close, 1, bytes_of(request))).handle,
                  handle);
    }
}

TEST(Message, StatsFields) {
    for (const uint32_t format : {0u, 1u, 2u, UINT32_MAX}) {
        StatsRequest request;
        request.format = format;
        EXPECT_EQ(refusal(Type::Stats, request), format <= 1 ? 0 : EINVAL);
        request.reserved = 1;
        EXPECT_EQ(refusal(Type::Stats, request), EINVAL);
    }
}

// A refusal says which message it was about.
TEST(Message, ReasonsNameTheMessage) {
    const auto result = decode(batch({}), 0, mounted());
    EXPECT_EQ(result.error().message, "BATCH: a batch of 0 ranges");
}

TEST(Message, RandomBytes) {
    std::mt19937_64 random(20240701);
    for (int round = 0; round < 100'000; ++round) {
        const Connection connection = round % 3 == 0 ? owned() : mounted();
        Packet packet = random_bytes(random() % 300, random);
        if (packet.size() >= sizeof(RequestHeader)) {
            packet[0] = static_cast<std::byte>(random() % 15);
            packet[1] = packet[2] = packet[3] = std::byte{0};
            set_length(packet);
        }
        refusal(packet, connection, random() % 2);
    }
}

TEST(Message, RandomlyChangedMessages) {
    std::mt19937_64 random(20240702);
    const auto all = samples();
    constexpr uint8_t kInteresting[] = {0, 1, 2, 0x10, 0x7f, 0x80, 0xff};
    int accepted = 0;
    for (int round = 0; round < 100'000; ++round) {
        const Sample& sample = all[random() % all.size()];
        Packet packet = sample.packet;
        for (uint64_t changes = random() % 4; changes > 0; --changes)
            packet[random() % packet.size()] =
                static_cast<std::byte>(kInteresting[random() % std::size(kInteresting)]);
        accepted += refusal(packet, sample.connection, sample.fds) == 0 ? 1 : 0;
    }
    EXPECT_GT(accepted, 1000);
}

TEST(Message, ErrorsAreAClosedSet) {
    const int allowed[] = {EINVAL,   EOPNOTSUPP,   EIO,    ENOSPC, ESTALE, EPERM,     EACCES,
                           EBADF,    EFBIG,        EBUSY,  ENOENT, EISDIR, ENOTDIR,   ELOOP,
                           EMSGSIZE, ENAMETOOLONG, ENOMEM, EMFILE, EPROTO, ESHUTDOWN, EROFS,
                           EEXIST,   EUCLEAN,      EDQUOT, EXDEV};
    for (int code = -1; code < 200; ++code) {
        const bool expected = std::ranges::find(allowed, code) != std::end(allowed);
        EXPECT_EQ(is_wire_error(code), expected) << code;
        const Packet packet = encode_error(Type::Write, 5, Error{code, "why"});
        ReplyHeader header;
        ASSERT_EQ(packet.size(), sizeof header + 3);
        std::memcpy(&header, packet.data(), sizeof header);
        EXPECT_EQ(header.error, static_cast<uint32_t>(expected ? code : EIO));
        EXPECT_EQ(header.type, static_cast<uint16_t>(Type::Write) | kReplyBit);
        EXPECT_EQ(header.length, packet.size());
        EXPECT_EQ(header.tag, 5u);
        EXPECT_EQ(header.reason_length, 3u);
    }
}

TEST(Message, LongReasonsAreCutBetweenCharacters) {
    const auto reason_of = [](const std::string& message) {
        const Packet packet = encode_error(Type::Ping, 1, Error{EIO, message});
        return std::string(reinterpret_cast<const char*>(packet.data()) + sizeof(ReplyHeader),
                           packet.size() - sizeof(ReplyHeader));
    };
    EXPECT_EQ(reason_of(std::string(kReasonMax, 'x')).size(), kReasonMax);
    EXPECT_EQ(reason_of(std::string(kReasonMax + 1, 'x')).size(), kReasonMax);
    const std::string start(kReasonMax - 1, 'x');
    EXPECT_EQ(reason_of(start + "\u00e9"), start);
    EXPECT_EQ(reason_of(std::string(5000, '\x80')), "");
}

}  // namespace
}  // namespace atomic4::test
