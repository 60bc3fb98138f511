// A power cut at every moment of what changes the volume itself: enable, disable, creating and
// releasing an atomic file.
//
// Whatever is left: the volume opens, or the message says what to run; running the operation again
// completes it, after e2fsck at the most; other files are untouched. A primary superblock with the
// gate bit always has a usable log beside it, while disable hasn't removed it.
#include <gtest/gtest.h>

#include "ext4/path.h"
#include "support/bytes.h"
#include "support/crash_scenario.h"

namespace atomic4::test {
namespace {

constexpr uint64_t kUnit = 16384;
constexpr int kFates = 8;  // of each cut: none kept, all kept, and random ones
constexpr size_t kImagesPerFsck = 2;

// Every copy of the superblock says the same.
std::string gate_everywhere(Device& device, bool wanted) {
    const auto volume = open_any(device, OpenFor::Inspect);
    if (!volume) return volume.error().message;
    if ((*volume)->gate_in_primary() != wanted) return "the primary superblock's gate bit is wrong";
    for (const BackupSuperblock& backup : (*volume)->backups()) {
        if (!backup.valid || backup.gate != wanted)
            return fmt::format("the gate bit of the copy in group {} is wrong", backup.group);
    }
    return {};
}

enum class What { Enable, Disable, DisableForce, Create, Release };

struct Case {
    const char* name;
    What what;
};

void PrintTo(const Case& it, std::ostream* out) {
    *out << it.name;
}

struct Start {
    Image image;
    FileModel bystander;
    ext2_ino_t atomic = 0;
};

Start prepare(uint64_t block, What what) {
    std::mt19937_64 random(block);
    const std::string per_group = block == 1024 ? "1024" : "256";
    std::vector<std::string> arguments{"-b", std::to_string(block), "-g", per_group, "-N", "64"};
    if (block == 4096) arguments.insert(arguments.end(), {"-O", "^has_journal"});
    Start start;
    start.image =
        what == What::Enable ? make_ext4(4 << 20, arguments) : make_atomic4(4 << 20, arguments);
    ImageDevice device(start.image);
    const auto volume = open_any(device, OpenFor::Write);
    if (!volume) throw std::runtime_error(volume.error().message);
    start.bystander = make_file(**volume, "/bystander", 8 * block, {{0, 3}, {3, 5}}, random);
    if (what == What::DisableForce || what == What::Release) {
        for (const char* path : {"/one", "/two"}) {
            const auto made = create_atomic_file(**volume, path, {Bytes(4 * kUnit), Bytes(kUnit)});
            if (!made) throw std::runtime_error(made.error().message);
            start.atomic = *made;
        }
    }
    return start;
}

Result<> run(What what, Device& device, ext2_ino_t atomic) {
    if (what == What::Create || what == What::Release) {
        const OpenVolume opened = A4_TRY(open_for_writing(borrowed(device)));
        if (what == What::Release) return release_file(*opened.volume, atomic);
        A4_TRY(create_atomic_file(*opened.volume, "/new", {Bytes(8 * kUnit), Bytes(kUnit)}));
        return {};
    }
    const auto volume = A4_TRY(open_any(device, OpenFor::Write));
    if (what == What::Enable) {
        A4_TRY(enable(*volume, {}));
        return {};
    }
    A4_TRY(disable(*volume, what == What::DisableForce));
    return {};
}

// Runs the operation again on what a cut left. What it has done already is no error.
Result<> run_again(What what, Device& device, ext2_ino_t atomic) {
    auto done = run(what, device, atomic);
    if (done) return done;
    const int code = done.error().code;
    if (what == What::Enable && code == EEXIST) {
        A4_TRY(open_for_writing(borrowed(device)));
        return {};
    }
    if ((what == What::Disable || what == What::DisableForce) && code == EINVAL &&
        gate_everywhere(device, false).empty())
        return {};
    if (what == What::Create && code == EEXIST) {
        const OpenVolume opened = A4_TRY(open_for_writing(borrowed(device)));
        const ext2_ino_t inode = A4_TRY(lookup(*opened.volume, "/new"));
        const FileState file = A4_TRY(read_file(*opened.volume, inode));
        const LayoutReport layout = A4_TRY(check_layout(*opened.volume, file, Bytes(kUnit)));
        if (!file.atomic || file.unit != Bytes(kUnit) || file.size != Bytes(8 * kUnit) ||
            layout.problems != 0 || layout.units_mapped != 8)
            return fail(EUCLEAN, "/new is not what was asked for");
        return {};
    }
    return done;
}

bool says_what_to_do(const std::string& message) {
    for (const char* advice : {"run it again", "atomic4ctl enable", "e2fsck"}) {
        if (message.find(advice) != message.npos) return true;
    }
    return false;
}

// The kernel records an error when it comes across one.
std::string names_without_inode(Device& device) {
    const auto volume = open_any(device, OpenFor::Inspect);
    if (!volume) return volume.error().message;
    std::string found;
    for (const char* path : {"/new", "/.atomic4", "/.atomic4/log", "/.atomic4/lock"}) {
        const auto number = lookup(**volume, path);
        if (!number) continue;
        ext2_inode inode{};
        if (ext2fs_read_inode((*volume)->fs(), *number, &inode) != 0 || inode.i_links_count == 0)
            found += std::string(path) + " is a name without an inode; ";
    }
    return found;
}

// The state right after the cut, before anything is run.
std::string judge_opening(Image& image, What what) {
    const RawSuper raw = raw_super(image);
    if (!raw.checksum_right) return "the superblock's checksum is wrong";
    ImageDevice device(image);
    if (what == What::Create || what == What::Enable) {
        if (auto wrong = names_without_inode(device); !wrong.empty()) return wrong;
    }
    const auto opened = open_for_writing(borrowed(device));
    if (opened) return {};
    const std::string& message = opened.error().message;
    if (!says_what_to_do(message)) return "the message gives no advice: " + message;
    const bool disabling = what == What::Disable || what == What::DisableForce;
    if (raw.gate && !disabling) return "the gate is set, and yet: " + message;
    return {};
}

std::string judge_end(Image& image, const Start& start, What what) {
    ImageDevice device(image);
    const bool on = what != What::Disable && what != What::DisableForce;
    if (auto wrong = gate_everywhere(device, on); !wrong.empty()) return wrong;
    const auto volume = open_any(device, OpenFor::Read);
    if (!volume) return volume.error().message;
    if ((*volume)->attr().has_value() != on) return "the volume attribute is wrong";
    if (lookup(**volume, "/.atomic4").has_value() != on) return "/.atomic4 is wrong";
    if (start.atomic != 0) {
        const auto file = read_file(**volume, start.atomic);
        if (!file) return file.error().message;
        if (file->atomic || file->unit) return "the file is not released";
    }
    if (on && !open_for_writing(borrowed(device))) return "it does not open for writing";
    return same_bytes(**volume, start.bystander);
}

std::string judge(Image& image, const Start& start, What what, bool with_e2fsck) {
    if (auto wrong = judge_opening(image, what); !wrong.empty()) return wrong;
    ImageDevice device(image);
    auto again = run_again(what, device, start.atomic);
    if (!again && again.error().code == EUCLEAN) {
        if (!says_what_to_do(again.error().message))
            return "the message gives no advice: " + again.error().message;
        const Fsck fsck = e2fsck(image, {"-fy"}, &image);
        if (fsck.status > 1) return "e2fsck can't repair it: " + fsck.output;
        again = run_again(what, device, start.atomic);
    }
    if (!again) return "run again: " + again.error().message;
    if (auto wrong = judge_end(image, start, what); !wrong.empty()) return wrong;
    if (!with_e2fsck) return {};
    const Fsck fsck = e2fsck(image, {"-fy"}, &image);
    if (fsck.status > 1) return "e2fsck can't repair it: " + fsck.output;
    if (auto rest = fsck_complaints(image); !rest.empty()) return "after a repair: " + rest;
    const auto volume = open_any(device, OpenFor::Read);
    if (!volume) return volume.error().message;
    return same_bytes(**volume, start.bystander);
}

class EnableCrash : public ::testing::TestWithParam<std::tuple<uint64_t, Case>> {};

TEST_P(EnableCrash, EveryMoment) {
    const auto& [block, it] = GetParam();
    const Start start = prepare(block, it.what);
    CrashDevice device(start.image);
    const auto done = run(it.what, device, start.atomic);
    ASSERT_TRUE(done) << done.error().message;
    std::mt19937_64 random(block);
    Image image;
    size_t images = 0;
    int failures = 0;
    for (size_t event = 0; event <= device.events() && failures < 3; ++event) {
        for (int i = 0; i < kFates; ++i) {
            const uint64_t fate = i < 2 ? static_cast<uint64_t>(i) : random();
            device.image_after(event, fate, image);
            const auto wrong = judge(image, start, it.what, ++images % kImagesPerFsck == 0);
            if (wrong.empty()) continue;
            ADD_FAILURE() << "event " << event << " of " << device.events() << " ("
                          << device.describe(event) << "), fate " << fate << ": " << wrong;
            if (++failures == 3) break;
        }
    }
}

INSTANTIATE_TEST_SUITE_P(
    Operations, EnableCrash,
    ::testing::Combine(::testing::Values(1024, 4096),
                       ::testing::Values(Case{"enable", What::Enable},
                                         Case{"disable", What::Disable},
                                         Case{"disable_force", What::DisableForce},
                                         Case{"create", What::Create},
                                         Case{"release", What::Release})),
    [](const auto& info) {
        return fmt::format("block{}_{}", std::get<0>(info.param), std::get<1>(info.param).name);
    });

}  // namespace
}  // namespace atomic4::test
