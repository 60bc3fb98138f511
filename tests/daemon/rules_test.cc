// The table of what an atomic write must do and refuse, by the real daemon on a mounted volume.
#include <gmock/gmock.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
// After sys/stat.h:
#include <linux/fs.h>

#include "support/served_volume.h"
#include "support/wire_packets.h"

namespace atomic4::test {
namespace {

using ::testing::HasSubstr;
using wire::WireEngine;

class RulesTest : public ServedTest {
  protected:
    // The bytes by every way of reading, from the kernel and through the daemon.
    void expect_bytes(Client& client, const File& file, const std::string& name, uint64_t offset,
                      const std::vector<std::byte>& bytes) {
        EXPECT_EQ(read_path(path(name), offset, bytes.size()), bytes) << "buffered";
        EXPECT_EQ(read_path(path(name), offset, bytes.size(), O_DIRECT), bytes) << "direct";
        std::vector<std::byte> through(bytes.size());
        for (size_t at = 0; at < bytes.size(); at += wire::kInlineMax) {
            const size_t length = std::min<size_t>(wire::kInlineMax, bytes.size() - at);
            const auto got = client.read(file.handle, ByteOffset(offset + at),
                                         std::span(through).subspan(at, length));
            ASSERT_TRUE(got) << got.error().message;
            ASSERT_EQ(got->value(), length);
        }
        EXPECT_EQ(through, bytes) << "through the daemon";
    }
    // Writes it, and looks at its surroundings too.
    void write_and_look(Client& client, const File& file, const std::string& name, uint64_t offset,
                        uint64_t unit) {
        SCOPED_TRACE(fmt::format("{}: {} bytes at {}", name, unit, offset));
        const auto before =
            offset > 0 ? read_path(path(name), offset - 512, 512) : std::vector<std::byte>();
        const auto after = read_path(path(name), offset + unit, 512);
        const auto bytes = random_bytes(unit, random_);
        const auto done = client.write(file.handle, ByteOffset(offset), bytes);
        ASSERT_TRUE(done) << done.error().message;
        EXPECT_EQ(done->engine, WireEngine::Logged);
        expect_bytes(client, file, name, offset, bytes);
        if (!before.empty()) {
            // It may have been beyond EOF: a gap reads as zeros.
            auto padded = before;
            padded.resize(512);
            EXPECT_EQ(read_path(path(name), offset - 512, 512), padded);
        }
        EXPECT_EQ(read_path(path(name), offset + unit, 512), after);
    }
    void every_unit(const ClientOptions& options, uint64_t largest);

    std::mt19937_64 random_{7};
};

void RulesTest::every_unit(const ClientOptions& options, uint64_t largest) {
    serve();
    const auto client = connect(options);
    make_file("mapped", 4 * largest);
    const File mapped = open_through(*client, path("mapped"));
    EXPECT_EQ(must(client->statx(mapped.handle)).unit_min, Bytes(4 * kKiB));
    EXPECT_EQ(must(client->statx(mapped.handle)).unit_max_logged, Bytes(4 * kMiB));
    for (uint64_t unit = 4 * kKiB; unit <= largest; unit *= 2) {
        for (const uint64_t offset : {uint64_t{0}, unit, 3 * unit})
            write_and_look(*client, mapped, "mapped", offset, unit);

        // Each kind of range in a file of its own: unit 0 and 1 of it.
        const auto fresh = [&](const char* kind) {
            const std::string name = fmt::format("{}{}", kind, unit);
            open_path(path(name), O_RDWR | O_CREAT);
            return name;
        };
        const auto both = [&](const std::string& name) {
            const File file = open_through(*client, path(name));
            write_and_look(*client, file, name, unit, unit);
            write_and_look(*client, file, name, 0, unit);
            must(client->close(file.handle));
            ASSERT_EQ(::unlink(path(name).c_str()), 0);
        };
        const std::string unwritten = fresh("unwritten");
        ASSERT_EQ(::fallocate(open_path(path(unwritten), O_RDWR).get(), 0, 0,
                              static_cast<off_t>(2 * unit)),
                  0);
        both(unwritten);
        const std::string hole = fresh("hole");
        ASSERT_EQ(::truncate(path(hole).c_str(), static_cast<off_t>(2 * unit)), 0);
        both(hole);
        if (unit > 4 * kKiB) {
            // Mapped, hole, unwritten, in turn.
            const std::string mixed = fresh("mixed");
            const UniqueFd fd = open_path(path(mixed), O_RDWR);
            ASSERT_EQ(::ftruncate(fd.get(), static_cast<off_t>(2 * unit)), 0);
            const auto block = random_bytes(4096, random_);
            for (uint64_t at = 0; at + 4096 <= 2 * unit; at += 12288) {
                ASSERT_EQ(::pwrite(fd.get(), block.data(), 4096, static_cast<off_t>(at)), 4096);
                if (at + 8192 >= 2 * unit) continue;
                ASSERT_EQ(
                    ::fallocate(fd.get(), FALLOC_FL_KEEP_SIZE, static_cast<off_t>(at + 8192), 4096),
                    0);
            }
            both(mixed);
        }
        // Beyond EOF: with a gap, then behind it; the size follows.
        const std::string beyond = fresh("beyond");
        {
            const File file = open_through(*client, path(beyond));
            write_and_look(*client, file, beyond, 2 * unit, unit);
            EXPECT_EQ(must(client->statx(file.handle)).size, Bytes(3 * unit));
            expect_bytes(*client, file, beyond, 0, filled(unit, 0));
            write_and_look(*client, file, beyond, 3 * unit, unit);
            EXPECT_EQ(must(client->statx(file.handle)).size, Bytes(4 * unit));
            struct stat st{};
            ASSERT_EQ(::stat(path(beyond).c_str(), &st), 0);
            EXPECT_EQ(static_cast<uint64_t>(st.st_size), 4 * unit);
            must(client->close(file.handle));
            ASSERT_EQ(::unlink(path(beyond).c_str()), 0);
        }
        // EOF inside the unit.
        const std::string across = fresh("across");
        ASSERT_EQ(::truncate(path(across).c_str(), static_cast<off_t>(unit / 2 + 100)), 0);
        both(across);
    }
    const auto twice = client->write(mapped.handle, ByteOffset(0), filled(8 * kMiB, 1));
    ASSERT_FALSE(twice);
    EXPECT_EQ(twice.error().code, EINVAL) << twice.error().message;
    stop_and_check();
}

TEST_F(RulesTest, EveryUnitOverEveryKindOfRangeInAPacket) {
    every_unit({.arena = Bytes(0)}, wire::kInlineMax);
}

TEST_F(RulesTest, EveryUnitOverEveryKindOfRangeInAnArena) {
    every_unit({.arena = Bytes(16 * kMiB)}, 4 * kMiB);
}

TEST_F(RulesTest, WhatMustFailChangesNothing) {
    Volume volume;
    volume.log = 4224 * kKiB;  // takes units of 1 MiB
    serve(volume);
    const auto client = connect();
    make_file("data", 8 * kMiB);
    const File file = open_through(*client, path("data"));
    const uint64_t most = must(client->statx(file.handle)).unit_max.value();
    ASSERT_EQ(most, kMiB);
    const auto data = filled(8 * kMiB, 1);
    struct Case {
        const char* name;
        uint64_t offset, length;
        int code;
    };
    for (const Case& c : {
             Case{"length - 1", 0, kUnit - 1, EINVAL},
             Case{"length + 1", 0, kUnit + 1, EINVAL},
             Case{"three blocks", 0, 12 * kKiB, EINVAL},
             Case{"offset 1", 1, kUnit, EINVAL},
             Case{"offset of a sector", 512, kUnit, EINVAL},
             Case{"offset of a block", 4096, kUnit, EINVAL},
             Case{"half of the smallest", 0, 2 * kKiB, EINVAL},
             Case{"a sector", 0, 512, EINVAL},
             Case{"twice the largest", 0, 2 * most, EINVAL},
             Case{"no bytes", 0, 0, EINVAL},
             Case{"more than any volume takes", 0, 8 * kMiB, EINVAL},
             Case{"past what a file can have", uint64_t{1} << 62, kUnit, EFBIG},
         }) {
        const auto done =
            client->write(file.handle, ByteOffset(c.offset), std::span(data).first(c.length));
        ASSERT_FALSE(done) << c.name;
        EXPECT_EQ(done.error().code, c.code) << c.name << ": " << done.error().message;
    }
    EXPECT_EQ(client->write_plain(file.handle, ByteOffset(0), data).error().code, EMSGSIZE);
    // The largest itself works, further away.
    EXPECT_TRUE(client->write(file.handle, ByteOffset(4 * kMiB), std::span(data).first(most)));

    const auto refused_batch = [&](std::vector<BatchPart> parts, int code) {
        const auto done = client->write_batch(parts);
        ASSERT_FALSE(done);
        EXPECT_EQ(done.error().code, code) << done.error().message;
    };
    const auto part = [&](uint64_t offset, uint64_t length) {
        return BatchPart{file.handle, ByteOffset(offset), std::span(data).first(length)};
    };
    refused_batch({part(0, 8192), part(4096, 4096)}, EINVAL);         // overlap
    refused_batch({part(0, 4096), part(8192, 512)}, EINVAL);          // no block multiple
    refused_batch({part(0, 4096), part(8192 + 512, 4096)}, EINVAL);   // nor this
    refused_batch({part(0, 4096), part(65536, 2 * kMiB)}, EMSGSIZE);  // than the log takes
    refused_batch({part(0, 4096), {file.handle + 7, ByteOffset(0), part(0, 4096).data}}, EBADF);

    const File native = open_through(*client, path("data"), wire::kOpenWrite, WireEngine::Native);
    const auto forced = client->write(native.handle, ByteOffset(0), std::span(data).first(kUnit));
    ASSERT_FALSE(forced);
    EXPECT_EQ(forced.error().code, EOPNOTSUPP) << forced.error().message;

    const File atomic = open_through(*client, path("data"), wire::kOpenWrite | wire::kOpenAtomic);
    const auto plain =
        client->write_plain(atomic.handle, ByteOffset(0), std::span(data).first(kUnit));
    ASSERT_FALSE(plain);
    EXPECT_EQ(plain.error().code, EINVAL) << plain.error().message;

    const auto after = read_path(path("data"), 0, 4 * kMiB);
    EXPECT_EQ(after, filled(4 * kMiB, 0));
    struct stat st{};
    ASSERT_EQ(::stat(path("data").c_str(), &st), 0);
    EXPECT_EQ(st.st_size, static_cast<off_t>(8 * kMiB));
    stop_and_check();
}

// pwritev2(RWF_ATOMIC) refuses two iovecs; a WRITE has no place for a second range, and whoever
// appends one, or sends bytes for it, is refused.
TEST_F(RulesTest, TwoRangesWithoutABatchCantBeSaid) {
    serve();
    make_file("data", kMiB);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, daemon_->socket().c_str(), daemon_->socket().size() + 1);
    const UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    ASSERT_EQ(::connect(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    const auto ask = [&](const Packet& packet) {
        EXPECT_EQ(::send(socket.get(), packet.data(), packet.size(), MSG_NOSIGNAL),
                  static_cast<ssize_t>(packet.size()));
        std::vector<std::byte> answer(wire::kPacketMax);
        const ssize_t n = ::recv(socket.get(), answer.data(), answer.size(), 0);
        wire::ReplyHeader header;
        EXPECT_GE(n, static_cast<ssize_t>(sizeof header));
        std::memcpy(static_cast<void*>(&header), answer.data(), sizeof header);
        return static_cast<int>(uint32_t(header.error));
    };
    wire::HelloRequest hello{};
    hello.magic = wire::kMagic;
    hello.version_min = 1;
    hello.version_max = 1;
    ASSERT_EQ(ask(request_packet(wire::Type::Hello, 1, bytes_of(hello))), 0);

    wire::WriteRequest write{};
    write.length = uint64_t{4096};
    Packet two(4096 + sizeof write + 4096);
    std::memcpy(two.data() + 4096, static_cast<const void*>(&write), sizeof write);
    EXPECT_EQ(ask(request_packet(wire::Type::Write, 2, bytes_of(write), two)), EINVAL);
    EXPECT_EQ(
        ask(request_packet(wire::Type::Write, 3, bytes_of(write), std::span(two).first(8192))),
        EINVAL);
    EXPECT_EQ(read_path(path("data"), 0, 4096), filled(4096, 0));
}

TEST_F(RulesTest, FilesThatTakeNoWrites) {
    serve();
    const auto client = connect();
    const auto refused = [&](const UniqueFd& fd, int code, uint32_t flags = wire::kOpenWrite) {
        const auto file = client->open(fd.get(), flags);
        ASSERT_FALSE(file);
        EXPECT_EQ(file.error().code, code) << file.error().message;
    };
    for (const char* name : {".atomic4/log", ".atomic4/lock"})
        refused(open_path(path(name), O_RDWR), EPERM);
    make_file("append", kUnit);
    make_file("fixed", kUnit);
    for (const auto& [name, flag] :
         {std::pair{"append", FS_APPEND_FL}, {"fixed", FS_IMMUTABLE_FL}}) {
        const UniqueFd fd = open_path(path(name), O_RDONLY);
        int flags = 0;
        ASSERT_EQ(::ioctl(fd.get(), FS_IOC_GETFLAGS, &flags), 0);
        flags |= flag;
        ASSERT_EQ(::ioctl(fd.get(), FS_IOC_SETFLAGS, &flags), 0);
        refused(fd, EPERM);
        flags &= ~flag;
        ASSERT_EQ(::ioctl(fd.get(), FS_IOC_SETFLAGS, &flags), 0);
    }
    ASSERT_EQ(::mkdir(path("directory").c_str(), 0755), 0);
    refused(open_path(path("directory"), O_RDONLY), EISDIR, wire::kOpenRead);
    ASSERT_EQ(::mkfifo(path("fifo").c_str(), 0600), 0);
    refused(open_path(path("fifo"), O_RDWR), EINVAL);
    const TempDir elsewhere;
    refused(open_path(elsewhere.file("regular"), O_RDWR | O_CREAT), EXDEV);
    refused(open_path(path("append"), O_PATH), EBADF);
    // What can't be read or written isn't.
    const UniqueFd fd = open_path(path("append"), O_RDWR);
    const File reader = must(client->open(fd.get(), wire::kOpenRead));
    const auto bytes = filled(kUnit, 1);
    EXPECT_EQ(client->write(reader.handle, ByteOffset(0), bytes).error().code, EBADF);
    const File writer = must(client->open(fd.get(), wire::kOpenWrite));
    std::vector<std::byte> into(kUnit);
    EXPECT_EQ(client->read(writer.handle, ByteOffset(0), into).error().code, EBADF);
    must(client->close(writer.handle));
    EXPECT_EQ(client->write(writer.handle, ByteOffset(0), bytes).error().code, EBADF);
    EXPECT_EQ(read_path(path("append"), 0, kUnit), filled(kUnit, 0));
}

TEST_F(RulesTest, WithoutBarriersOrWithDataInTheJournalNothingIsPromised) {
    for (const char* options : {"nobarrier", "data=journal"}) {
        SCOPED_TRACE(options);
        Volume volume;
        volume.mount = options;
        mount(volume);
        std::string words;
        int code = 0;
        try {
            daemon_.emplace(image_->dir());
            open_path(path("data"), O_RDWR | O_CREAT);
            const auto client = connect();
            const auto file = client->open(open_path(path("data"), O_RDWR).get(), wire::kOpenWrite);
            EXPECT_FALSE(file);
            if (!file) {
                words = file.error().message;
                code = file.error().code;
            }
        } catch (const std::exception& refused) {
            words = refused.what();  // it doesn't even start
            code = EIO;
        }
        EXPECT_EQ(code, EIO) << words;
        EXPECT_THAT(words, HasSubstr(options));
        daemon_.reset();
        image_.reset();
    }
}

// After xfstests generic/770: 64 KiB over woven ranges, in a file system whose free space is
// single blocks.
TEST_F(RulesTest, OnAFragmentedVolume) {
    constexpr uint64_t kLength = 64 * kKiB;
    Volume volume;
    volume.size = 48 * kMiB;
    volume.log = 2 * kMiB;
    serve(volume);
    const auto client = connect();
    // Woven files first, while there is room: hole (h), mapped (m), unwritten (u), a block each.
    const std::vector<std::pair<std::string, std::string>> woven = {
        {"hmh", "hhhhhmmmmmmhhhhh"}, {"mh", "mmmmmmmmhhhhhhhh"},  {"hm", "hhhhhhhhmmmmmmmm"},
        {"mhm", "mmmmmhhhhhhmmmmm"}, {"umu", "uuuuummmmmmuuuuu"}, {"mu", "mmmmmmmmuuuuuuuu"},
        {"um", "uuuuuuuummmmmmmm"},  {"mum", "mmmmmuuuuuummmmm"}, {"all", "hmuhmuhmuhmuhmuh"},
        {"h", "hhhhhhhhhhhhhhhh"},   {"u", "uuuuuuuuuuuuuuuu"},
    };
    for (const auto& [name, pattern] : woven) {
        const UniqueFd fd = open_path(path(name), O_RDWR | O_CREAT);
        ASSERT_EQ(::ftruncate(fd.get(), static_cast<off_t>(2 * kLength)), 0);
        const auto block = random_bytes(4096, random_);
        for (size_t i = 0; i < pattern.size(); ++i) {
            const auto at = static_cast<off_t>(kLength + i * 4096);
            const bool made = pattern[i] == 'm' ? ::pwrite(fd.get(), block.data(), 4096, at) == 4096
                              : pattern[i] == 'u' ? ::fallocate(fd.get(), 0, at, 4096) == 0
                                                  : true;
            ASSERT_TRUE(made);
        }
        ASSERT_EQ(::fsync(fd.get()), 0);
    }
    {
        const UniqueFd filler = open_path(path("filler"), O_RDWR | O_CREAT);
        uint64_t size = 0;
        for (uint64_t step = kMiB; step >= 4096; step /= 2)
            while (::fallocate(filler.get(), 0, static_cast<off_t>(size),
                               static_cast<off_t>(step)) == 0)
                size += step;
        ASSERT_EQ(errno, ENOSPC);
        for (uint64_t at = 0; at < size; at += 8192)
            ASSERT_EQ(::fallocate(filler.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                  static_cast<off_t>(at), 4096),
                      0);
        ASSERT_EQ(::fsync(filler.get()), 0);
    }
    for (const auto& [name, pattern] : woven) {
        const File file = open_through(*client, path(name));
        write_and_look(*client, file, name, kLength, kLength);
        write_and_look(*client, file, name, 0, kLength);            // a hole
        write_and_look(*client, file, name, 2 * kLength, kLength);  // at EOF
    }
    // Inside a preallocation beyond EOF.
    open_path(path("ahead"), O_RDWR | O_CREAT);
    ASSERT_EQ(::fallocate(open_path(path("ahead"), O_RDWR).get(), FALLOC_FL_KEEP_SIZE, 0,
                          static_cast<off_t>(4 * kLength)),
              0);
    const File ahead = open_through(*client, path("ahead"));
    write_and_look(*client, ahead, "ahead", kLength, kLength);
    write_and_look(*client, ahead, "ahead", 0, kLength);
    stop_and_check();
}

}  // namespace
}  // namespace atomic4::test
