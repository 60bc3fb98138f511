// Shared memory that a client shouldn't have given, and what it does with that which was taken.
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include <atomic>
#include <thread>

#include "daemon/volume_fixture.h"

namespace atomic4::test {
namespace {

constexpr uint32_t kReadWrite = wire::kOpenRead | wire::kOpenWrite;

UniqueFd memory(uint64_t size, int seals, unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING) {
    UniqueFd fd(::memfd_create("arena", flags));
    EXPECT_TRUE(fd) << std::strerror(errno);
    EXPECT_EQ(::ftruncate(fd.get(), static_cast<off_t>(size)), 0);
    EXPECT_TRUE(seals == 0 || ::fcntl(fd.get(), F_ADD_SEALS, seals) == 0);
    return fd;
}

class HostileArena : public DaemonTest {
  protected:
    // Its arena, as this process sees it.
    struct Shared {
        explicit Shared(uint64_t size)
            : fd(memory(size, F_SEAL_SHRINK)),
              bytes(static_cast<std::byte*>(
                        ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0)),
                    size) {}
        ~Shared() { ::munmap(bytes.data(), bytes.size()); }
        Shared(const Shared&) = delete;
        Shared& operator=(const Shared&) = delete;
        UniqueFd fd;
        std::span<std::byte> bytes;
    };
    uint32_t write_from(WireClient& client, uint64_t handle, uint64_t arena_offset, uint64_t length,
                        uint32_t flags = 0) {
        EXPECT_TRUE(client.send(arena_write_packet(1, handle, 0, length, arena_offset, flags)));
        const auto answer = client.receive();
        return answer ? answer->error : EPIPE;
    }
    static bool is_all(const Answer& read, std::byte value) {
        return read.error == 0 && read.body.size() > sizeof(wire::ReadReply) &&
               std::all_of(read.body.begin() + sizeof(wire::ReadReply), read.body.end(),
                           [&](std::byte byte) { return byte == value; });
    }
};

TEST_P(HostileArena, NothingThatCouldFaultIsTaken) {
    const size_t before = volume().descriptors();
    {
        WireClient client = volume().client();
        const auto refused = [&](const UniqueFd& fd, uint64_t size, const char* what) {
            if (!fd) return;
            const Answer answer = client.arena(fd.get(), size);
            EXPECT_EQ(answer.error, uint32_t{EINVAL}) << what << ": " << answer.reason;
        };
        constexpr uint64_t kSize = 65536;
        refused(memory(kSize, 0), kSize, "unsealed");
        refused(memory(kSize, 0, MFD_CLOEXEC), kSize, "not to be sealed");
        refused(memory(kSize, F_SEAL_GROW), kSize, "sealed against growing only");
        refused(memory(kSize, F_SEAL_SHRINK | F_SEAL_WRITE), kSize, "sealed against writing");
        refused(memory(kSize, F_SEAL_SHRINK | F_SEAL_FUTURE_WRITE), kSize, "and in future");
        refused(memory(kSize - 1, F_SEAL_SHRINK), kSize, "too small by a byte");
        refused(memory(0, F_SEAL_SHRINK), kSize, "empty");
        refused(memory(kSize, F_SEAL_SHRINK), 0, "of no bytes");
        const UniqueFd shrunk = memory(kSize, 0);
        ASSERT_EQ(::ftruncate(shrunk.get(), 4096), 0);
        ASSERT_EQ(::fcntl(shrunk.get(), F_ADD_SEALS, F_SEAL_SHRINK), 0);
        refused(shrunk, kSize, "shrunk before it was sealed");
        const UniqueFd good = memory(kSize, F_SEAL_SHRINK);
        EXPECT_NE(client.arena(good.get(), wire::kArenaMax + 1).error, 0u);
        EXPECT_NE(client.arena(good.get(), ~uint64_t{0}).error, 0u);
        const std::string link = fmt::format("/proc/self/fd/{}", good.get());
        refused(UniqueFd(::open(link.c_str(), O_RDONLY | O_CLOEXEC)), kSize, "read-only");
        refused(UniqueFd(::open(link.c_str(), O_PATH | O_CLOEXEC)), kSize, "O_PATH");
        if (UniqueFd huge(::memfd_create("huge", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB));
            huge && ::ftruncate(huge.get(), 2 << 20) == 0 &&
            ::fcntl(huge.get(), F_ADD_SEALS, F_SEAL_SHRINK) == 0)
            refused(huge, kSize, "huge pages");
        const TempDir elsewhere;
        refused(UniqueFd(::open(elsewhere.file("f").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)),
                kSize, "a file");
        refused(UniqueFd(::open("/dev/shm", O_RDWR | O_TMPFILE | O_CLOEXEC, 0600)), kSize,
                "a file in memory");
        refused(UniqueFd(::open("/", O_RDONLY | O_CLOEXEC)), kSize, "a directory");
        refused(UniqueFd(::open("/dev/zero", O_RDWR | O_CLOEXEC)), kSize, "a device");
        refused(UniqueFd(::eventfd(0, EFD_CLOEXEC)), kSize, "an event descriptor");
        EXPECT_EQ(client.arena(good.get(), kSize).error, 0u);
    }
    EXPECT_TRUE(volume().descriptors_come_down_to(before));
}

TEST_P(HostileArena, AnyOffsetInsideAndNoneOutside) {
    // No multiple of the page.
    constexpr uint64_t kSize = 3 * kUnit + 4321;
    Shared shared(kSize);
    WireClient client = volume().client();
    const uint64_t handle = volume().open(client, "data", kReadWrite);
    EXPECT_EQ(write_from(client, handle, 0, kUnit), uint32_t{EINVAL});  // none yet
    ASSERT_EQ(client.arena(shared.fd.get(), kSize).error, 0u);
    int value = 1;
    for (const uint64_t at :
         {uint64_t{0}, uint64_t{1}, uint64_t{511}, uint64_t{513}, uint64_t{4097}, kSize - kUnit}) {
        for (const uint32_t flags : {0u, wire::kWritePlain}) {
            const std::byte byte{static_cast<unsigned char>(value++)};
            std::ranges::fill(shared.bytes.subspan(at, kUnit), byte);
            EXPECT_EQ(write_from(client, handle, at, kUnit, flags), 0u) << at;
            EXPECT_TRUE(is_all(client.read(handle, 0, kUnit), byte)) << at;

            wire::ReadRequest read{};
            read.handle = handle;
            read.length = kUnit;
            read.arena_offset = at;
            read.source = static_cast<uint32_t>(wire::Source::Arena);
            std::ranges::fill(shared.bytes, std::byte{0xee});
            EXPECT_EQ(client.ask(wire::Type::Read, bytes_of(read)).error, 0u);
            EXPECT_TRUE(std::ranges::all_of(shared.bytes.subspan(at, kUnit),
                                            [&](std::byte got) { return got == byte; }));
            // And nothing beside it.
            EXPECT_TRUE(at == 0 || shared.bytes[at - 1] == std::byte{0xee});
            EXPECT_TRUE(at + kUnit == kSize || shared.bytes[at + kUnit] == std::byte{0xee});
        }
    }
    for (const uint64_t at : {kSize - kUnit + 1, kSize, kSize + 1, uint64_t{1} << 40, ~uint64_t{0},
                              ~uint64_t{0} - kUnit + 1, ~uint64_t{0} - kUnit})
        EXPECT_EQ(write_from(client, handle, at, kUnit), uint32_t{EINVAL}) << at;
}

// What is in the hole then is the client's own mixture; nothing else is affected.
TEST_P(HostileArena, PunchedGrownAndScribbledOnWhileItIsUsed) {
    constexpr uint64_t kSize = 4 * kMiB;
    Shared shared(kSize);
    WireClient client = volume().client();
    const uint64_t handle = volume().open(client, "data", kReadWrite);
    ASSERT_EQ(client.arena(shared.fd.get(), kSize).error, 0u);
    EXPECT_NE(::ftruncate(shared.fd.get(), 4096), 0);  // that is what the seal is for
    std::ranges::fill(shared.bytes, std::byte{1});
    ASSERT_EQ(::fallocate(shared.fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, kSize),
              0);
    EXPECT_EQ(write_from(client, handle, 0, kUnit), 0u);
    EXPECT_TRUE(is_all(client.read(handle, 0, kUnit), std::byte{0}));
    ASSERT_EQ(::ftruncate(shared.fd.get(), 2 * kSize), 0);

    std::atomic<bool> stop = false;
    std::thread villain([&] {
        for (unsigned round = 0; !stop; ++round) {
            ::fallocate(shared.fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, kSize);
            std::ranges::fill(shared.bytes.first(256 * kKiB), static_cast<std::byte>(round));
        }
    });
    constexpr uint64_t kWrites = 300;
    uint64_t answered = 0;
    for (uint64_t sent = 0; answered < kWrites;) {
        while (sent < kWrites && sent < answered + 32) {
            const uint64_t at = sent % 16 * kUnit;
            ASSERT_TRUE(client.send(arena_write_packet(100 + sent, handle, at, kUnit, at)));
            ++sent;
        }
        const auto answer = client.receive();
        if (!answer) break;
        EXPECT_EQ(answer->error, 0u) << answer->reason;
        ++answered;
    }
    stop = true;
    villain.join();
    EXPECT_EQ(answered, kWrites);
    EXPECT_EQ(client.with_handle(wire::Type::Flush, handle).error, 0u);
}

INSTANTIATE_TEST_SUITE_P(Volume, HostileArena, ::testing::Bool(), volume_name);

}  // namespace
}  // namespace atomic4::test
