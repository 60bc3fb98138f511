// Somebody mixes mmap(2) and direct writes on the same pages of a served file, which makes the
// kernel report errors of its page cache to whoever flushes the file: that is that file's business,
// and nobody else's.
#include <gmock/gmock.h>
#include <sys/mman.h>

#include <atomic>
#include <cstring>
#include <thread>

#include "support/bytes.h"
#include "support/mounted_image.h"
#include "support/mounted_scenario.h"
#include "support/privileged.h"

namespace atomic4::test {
namespace {

using ::testing::HasSubstr;

constexpr size_t kLength = 64 << 10;

// Until the object goes. The descriptors are open, and stay so.
class Disturber {
  public:
    Disturber(const UniqueFd& buffered, const UniqueFd& direct) {
        memory_ = static_cast<volatile char*>(
            ::mmap(nullptr, kLength, PROT_READ | PROT_WRITE, MAP_SHARED, buffered.get(), 0));
        if (memory_ == MAP_FAILED) throw std::runtime_error("mmap");
        threads_.emplace_back([this] {
            while (!stop_)
                for (size_t at = 0; at < kLength; at += 4096) memory_[at] = 1;
        });
        threads_.emplace_back([this, fd = direct.get()] {
            const std::unique_ptr<void, void (*)(void*)> bytes(std::aligned_alloc(4096, kLength),
                                                               std::free);
            std::memset(bytes.get(), 1, kLength);
            while (!stop_) (void)!::pwrite(fd, bytes.get(), kLength, 0);
        });
    }
    ~Disturber() {
        stop_ = true;
        threads_.clear();
        ::munmap(const_cast<char*>(memory_), kLength);
    }
    Disturber(const Disturber&) = delete;
    Disturber& operator=(const Disturber&) = delete;

  private:
    volatile char* memory_ = nullptr;
    std::atomic<bool> stop_ = false;
    std::vector<std::jthread> threads_;
};

void make_file(MountedSession& session) {
    ASSERT_EQ(session.by_others([path = session.path("disturbed")] {
        const UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
        return ::fallocate(fd.get(), 0, 0, kLength) == 0 && ::fsync(fd.get()) == 0 ? 0 : -errno;
    }),
              0);
}

// Open, with nobody disturbing it any more, after a flush has told of its pages.
FileRef disturbed_file(MountedSession& session) {
    make_file(session);
    const UniqueFd buffered = session.open_by_others("disturbed", O_RDWR);
    const UniqueFd direct = session.open_by_others("disturbed", O_RDWR | O_DIRECT);
    auto file = session.open("disturbed");
    if (!file) return nullptr;
    const Disturber disturber(buffered, direct);
    for (unsigned i = 0; i < 5000; ++i)
        if (!session.driver().flush(*file)) return *file;
    return nullptr;
}

TEST(PageErrors, AreTheFilesOwnBusiness) {
    if (const auto why = FaultDisk::why_not()) A4_SKIP(*why);
    MountedScenario it(1);
    MountedSession& session = it.session();
    make_file(session);
    const UniqueFd buffered = session.open_by_others("disturbed", O_RDWR);
    const UniqueFd direct = session.open_by_others("disturbed", O_RDWR | O_DIRECT);
    ASSERT_TRUE(buffered && direct);
    const auto file = session.open("disturbed");
    ASSERT_TRUE(file) << file.error().message;
    // Told by one flush or another; each is told once.
    unsigned told = 0;
    {
        const Disturber disturber(buffered, direct);
        const auto bytes = filled(kLength / 2, 7);
        for (unsigned i = 0; i < 2000 && told < 3; ++i) {
            const auto written = session.driver().write(*file, 0, bytes);
            const auto flushed = session.driver().flush(*file);
            ASSERT_EQ(session.target().poisoned(), nullptr) << *session.target().poisoned();
            if (!written) {
                // The file is given up; the disturber has won.
                EXPECT_THAT(written.error().message, HasSubstr("others' pages"));
                EXPECT_EQ(written.error().code, EIO);
                ++told;
            }
            if (!flushed) {
                EXPECT_EQ(flushed.error().code, EIO);
                EXPECT_THAT(flushed.error().message, HasSubstr("plain writes"));
                ++told;
            }
            ASSERT_TRUE(it.write({{MountedScenario::kData, 0, 4}}));
            ASSERT_TRUE(it.write({{MountedScenario::kShared, 0, 4}}));
        }
    }
    EXPECT_GT(told, 0u);
    EXPECT_TRUE(session.driver().stop());
}

// Where what the pages say hides what the device says, the device is asked by the log's file.
TEST(PageErrors, DontHideTheDevices) {
    if (const auto why = FaultDisk::why_not()) A4_SKIP(*why);
    MountedScenario it(1);
    MountedSession& session = it.session();
    const FileRef file = disturbed_file(session);
    ASSERT_NE(file, nullptr);
    it.disk().fail(FaultDisk::What::Flush, 0, FaultDisk::kForEver);
    const auto flushed = session.driver().flush(file);
    ASSERT_FALSE(flushed);
    EXPECT_EQ(flushed.error().code, EIO);
    EXPECT_THAT(flushed.error().message, HasSubstr("in doubt"));
    EXPECT_NE(session.target().poisoned(), nullptr);
    it.disk().heal();
}

// There each inode has its own changes, and flushing the log's file says nothing of the others.
TEST(PageErrors, NothingIsLostWithoutAJournal) {
    if (const auto why = FaultDisk::why_not()) A4_SKIP(*why);
    MountedScenario it(1, MountedScenario::Journal::Without);
    MountedSession& session = it.session();
    const FileRef file = disturbed_file(session);
    ASSERT_NE(file, nullptr);
    const auto bytes = filled(kLength, 7);
    ASSERT_TRUE(session.driver().write(file, 0, bytes));
    ASSERT_TRUE(session.driver().write(file, kLength, bytes));  // longer
    session.driver().run_until([&] { return session.target().counts().live_records == 0; });
    Image image;
    e2fsck(it.disk().recorded()->image_after(it.disk().events(), 0), {"-fy"}, &image);
    EXPECT_TRUE(session.driver().stop());

    MountedImage mounted(image);
    mounted.mount();
    auto expected = bytes;
    expected.insert(expected.end(), bytes.begin(), bytes.end());
    EXPECT_TRUE(file_contents(mounted.file("disturbed")) == expected);
}

}  // namespace
}  // namespace atomic4::test
