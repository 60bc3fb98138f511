// Who leaves a file exclusive: a database that reads its own file, a backup, a client that promises
// to write only through the daemon. And who makes it strict, for how long.
#include <sys/mman.h>

#include <atomic>

#include "support/forked.h"
#include "support/served_volume.h"
#include "support/shared_count.h"
#include "support/stamps.h"

namespace atomic4::test {
namespace {

constexpr size_t kUnits = 128;

class ExclusiveTest : public ServedTest {
  protected:
    struct Acks {
        uint64_t exclusive = 0;
        uint64_t strict = 0;
    };
    Acks write(Client& client, const File& file, uint64_t count) {
        Acks acks;
        for (uint64_t i = 0; i < count; ++i) {
            const uint64_t offset = random_() % kUnits * kUnit;
            const auto done = must(
                client.write(file.handle, ByteOffset(offset), stamped(kUnit, 1, i + 1, offset)));
            ++(done.ack_mode == wire::AckMode::Exclusive ? acks.exclusive : acks.strict);
        }
        return acks;
    }
    static FileStatus status(Client& client, const File& file) {
        return must(client.statx(file.handle));
    }
    std::mt19937_64 random_{11};
    const uint64_t writes_ = long_form() ? 5000 : 500;
};

TEST_F(ExclusiveTest, AReadingDatabaseAndARunningBackupLeaveItSo) {
    serve();
    make_file("data", kUnits * kUnit);
    struct Counts {
        std::atomic<bool> stop{false};
        std::atomic<uint64_t> backups{0}, queries{0};
    };
    SharedValue<Counts> counts;
    Forked backup([&] {
        for (; !counts->stop; ++counts->backups)
            if (run_command({"cp", path("data"), path("backup")}).status != 0) return 1;
        return 0;
    });
    Forked reader([&] {
        for (std::mt19937_64 random(1); !counts->stop; ++counts->queries) {
            // As a database's other processes: opens it, reads, maps some.
            const UniqueFd fd = open_path(path("data"), O_RDONLY);
            char page[4096];
            const auto at = static_cast<off_t>(random() % kUnits * kUnit);
            if (::pread(fd.get(), page, sizeof page, at) != sizeof page) return 1;
            void* map = ::mmap(nullptr, kUnit, PROT_READ, MAP_SHARED, fd.get(), at);
            if (map == MAP_FAILED || ::munmap(map, kUnit) != 0) return 1;
        }
        return 0;
    });
    const auto client = connect();
    const File file = open_through(*client, path("data"));
    // The process that writes reads its own file too.
    const UniqueFd own = open_path(path("data"), O_RDONLY);
    ASSERT_TRUE(until_exclusive(*client, file)) << status(*client, file).why_strict;
    Acks sum;
    while (sum.exclusive + sum.strict < writes_ || counts->backups < 3 || counts->queries < 100) {
        const Acks acks = write(*client, file, 50);
        sum.exclusive += acks.exclusive;
        sum.strict += acks.strict;
        const FileStatus now = status(*client, file);
        EXPECT_EQ(now.ack_mode, wire::AckMode::Exclusive) << now.why_strict;
        if (HasFailure()) break;
    }
    counts->stop = true;
    EXPECT_EQ(backup.wait(), 0);
    EXPECT_EQ(reader.wait(), 0);
    fmt::print("{} exclusive, {} strict; {} backups, {} queries\n", sum.exclusive, sum.strict,
               counts->backups.load(), counts->queries.load());
    EXPECT_EQ(sum.strict, 0u);
    const std::string stats = must(client->stats());
    EXPECT_NE(stats.find("exclusive"), std::string::npos);
}

TEST_F(ExclusiveTest, AWriterMakesItStrictUntilItIsGone) {
    serve();
    make_file("data", kUnits * kUnit);
    const auto client = connect();
    const File file = open_through(*client, path("data"));
    ASSERT_TRUE(until_exclusive(*client, file)) << status(*client, file).why_strict;
    UniqueFd writer = open_path(path("data"), O_WRONLY);
    EXPECT_EQ(status(*client, file).ack_mode, wire::AckMode::Strict);
    EXPECT_NE(status(*client, file).why_strict, "");
    EXPECT_EQ(write(*client, file, 20).exclusive, 0u);
    writer.reset();
    ASSERT_TRUE(until_exclusive(*client, file)) << status(*client, file).why_strict;
    EXPECT_EQ(write(*client, file, 20).strict, 0u);
}

TEST_F(ExclusiveTest, ACooperatingClientMayKeepItsDescriptor) {
    serve();
    make_file("data", kUnits * kUnit);
    const auto client = connect();
    const File first = open_through(*client, path("data"));
    ASSERT_TRUE(until_exclusive(*client, first)) << status(*client, first).why_strict;
    const UniqueFd own = open_path(path("data"), O_RDWR);
    EXPECT_EQ(write(*client, first, 20).exclusive, 0u) << "nothing was promised yet";
    const File file =
        must(client->open(own.get(), wire::kOpenRead | wire::kOpenWrite | wire::kOpenCooperative));
    EXPECT_TRUE(until_exclusive(*client, file)) << status(*client, file).why_strict;
    EXPECT_EQ(write(*client, file, 50).strict, 0u);
    // Another process is no party to the promise.
    SharedValue<SharedCount> step;
    Forked other([&] {
        const UniqueFd writer = open_path(path("data"), O_RDWR);
        step->set(1);
        step->wait_for(2);
        return 0;
    });
    step->wait_for(1);
    EXPECT_EQ(write(*client, file, 20).exclusive, 0u);
    step->set(2);
    EXPECT_EQ(other.wait(), 0);
}

// Whose a descriptor is that was open before the first OPEN can't be told, a promise or not.
TEST_F(ExclusiveTest, ACooperatingClientsEarlierDescriptorCountsUntilItIsClosed) {
    serve();
    make_file("data", kUnits * kUnit);
    const auto client = connect();
    UniqueFd own = open_path(path("data"), O_RDWR);
    const uint32_t flags = wire::kOpenRead | wire::kOpenWrite | wire::kOpenCooperative;
    const File file = must(client->open(own.get(), flags));
    EXPECT_EQ(write(*client, file, 50).exclusive, 0u);
    const std::string why = status(*client, file).why_strict;
    EXPECT_NE(why.find("before the file's first OPEN"), std::string::npos) << why;
    EXPECT_NE(why.find("closes its own after OPEN"), std::string::npos) << why;
    // Nor does it help to say it again.
    const File again = must(client->open(own.get(), flags));
    EXPECT_EQ(write(*client, again, 50).exclusive, 0u);
    own.reset();
    ASSERT_TRUE(until_exclusive(*client, file)) << status(*client, file).why_strict;
    EXPECT_EQ(write(*client, file, 50).strict, 0u);
    // As the reason says: opened again, and declared.
    own = open_path(path("data"), O_RDWR);
    EXPECT_EQ(write(*client, file, 20).exclusive, 0u);
    EXPECT_NE(status(*client, file).why_strict.find("cooperative"), std::string::npos);
    must(client->open(own.get(), flags));
    ASSERT_TRUE(until_exclusive(*client, file)) << status(*client, file).why_strict;
    EXPECT_EQ(write(*client, file, 50).strict, 0u);
}

TEST_F(ExclusiveTest, WithoutTheWatchEveryFileIsStrict) {
    Volume volume;
    volume.daemon = {"--no-watch"};
    serve(volume);
    make_file("data", kUnits * kUnit);
    const auto client = connect();
    const File file = open_through(*client, path("data"));
    EXPECT_EQ(write(*client, file, 20).exclusive, 0u);
    EXPECT_NE(status(*client, file).why_strict.find("--no-watch"), std::string::npos)
        << status(*client, file).why_strict;
}

}  // namespace
}  // namespace atomic4::test
