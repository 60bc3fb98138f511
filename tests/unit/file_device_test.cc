#include "device/file_device.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>

#include "support/bytes.h"
#include "support/command.h"
#include "support/device_shadow.h"
#include "support/failing_syscalls.h"
#include "support/privileged.h"

namespace atomic4::test {
namespace {

constexpr FileDeviceOptions kReadWrite{.access = Access::ReadWrite, .exclusive = true};
constexpr FileDeviceOptions kReadOnly{.access = Access::ReadOnly, .exclusive = true};

class FileDeviceTest : public testing::Test {
  protected:
    std::string image(uint64_t size) {
        const std::string path = dir_.file("image");
        std::ofstream(path).flush();
        std::filesystem::resize_file(path, size);
        return path;
    }
    std::unique_ptr<FileDevice> open_image(uint64_t size) {
        auto device = FileDevice::open(image(size), kReadWrite);
        EXPECT_TRUE(device.has_value()) << device.error().message;
        return std::move(device).value();
    }
    Error open_error(const std::string& path, FileDeviceOptions options = kReadWrite) {
        auto device = FileDevice::open(path, options);
        EXPECT_FALSE(device.has_value()) << path;
        if (device.has_value()) return {};
        EXPECT_NE(device.error().message.find(path), std::string::npos) << device.error().message;
        return device.error();
    }

    TempDir dir_;
};

TEST_F(FileDeviceTest, KnowsWhatItIs) {
    const auto device = open_image(1 << 20);
    EXPECT_EQ(device->size(), Bytes(1 << 20));
    EXPECT_EQ(device->name(), dir_.file("image"));
    EXPECT_FALSE(device->read_only());
    EXPECT_FALSE(device->is_block_device());
    EXPECT_TRUE(is_power_of_two(device->alignment().value()));
    EXPECT_TRUE(is_power_of_two(device->memory_alignment().value()));
    EXPECT_NE(fcntl(device->fd(), F_GETFD) & FD_CLOEXEC, 0);
    EXPECT_EQ((fcntl(device->fd(), F_GETFL) & O_DIRECT) != 0, device->direct());
    EXPECT_EQ(fcntl(device->fd(), F_GETFL) & O_NONBLOCK, 0);
    EXPECT_NE(device->atomic_limits().supported(), !device->atomic_limits().why_not.empty());
}

TEST_F(FileDeviceTest, RandomCallsOfAnyAlignment) {
    compare_with_shadow(*open_image(1 << 20), 4, 600, 50'000);
    compare_with_shadow(*open_image(1 << 20), 5, 200, 700'000);
}

TEST_F(FileDeviceTest, RandomCallsOnAnOddSizedImage) {
    auto device = open_image(300'123);
    compare_with_shadow(*device, 6, 600, 50'000);
    EXPECT_EQ(std::filesystem::file_size(device->name()), 300'123u);
    EXPECT_EQ((fcntl(device->fd(), F_GETFL) & O_DIRECT) != 0, device->direct());
    device.reset();  // and with it the lock
    compare_with_shadow(*open_image(100), 7, 200, 100);
}

TEST_F(FileDeviceTest, LongUnalignedReads) {
    const auto device = open_image(5 << 20);
    std::mt19937_64 random(8);
    const auto data = random_bytes((5 << 20) - 3, random);
    ASSERT_TRUE(device->write(ByteOffset(1), data).has_value());
    auto back = filled(data.size(), 0);
    ASSERT_TRUE(device->read(ByteOffset(1), back).has_value());
    EXPECT_TRUE(data == back);
}

uint64_t write_calls() {
    std::ifstream io("/proc/self/io");
    std::string word;
    uint64_t value = 0;
    while (io >> word >> value)
        if (word == "syscw:") return value;
    return 0;
}

// How many write calls one call of the function makes. The least of several: sanitizers make some
// of their own at first.
uint64_t write_calls_of(const std::function<Result<>()>& function) {
    uint64_t least = ~0ull;
    for (int i = 0; i < 5; ++i) {
        const uint64_t before = write_calls();
        EXPECT_TRUE(function().has_value());
        least = std::min(least, write_calls() - before);
    }
    return least;
}

// The redo log relies on it: one record, one write.
TEST_F(FileDeviceTest, AnAlignedWriteIsOneSystemCall) {
    const auto device = open_image(8 << 20);
    const auto data = filled((4 << 20) + 1, 3);
    for (const size_t skew : {0, 1}) {
        const auto part = std::span(data).subspan(skew, 4 << 20);
        EXPECT_EQ(write_calls_of([&] { return device->write(ByteOffset(4096), part); }), 1u);
        EXPECT_EQ(write_calls_of([&] { return device->write_durable(ByteOffset(4096), part); }),
                  1u);
    }
}

TEST_F(FileDeviceTest, ZeroMakesAHole) {
    const auto device = open_image(4 << 20);
    ASSERT_TRUE(device->write(ByteOffset(0), filled(4 << 20, 7)).has_value());
    ASSERT_TRUE(device->flush().has_value());
    struct stat before{};
    ASSERT_EQ(fstat(device->fd(), &before), 0);
    ASSERT_TRUE(device->zero(ByteOffset(1000), Bytes(3'000'000)).has_value());
    ASSERT_TRUE(device->flush().has_value());
    struct stat after{};
    ASSERT_EQ(fstat(device->fd(), &after), 0);
    EXPECT_LT(after.st_blocks, before.st_blocks);
    EXPECT_EQ(after.st_size, 4 << 20);
    auto data = filled(4 << 20, 1);
    ASSERT_TRUE(device->read(ByteOffset(0), data).has_value());
    for (size_t i = 0; i < data.size(); ++i)
        ASSERT_EQ(data[i], std::byte(i >= 1000 && i < 3'001'000 ? 0 : 7)) << i;
    EXPECT_TRUE(device->zero(ByteOffset(5), Bytes(0)).has_value());
}

TEST_F(FileDeviceTest, RefusesWhatIsBeyondItsEnd) {
    const auto device = open_image(8192);
    auto data = filled(4096, 1);
    EXPECT_EQ(device->read(ByteOffset(4097), data).error().code, EINVAL);
    EXPECT_EQ(device->write(ByteOffset(8192), data).error().code, EINVAL);
    EXPECT_EQ(device->write_durable(ByteOffset(~0ull), data).error().code, EINVAL);
    EXPECT_EQ(device->write_atomic(ByteOffset(8192), data).error().code, EINVAL);
    EXPECT_EQ(device->zero(ByteOffset(0), Bytes(8193)).error().code, EINVAL);
    EXPECT_EQ(std::filesystem::file_size(device->name()), 8192u);
}

TEST_F(FileDeviceTest, NoAtomicWriteWithoutSupport) {
    const auto device = open_image(8192);
    if (device->atomic_limits().supported()) A4_SKIP("this file system can");
    const auto result = device->write_atomic(ByteOffset(0), filled(4096, 1));
    EXPECT_EQ(result.error().code, EOPNOTSUPP);
    EXPECT_NE(result.error().message.find(device->atomic_limits().why_not), std::string::npos);
    EXPECT_TRUE(device->write(ByteOffset(0), filled(4096, 1)).has_value());
}

TEST_F(FileDeviceTest, ReadOnlyAccess) {
    const std::string path = image(8192);
    const auto device = std::move(FileDevice::open(path, kReadOnly)).value();
    EXPECT_TRUE(device->read_only());
    EXPECT_EQ(device->write(ByteOffset(0), filled(1, 1)).error().code, EROFS);
    EXPECT_EQ(device->write_durable(ByteOffset(0), filled(1, 1)).error().code, EROFS);
    EXPECT_EQ(device->write_atomic(ByteOffset(0), filled(4096, 1)).error().code, EROFS);
    EXPECT_EQ(device->zero(ByteOffset(0), Bytes(1)).error().code, EROFS);
    EXPECT_TRUE(device->flush().has_value());
    auto data = filled(10, 1);
    EXPECT_TRUE(device->read(ByteOffset(3), data).has_value());
    EXPECT_EQ(data, filled(10, 0));
}

TEST_F(FileDeviceTest, ATruncatedImageIsAnErrorAndNotZeros) {
    const auto device = open_image(8192);
    ASSERT_EQ(truncate(device->name().c_str(), 4096), 0);
    auto data = filled(8192, 1);
    const auto result = device->read(ByteOffset(0), data);
    EXPECT_EQ(result.error().code, EIO);
    EXPECT_NE(result.error().message.find("truncated"), std::string::npos);
}

TEST_F(FileDeviceTest, OtherKindsOfFilesAreRefusedWithoutHanging) {
    EXPECT_EQ(open_error(dir_.file("missing")).code, ENOENT);
    EXPECT_EQ(open_error(dir_.file("missing") + "/x").code, ENOENT);
    EXPECT_EQ(open_error(dir_.path()).code, EISDIR);
    EXPECT_EQ(open_error(dir_.path(), kReadOnly).code, EISDIR);
    for (const auto& options : {kReadWrite, kReadOnly}) {
        const Error null = open_error("/dev/null", options);
        EXPECT_EQ(null.code, EINVAL);
        EXPECT_NE(null.message.find("character device"), std::string::npos);
    }
    const std::string fifo = dir_.file("fifo");
    ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
    const Error error = open_error(fifo, kReadOnly);
    EXPECT_EQ(error.code, EINVAL);
    EXPECT_NE(error.message.find("is a FIFO"), std::string::npos);

    const std::string socket_path = dir_.file("socket");
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    ASSERT_LT(socket_path.size(), sizeof address.sun_path);
    socket_path.copy(address.sun_path, socket_path.size());
    const UniqueFd socket_fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    ASSERT_EQ(bind(socket_fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(open_error(socket_path).code, EINVAL);

    std::filesystem::create_symlink("loop", dir_.file("loop"));
    EXPECT_EQ(open_error(dir_.file("loop")).code, ELOOP);
}

TEST_F(FileDeviceTest, NoPermission) {
    const std::string path = image(4096);
    ASSERT_EQ(chmod(path.c_str(), 0), 0);
    if (geteuid() != 0) {
        EXPECT_EQ(open_error(path).code, EACCES);
        return;
    }
    // Root may do everything: a child asks as nobody.
    ASSERT_EQ(chmod(dir_.path().c_str(), 0755), 0);
    const pid_t child = fork();
    if (child == 0) {
        if (setegid(65534) != 0 || seteuid(65534) != 0) _exit(99);
        const auto device = FileDevice::open(path, kReadOnly);
        _exit(device.has_value() ? 0 : device.error().code);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(WEXITSTATUS(status), EACCES);
}

TEST_F(FileDeviceTest, LocksAgainstASecondOpening) {
    const std::string path = image(4096);
    auto writer = FileDevice::open(path, kReadWrite);
    ASSERT_TRUE(writer.has_value());
    EXPECT_EQ(open_error(path, kReadWrite).code, EBUSY);
    EXPECT_EQ(open_error(path, kReadOnly).code, EBUSY);
    FileDeviceOptions shared = kReadWrite;
    shared.exclusive = false;
    EXPECT_TRUE(FileDevice::open(path, shared).has_value());
    writer->reset();
    auto reader = FileDevice::open(path, kReadOnly);
    ASSERT_TRUE(reader.has_value());
    EXPECT_TRUE(FileDevice::open(path, kReadOnly).has_value());
    EXPECT_EQ(open_error(path, kReadWrite).code, EBUSY);
    reader->reset();
    EXPECT_TRUE(FileDevice::open(path, kReadWrite).has_value());
}

TEST_F(FileDeviceTest, NamesTheProcessThatHasIt) {
    const std::string path = image(4096);
    int ready[2], stop[2];
    ASSERT_EQ(pipe2(ready, O_CLOEXEC), 0);
    ASSERT_EQ(pipe2(stop, O_CLOEXEC), 0);
    const pid_t child = fork();
    if (child == 0) {
        close(stop[1]);
        const int fd = open(path.c_str(), O_RDWR | O_CLOEXEC);
        char byte = flock(fd, LOCK_EX) == 0 ? 'y' : 'n';
        if (write(ready[1], &byte, 1) != 1) _exit(1);
        _exit(read(stop[0], &byte, 1) == 0 ? 0 : 1);  // until the parent closes, or dies
    }
    const UniqueFd ready_end(ready[0]), ready_other(ready[1]), stop_other(stop[0]);
    UniqueFd stop_end(stop[1]);
    char byte = 0;
    ASSERT_EQ(read(ready[0], &byte, 1), 1);
    ASSERT_EQ(byte, 'y');
    const Error error = open_error(path);
    EXPECT_EQ(error.code, EBUSY);
    EXPECT_NE(error.message.find("is in use by another process"), std::string::npos);
    EXPECT_NE(error.message.find(fmt::format("(pid {}, unit_tests", child)), std::string::npos)
        << error.message;
    stop_end.reset();
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
    EXPECT_TRUE(FileDevice::open(path, kReadWrite).has_value());
}

std::string must_fail(const Result<>& result, int code, const std::string& part) {
    if (result.has_value()) return "no error with \"" + part + "\"";
    if (result.error().code == code && result.error().message.find(part) != std::string::npos)
        return "";
    return fmt::format("got {} \"{}\"; ", result.error().code, result.error().message);
}

std::string must_be_poisoned(FileDevice& device) {
    const std::string why = "a flush failed earlier; what was written before it is in doubt";
    auto data = filled(4096, 1);
    std::string complaint = device.poisoned() ? "" : "not poisoned; ";
    complaint += must_fail(device.flush(), EIO, why);
    complaint += must_fail(device.write(ByteOffset(0), data), EIO, why);
    complaint += must_fail(device.write_durable(ByteOffset(0), data), EIO, why);
    complaint += must_fail(device.write_atomic(ByteOffset(0), data), EIO, why);
    complaint += must_fail(device.zero(ByteOffset(0), Bytes(4096)), EIO, why);
    if (!device.read(ByteOffset(0), data).has_value()) complaint += "reads fail too; ";
    if (data != filled(4096, 0)) complaint += "something was written; ";
    return complaint;
}

// Joins complaints. In braces, since that fixes the order in which the calls are made.
std::string joined(std::initializer_list<std::string> complaints) {
    std::string result;
    for (const std::string& complaint : complaints) result += complaint;
    return result;
}

TEST_F(FileDeviceTest, AFailedFlushIsFinal) {
    const auto device = open_image(8192);
    for (const int code : {EIO, ENOSPC}) {
        const auto body = [&] {
            return joined(
                {must_fail(device->flush(), code, "in doubt"), must_be_poisoned(*device)});
        };
        EXPECT_EQ(run_with_failing_syscalls({{SYS_fdatasync, code}}, body), "");
    }
}

TEST_F(FileDeviceTest, AFailedDurableWriteIsFinalToo) {
    const auto device = open_image(8192);
    const auto data = filled(4096, 1);
    const auto body = [&] {
        return joined({must_fail(device->write_durable(ByteOffset(0), data), EIO, "in doubt"),
                       must_be_poisoned(*device)});
    };
    EXPECT_EQ(run_with_failing_syscalls({{SYS_pwritev2, EIO}}, body), "");
}

TEST_F(FileDeviceTest, ARefusedOrFailedPlainWriteIsNot) {
    const auto device = open_image(8192);
    const auto data = filled(4096, 1);
    const auto body = [&] {
        auto into = data;
        return joined({must_fail(device->write_durable(ByteOffset(0), data), EINVAL,
                                 "write of 4096 bytes at 0"),
                       must_fail(device->write(ByteOffset(4096), data), EIO,
                                 "write of 4096 bytes at 4096: Input/output error"),
                       must_fail(device->read(ByteOffset(0), into), EIO,
                                 "read of 4096 bytes at 0: Input/output error"),
                       device->poisoned() ? "poisoned" : ""});
    };
    EXPECT_EQ(run_with_failing_syscalls(
                  {{SYS_pwritev2, EINVAL}, {SYS_pwrite64, EIO}, {SYS_pread64, EIO}}, body),
              "");
}

TEST_F(FileDeviceTest, DurableWritesWithoutKernelSupport) {
    const auto device = open_image(8192);
    const auto data = filled(4096, 1);
    const auto works = [&] {
        const auto done = device->write_durable(ByteOffset(0), data);
        return done.has_value() ? "" : done.error().message;
    };
    EXPECT_EQ(run_with_failing_syscalls({{SYS_pwritev2, EOPNOTSUPP}}, works), "");
    auto back = filled(4096, 0);
    ASSERT_TRUE(device->read(ByteOffset(0), back).has_value());
    EXPECT_EQ(back, data);
    const auto fails = [&] {
        return joined({must_fail(device->write_durable(ByteOffset(0), data), EIO, "in doubt"),
                       device->poisoned() ? "" : "not poisoned"});
    };
    EXPECT_EQ(run_with_failing_syscalls({{SYS_pwritev2, EOPNOTSUPP}, {SYS_fdatasync, EIO}}, fails),
              "");
}

TEST_F(FileDeviceTest, ZerosByWritingWhereThereAreNoHoles) {
    const auto device = open_image(5 << 20);
    ASSERT_TRUE(device->write(ByteOffset(0), filled(5 << 20, 7)).has_value());
    EXPECT_EQ(run_with_failing_syscalls({{SYS_fallocate, EOPNOTSUPP}},
                                        [&] {
                                            const auto done =
                                                device->zero(ByteOffset(999), Bytes(4 << 20));
                                            return done.has_value() ? "" : done.error().message;
                                        }),
              "");
    auto data = filled(5 << 20, 1);
    ASSERT_TRUE(device->read(ByteOffset(0), data).has_value());
    for (size_t i = 0; i < data.size(); ++i)
        ASSERT_EQ(data[i], std::byte(i >= 999 && i < 999 + (4 << 20) ? 0 : 7)) << i;
    EXPECT_EQ(run_with_failing_syscalls({{SYS_fallocate, ENOSPC}},
                                        [&] {
                                            return must_fail(
                                                device->zero(ByteOffset(0), Bytes(4096)), ENOSPC,
                                                "zeroing 4096 bytes at 0");
                                        }),
              "");
}

}  // namespace
}  // namespace atomic4::test
