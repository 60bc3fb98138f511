// A mounted volume on a disk that fails or fills up: what clients are told, what goes on, and that
// a restart finds all that was acknowledged.
#include <gmock/gmock.h>

#include "support/mounted_scenario.h"
#include "support/other_process.h"
#include "support/power_cut.h"
#include "support/privileged.h"

namespace atomic4::test {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

using Part = WriteHistory::Part;
using What = FaultDisk::What;
constexpr auto kData = MountedScenario::kData;
constexpr auto kGrow = MountedScenario::kGrow;
constexpr auto kSparse = MountedScenario::kSparse;
constexpr auto kShared = MountedScenario::kShared;

class MountedFaultsTest : public ::testing::Test {
  protected:
    void SetUp() override {
        if (const auto why = FaultDisk::why_not()) A4_SKIP(*why);
    }
};

// Each kind of write once: alone, at once, growing, into a hole, strict, a batch.
void one_of_each(MountedScenario& it) {
    for (const Part& part : {Part{kData, 0, 4}, Part{kGrow, 0, 4}, Part{kShared, 0, 4}})
        (void)it.write({part}).has_value();
    it.others_write();
    it.submit({{kData, 4, 4}});
    it.submit({{kSparse, 8, 4}});
    it.submit({{kData, 0, 2}, {kShared, 4, 2}, {kGrow, 4, 2}});
    it.settle();
}

// In doubt or not, nobody may be kept waiting, and nothing may be served that isn't certain.
void check_poisoned(MountedScenario& it) {
    for (const Error& error : it.errors) {
        // ext4 has lost its journal, and the write was refused before anything was logged.
        if (error.code == EROFS) {
            EXPECT_THAT(error.message, HasSubstr("allocating blocks for the write"));
            continue;
        }
        EXPECT_EQ(error.code, EIO) << error.message;
        EXPECT_THAT(error.message, HasSubstr("in doubt"));
    }
    const auto later = it.write({{kData, 12, 4}});
    ASSERT_FALSE(later);
    EXPECT_EQ(later.error().code, EIO);
    EXPECT_THAT(later.error().message, HasSubstr("in doubt"));
    // Readers and openers of what was under way are answered, too; what, is the kernel's business.
    for (const auto which : {kData, kGrow, kShared})
        (void)it.session().driver().read(it.file(which), 0, 64 << 10).has_value();
    (void)it.session().open("data").has_value();
    OtherProcess opener(it.session().path("data"));
    // The kernel may have made the volume read-only; but there is an answer.
    EXPECT_NE(it.session().by_others([&] { return opener.step('w'); }), '?');
}

// By the other thread: an open is answered by the loop, which must not wait for itself.
std::string judge_now(MountedScenario& it) {
    std::string complaint;
    (void)it.session().by_others([&] {
        complaint = judge_mounted(it.dir(), it.history(), it.disk().events());
        return 0;
    });
    return complaint;
}

// The daemon starts again: on the mount as it is, or, if the kernel has given that up, on another.
std::string restart(MountedScenario& it) {
    it.crash();
    auto served = it.serve({});
    if (!served) {
        it.unmount();
        it.mount();
        served = it.serve({});
    }
    if (!served) return served.error().message;
    if (const auto done = it.write({{kData, 12, 4}}); !done) return done.error().message;
    return judge_now(it);
}

void fail_nth(What what, uint64_t nth, bool& past_the_end, size_t& poisoned) {
    MountedScenario it(1);
    it.disk().fail(what, nth);
    one_of_each(it);
    past_the_end = it.disk().failed() == 0;
    it.disk().heal();
    if (it.session().target().poisoned() != nullptr) {
        ++poisoned;
        check_poisoned(it);
        // The power may go at this moment, too.
        if (nth % 3 == 0) {
            const size_t now = it.disk().events();
            const TempDir temp;
            ASSERT_EQ(run_command({"mkdir", temp.file("mnt")}).status, 0);
            const Recovered recovered =
                recover_after_cut(it.disk().recorded()->image_after(now, nth % 2),
                                  Recovery::PrivateMount, temp.file("mnt"), it.history(), now);
            EXPECT_EQ(recovered.complaint, "");
        }
    }
    EXPECT_EQ(restart(it), "");
}

TEST_F(MountedFaultsTest, AnyWriteMayFail) {
    bool past_the_end = false;
    size_t poisoned = 0;
    uint64_t nth = 0;
    for (; !past_the_end; ++nth) {
        SCOPED_TRACE(fmt::format("write {} fails", nth));
        fail_nth(What::Write, nth, past_the_end, poisoned);
        if (HasFailure()) break;
    }
    EXPECT_GT(poisoned, 8u) << nth;
}

// ext4's commit fails while another process waits for it: that one is told. fdatasync of the
// clients' file, whose changes were in the same transaction, isn't: it comes too late and returns
// 0.
TEST_F(MountedFaultsTest, ACommitThatFailedForSomebodyElse) {
    enum class How { Strict, Flush, NewServer };
    size_t aborted = 0;
    for (const How how : {How::Strict, How::Flush, How::NewServer}) {
        // Others' bytes, then the blocks of the commit.
        for (uint64_t nth = 0; nth < 5; ++nth) {
            SCOPED_TRACE(fmt::format("write {} fails, {}", nth, static_cast<int>(how)));
            MountedScenario it(1);
            // A time of access would make ext4 notice.
            ASSERT_EQ(run_command({"mount", "-o", "remount,noatime", it.dir()}).status, 0);
            UniqueFd others = it.session().open_by_others("shared", O_RDWR);
            ASSERT_TRUE(it.write({{kSparse, 8, 4}}));
            it.disk().fail(What::Write, nth);
            const int told = it.others_write_now(others.get(), {kShared, 200, 1});
            it.disk().heal();
            Result<> done;
            if (how == How::Strict) done = it.write({{kShared, 0, 4}, {kData, 0, 4}});
            if (how == How::Flush) done = it.session().driver().flush(nullptr);
            EXPECT_THAT(done ? "in doubt" : done.error().message, HasSubstr("in doubt"));
            // Asked before the flush, or before the next server's, ext4 would have noticed.
            const auto is_gone = [&] {
                return ::futimens(others.get(), nullptr) != 0 ||
                       ::futimens(others.get(), nullptr) != 0;
            };
            if (how != How::NewServer && told != 0 && it.session().by_others(is_gone) != 0) {
                EXPECT_FALSE(done);
                ++aborted;
            }
            others.reset();
            EXPECT_EQ(restart(it), "");
        }
    }
    EXPECT_GE(aborted, 1u);
}

TEST_F(MountedFaultsTest, AnyFlushMayFail) {
    bool past_the_end = false;
    size_t poisoned = 0;
    uint64_t nth = 0;
    for (; !past_the_end; ++nth) {
        SCOPED_TRACE(fmt::format("flush {} fails", nth));
        fail_nth(What::Flush, nth, past_the_end, poisoned);
        if (HasFailure()) break;
    }
    EXPECT_GT(poisoned, 4u) << nth;
}

TEST_F(MountedFaultsTest, ADiskThatIsGone) {
    MountedScenario it(1);
    ASSERT_TRUE(it.write({{kData, 0, 4}}));
    it.disk().fail(What::Both, 0, FaultDisk::kForEver);
    one_of_each(it);
    ASSERT_NE(it.session().target().poisoned(), nullptr);
    check_poisoned(it);
    it.disk().heal();
    EXPECT_EQ(restart(it), "");
}

TEST_F(MountedFaultsTest, AThinDiskThatIsFull) {
    MountedScenario it(1);
    ASSERT_TRUE(it.write({{kData, 0, 4}}));
    it.disk().fill_up_after(0);
    one_of_each(it);
    it.disk().heal();
    if (it.session().target().poisoned() != nullptr) check_poisoned(it);
    EXPECT_EQ(restart(it), "");
}

TEST_F(MountedFaultsTest, AFullVolumeRefusesWhatNeedsBlocksAndServesTheRest) {
    MountedScenario it(1);
    ASSERT_EQ(it.session().by_others([filler = it.session().path("filler")] {
        const UniqueFd fd(::open(filler.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
        off_t at = 0;
        for (off_t size = 1 << 20; size >= 4096; size /= 2)
            while (::fallocate(fd.get(), FALLOC_FL_KEEP_SIZE, at, size) == 0) at += size;
        return errno;
    }),
              ENOSPC);
    for (const std::vector<Part>& parts :
         {std::vector<Part>{{kSparse, 0, 64}}, std::vector<Part>{{kGrow, 0, 64}},
          std::vector<Part>{{kData, 0, 1}, {kSparse, 128, 32}}}) {
        const auto done = it.write(parts);
        ASSERT_FALSE(done);
        EXPECT_EQ(done.error().code, ENOSPC) << done.error().message;
    }
    EXPECT_EQ(it.session().target().poisoned(), nullptr);
    EXPECT_TRUE(it.write({{kData, 0, 64}}));
    EXPECT_TRUE(it.write({{kShared, 0, 64}}));
    EXPECT_EQ(judge_now(it), "");
    ASSERT_EQ(it.session().by_others([filler = it.session().path("filler")] {
        return ::unlink(filler.c_str()) == 0 ? 0 : errno;
    }),
              0);
    // Freed blocks are the kernel's again after a commit.
    ASSERT_EQ(it.session().by_others([] {
        ::sync();
        return 0;
    }),
              0);
    EXPECT_TRUE(it.write({{kSparse, 0, 64}}));
    EXPECT_TRUE(it.write({{kGrow, 0, 64}}));
    EXPECT_EQ(judge_now(it), "");
}

}  // namespace
}  // namespace atomic4::test
