// Damaged volumes: every field of what is on disk, with its bits flipped. fsck.atomic4 neither
// crashes nor hangs, exits with one of fsck(8)'s statuses, brings back whatever stock e2fsck alone
// would, and leaves atomic files that were intact where they are.
//
// ATOMIC4_LONG=1: every bit of every field, for hours. With ATOMIC4_SHARE=N each Nth of those (a
// prime number meets other bits of each field). ATOMIC4_MUTANT=text: those whose name contains it,
// with what is said.
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <iostream>

#include "ext4/path.h"
#include "support/damage.h"
#include "support/fsck_run.h"
#include "support/privileged.h"
#include "support/results.h"

namespace atomic4::test {
namespace {

constexpr unsigned kHangSeconds = 60;
std::string now_tried;

void hangs(int) {
    constexpr std::string_view kWords = "hangs: ";
    (void)!::write(STDOUT_FILENO, kWords.data(), kWords.size());
    (void)!::write(STDOUT_FILENO, now_tried.data(), now_tried.size());
    ::_exit(1);
}

ext2_ino_t inode_of_db(const Image& image) {
    MemoryDevice device(image);
    VolumeOptions options;
    options.purpose = OpenFor::Inspect;
    return must(lookup(*must(Volume::open(borrowed(device), options)), "/db"));
}

// Whether this is an intact atomic file, whatever its name, and where it lies then.
std::optional<std::vector<Mapping>> intact_mapping(Image& image, ext2_ino_t number) {
    ImageDevice device(image);
    VolumeOptions options;
    options.purpose = OpenFor::Inspect;
    options.require_atomic4 = false;
    const auto volume = Volume::open(borrowed(device), options);
    if (!volume) return std::nullopt;
    auto report = check_volume(**volume);
    if (!report) return std::nullopt;
    const ProtectedSet intact = report->take_protected_set((*volume)->block_size());
    for (const ProtectedFile& file : intact.files()) {
        if (file.number == number) return file.mappings;
    }
    return std::nullopt;
}

bool long_form() {
    return std::getenv("ATOMIC4_LONG") != nullptr;
}

// One mutant of so many is tried.
size_t share() {
    const char* value = std::getenv("ATOMIC4_SHARE");
    return value != nullptr ? std::stoul(value) : 1;
}

class FsckDamage : public testing::TestWithParam<DamageArea> {
  protected:
    void SetUp() override {
        A4_REQUIRE_ROOT();
        ::signal(SIGALRM, hangs);
    }
    // Of assertions; all are failures.
    static int failures() {
        return testing::UnitTest::GetInstance()->current_test_info()->result()->total_part_count();
    }
};

TEST_P(FsckDamage, ComesBackAsFarAsItCan) {
    constexpr int kFailedMax = 20;
    const char* wanted = std::getenv("ATOMIC4_MUTANT");
    size_t index = 0;
    size_t tried = 0;
    int failed = 0;
    for (const uint64_t block_size : {1024, 4096}) {
        const DamageBase base = make_damage_base("damage", block_size);
        const auto places = base.places(GetParam());
        const ext2_ino_t db = inode_of_db(base.image);
        Image scratch = base.image;
        // Again and again the same memory: most of the time would be spent on that.
        Image stock;
        Image image;
        for (const Mutant& mutant : mutants_of(places, long_form())) {
            if (wanted != nullptr && mutant.name.find(wanted) == std::string::npos) continue;
            if (wanted == nullptr && index++ % share() != 0) continue;
            ++tried;
            const int failures_before = failures();
            SCOPED_TRACE(fmt::format("blocks of {}: {}", block_size, mutant.name));
            mutant.apply(scratch);
            const auto begin = std::chrono::steady_clock::now();
            const Fsck alone = e2fsck(scratch, {"-fy"}, &stock);
            const auto took = std::chrono::duration_cast<std::chrono::seconds>(
                std::chrono::steady_clock::now() - begin);
            // Taking our bits off made the superblock's checksum right, which tells e2fsck more
            // than the volume does.
            const bool stock_repairs = raw_super(scratch).checksum_right && alone.status <= 1 &&
                                       fsck_complaints(stock).empty();
            const auto before = intact_mapping(scratch, db);

            image = scratch;
            now_tried = mutant.name + "\n";
            // A hang ends the test. What e2fsck alone takes long for, it does twice.
            ::alarm(kHangSeconds + 2 * static_cast<unsigned>(took.count()));
            const FsckRun run = run_fsck(image, FsckMode::Yes);
            ::alarm(0);
            if (wanted != nullptr)
                std::cout << mutant.name << "\n" << run.output << "e2fsck alone:\n" << alone.output;
            EXPECT_EQ(run.status & ~0x2f, 0) << run.output;
            // What a newer atomic4 has made is left to it, and what has features that it refuses to
            // whatever knows them.
            const bool unknown =
                run.output.find("#32 ") != std::string::npos ||
                run.output.find("the volume has the feature ") != std::string::npos;
            if (unknown) {
                EXPECT_EQ(run.status, tools::kFsckOperational) << run.output;
                EXPECT_EQ(image, scratch) << run.output;
            }
            if (stock_repairs && !unknown) {
                EXPECT_EQ(run.status & ~tools::kFsckCorrected, 0) << run.output << "e2fsck alone:\n"
                                                                  << alone.output;
                EXPECT_EQ(fsck_complaints(image), "") << run.output;
                EXPECT_EQ(superblock_complaint(image), "") << run.output;
            }
            if (before && stock_repairs && !unknown) {
                EXPECT_EQ(intact_mapping(image, db), before) << run.output;
            }
            mutant.undo(scratch, base.image);
            if (failures() > failures_before && ++failed == kFailedMax) return;
        }
    }
    std::cout << tried << " mutants\n";
}

// What the two forms of the test are worth.
TEST(FsckDamageForms, HaveEnoughMutants) {
    for (const bool every : {false, true}) {
        size_t mutants = 0;
        for (const uint64_t block_size : {1024, 4096}) {
            const DamageBase base = make_damage_base("damage", block_size);
            for (const DamageArea area : kDamageAreas)
                mutants += mutants_of(base.places(area), every).size();
        }
        RecordProperty(every ? "long" : "short", static_cast<int>(mutants));
        std::cout << mutants << " mutants in the " << (every ? "long" : "short") << " form\n";
        EXPECT_GE(mutants, every ? 20'000u : 500u);
    }
}

INSTANTIATE_TEST_SUITE_P(Areas, FsckDamage, testing::ValuesIn(kDamageAreas), [](const auto& info) {
    std::string name = to_text(info.param);
    std::erase_if(name, [](char c) { return std::isalnum(c) == 0; });
    return name;
});

}  // namespace
}  // namespace atomic4::test
