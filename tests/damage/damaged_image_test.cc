// Every command on damaged images (support/damage.h): each field of every structure hit by bit
// flips, with wrong checksums and with right ones.
//
//   - Nothing crashes (run it with sanitizers), and nothing reads without end.
//   - What fails says of which volume or path, and has changed nothing.
//   - What succeeds has made nothing worse: stock e2fsck complains of nothing afterwards that it
//     didn't complain of before.
//
// Bounded: each field once or twice. ATOMIC4_LONG=1: every bit, on every image. ATOMIC4_MUTANT=text
// runs those whose name contains it and says what they do; if a run crashes, ATOMIC4_MUTANT=
// (empty) tells on which.
#include <gtest/gtest.h>

#include <chrono>
#include <iostream>
#include <random>
#include <regex>
#include <set>
#include <sstream>

#include "atomic4ctl/commands.h"
#include "device/read_only_device.h"
#include "support/command.h"
#include "support/damage.h"
#include "support/fault_driver.h"
#include "support/overlay_device.h"
#include "unit/volume_fixture.h"

namespace atomic4::test {
namespace {

using namespace tools;

// Opening and checking a sound one takes some hundreds.
constexpr uint64_t kReadsMax = 20'000;
constexpr const char* kName = "vol.img";

struct Step {
    std::string name;
    std::string path;  // what an error may name instead of the volume
    bool looks = false;
    std::function<Result<int>(const Context&)> run;
};

std::string pages_file() {
    static const TempDir dir;
    static const std::string path = [] {
        store_image(filled(16384, 0x77), dir.file("pages"));
        return dir.file("pages");
    }();
    return path;
}

template <class Command>
Step step(std::string name, std::string path, bool looks, Command command) {
    return {std::move(name), std::move(path), looks,
            [command = std::move(command)](const Context& context) {
                return naming_volume(command, tools::run(context, command));
            }};
}

WriteCommand write_of(const std::string& path, uint64_t offset, bool plain) {
    WriteCommand command;
    command.device = kName;
    command.path = path;
    command.offset = ByteOffset(offset);
    command.from = pages_file();
    command.plain = plain;
    return command;
}

PreallocCommand prealloc_of(const std::string& path, uint64_t size, uint64_t unit) {
    PreallocCommand command;
    command.device = kName;
    command.path = path;
    command.size = Bytes(size);
    command.unit = Bytes(unit);
    return command;
}

std::vector<Step> looking(const DamageBase& base) {
    const std::string deep = base.deep_directory + "/file";
    const Bytes length(3 * base.unit);
    return {step("info", "", true, InfoCommand{kName}),
            step("ls", "", true, LsCommand{kName}),
            step("frag", "", true, FragCommand{kName, {}}),
            step("check", "", true, CheckCommand{kName, {}}),
            step("check /db", "/db", true, CheckCommand{kName, "/db"}),
            step("map /db", "/db", true, MapCommand{kName, "/db", {}, {}}),
            step("map deep", deep, true, MapCommand{kName, deep, {}, {}}),
            step("map /noted in units", "/noted", true,
                 MapCommand{kName, "/noted", Bytes(base.unit), {}}),
            step("status /db", "/db", true, StatusCommand{kName, "/db"}),
            step("status /noted", "/noted", true, StatusCommand{kName, "/noted"}),
            step("read /db", "/db", true, ReadCommand{kName, "/db", ByteOffset(0), length}),
            step("read deep", deep, true, ReadCommand{kName, deep, ByteOffset(0), length})};
}

// All on the same volume, one after the other.
std::vector<std::vector<Step>> chains_on(const DamageBase& base) {
    const std::string deep = base.deep_directory + "/file";
    const std::string fresh = base.deep_directory + "/new";
    std::vector<Step> use = looking(base);
    use.push_back(step("recover", "", false, RecoverCommand{kName}));
    use.push_back(step("write /db", "/db", false, write_of("/db", 2 * base.unit, false)));
    for (Step& again : looking(base)) use.push_back(std::move(again));
    use.push_back(step("fill a hole", "/db", false, write_of("/db", base.unit, false)));
    use.push_back(step("write plain", "/noted", false, write_of("/noted", 100, true)));
    use.push_back(step("prealloc", fresh, false, prealloc_of(fresh, 100'000, 4096)));
    use.push_back(step("prealloc 64K", "/many/x", false, prealloc_of("/many/x", 65536, 65536)));
    const std::vector<Step> give_up{
        step("recover --force", "", false, RecoverCommand{kName, OnConflict::Force}),
        step("recover --discard", "", false, RecoverCommand{kName, OnConflict::Discard}),
        step("write", "/db", false, write_of("/db", 3 * base.unit, false))};
    const std::vector<Step> turn{step("enable", "", false, EnableCommand{kName, Bytes(0), {}}),
                                 step("disable", "", false, DisableCommand{kName, false}),
                                 step("disable --force", "", false, DisableCommand{kName, true}),
                                 step("enable anew", "", false, EnableCommand{kName, Bytes(0), {}}),
                                 step("prealloc", fresh, false, prealloc_of(fresh, 65536, 16384))};
    std::vector<Step> move{
        step("recover", "", false, RecoverCommand{kName}),
        step("adopt deep", deep, false, AdoptCommand{kName, deep, Bytes(base.unit)}),
        step("adopt /noted", "/noted", false, AdoptCommand{kName, "/noted", Bytes(65536)}),
        step("release /db", "/db", false, ReleaseCommand{kName, "/db"}),
        step("adopt /db", "/db", false, AdoptCommand{kName, "/db", Bytes(2 * base.unit)})};
    for (Step& look : looking(base)) move.push_back(std::move(look));
    return {use, give_up, turn, move};
}

// What e2fsck complains of, without the numbers: those that are right change. Of blocks or inodes
// that nobody owns, or that are not in use as they should be, it tells which.
std::set<std::string> complaints_of(const Image& image) {
    const Fsck fsck = e2fsck(image, {"-fn"});
    std::set<std::string> complaints;
    if (fsck.status == 0) return complaints;
    static const std::regex chatter(
        R"(^e2fsck \d|^Pass \d|\*\*\* WARNING|files \(|^/proc/self/fd/\d+ was not cleanly)");
    static const std::regex question(R"((^|\s+)[A-Z][^.:?]*\? no$)");
    static const std::regex list(R"(#(--#| #)+)");
    static const std::regex number(R"(0x[0-9a-f]+|\d+)");
    std::istringstream lines(fsck.output);
    for (std::string line; std::getline(lines, line);) {
        if (std::regex_search(line, chatter)) continue;
        line = std::regex_replace(line, question, "");
        if (const auto at = line.find("differences:"); at != line.npos) {
            const std::string what = line.substr(0, at + 12);
            for (const char* sign : {" -", " +"}) {
                if (line.find(sign, at) != line.npos) complaints.insert(what + sign);
            }
            continue;
        }
        // Which name it is is no matter.
        if (const auto at = line.find("Entry '"); at != line.npos)
            line.erase(at + 6, line.find("' in ") - at - 5);
        line = std::regex_replace(line, number, "#");
        line = std::regex_replace(line, list, "#");
        if (line.find_first_not_of(" #") != line.npos) complaints.insert(line);
    }
    if (complaints.empty()) complaints.insert(fsck.output);
    return complaints;
}

// What can't be told from the damage, or is documented (RECOVERY.md), and is no work for e2fsck
// that it didn't have:
bool follows_from(const std::string& damage, const std::set<std::string>& before,
                  const std::string& complaint) {
    const auto is_about = [&](const char* text) { return damage.find(text) != damage.npos; };
    // What is given back in a group whose bitmap is damaged stays in use; so does an xattr block
    // that says that others share it.
    if (complaint.ends_with("bitmap differences: -") || complaint.starts_with("Directories count"))
        return is_about("descriptor of group") || is_about("bitmap of group") ||
               is_about("h_refcount");
    // A file that says that it has more names loses one.
    if (complaint.starts_with("Unattached")) return is_about("i_links_count");
    // With checksums that hold, an extent can claim what another file has: what is written to the
    // one is then found in the other. Not so with the volume's own metadata.
    if (is_about("extent tree of") || is_about("i_block")) {
        const auto said = [&](const char* text) {
            return std::ranges::any_of(before, [&](const std::string& complaint) {
                return complaint.find(text) != complaint.npos;
            });
        };
        if (said("conflicts with critical metadata")) return false;
        static const std::regex claimed(
            "ultiply-claimed|^\\(There are|^File /|^\t/|^Running additional passes");
        return said("ultiply-claimed") || std::regex_search(complaint, claimed);
    }
    return false;
}

class Judge {
  public:
    Judge(const DamageBase& base, bool verbose)
        : base_(base), verbose_(verbose), chains_(chains_on(base)), scratch_(base.image) {}

    void run(const Mutant& mutant) {
        SCOPED_TRACE(base_.name + ": " + mutant.name);
        damage_ = mutant.name;
        mutant.apply(scratch_);
        run_all();
        mutant.undo(scratch_, base_.image);
    }
    // The image as it is given, e.g. cut.
    void run(Image image) {
        scratch_ = std::move(image);
        run_all();
    }
    uint64_t steps() const { return steps_; }
    uint64_t failed() const { return failed_; }

  private:
    void run_all() {
        before_.reset();
        for (const auto& chain : chains_) run(chain);
    }

    void run(const std::vector<Step>& chain) {
        OverlayDevice device(scratch_, kName, kReadsMax);
        OverlayDevice::Written last;
        for (const Step& step : chain) {
            SCOPED_TRACE(step.name);
            run(step, device);
            // Only what changed something can have made something worse.
            if (!step.looks && judge_each_ && device.differs_from(last)) judge(device);
            if (judge_each_ && !worse_in(device).empty()) return;
            if (judge_each_) last = device.written();
        }
        if (judge_each_ || !device.differs_from({})) return;
        const bool worse = !worse_in(device).empty();
        if (!worse) return;
        // Once more, to see which step it was.
        judge_each_ = true;
        run(chain);
        judge_each_ = false;
    }

    void run(const Step& step, OverlayDevice& device) {
        ++steps_;
        device.forget_reads();
        const OverlayDevice::Written before = device.written();
        ReadOnlyDevice read_only(device);
        std::ostringstream out;
        std::vector<std::string> warnings;
        const Context context{
            [&](const std::string&, Access access, Sharing) -> Result<std::unique_ptr<Device>> {
                if (access == Access::ReadOnly) return borrowed(read_only);
                return borrowed(device);
            },
            out, [&](const std::string& warning) { warnings.push_back(warning); }, false};
        const auto status = step.run(context);
        const std::string said = status ? out.str() : status.error().message;
        if (verbose_) {
            std::cerr << "  " << step.name << ": " << (status ? *status : -1) << " "
                      << said.substr(0, said.find('\n')) << "\n";
            for (const std::string& warning : warnings) std::cerr << "    " << warning << "\n";
        }
        EXPECT_FALSE(device.reads_without_end()) << said;
        const bool changed = device.differs_from(before);
        EXPECT_FALSE(step.looks && changed) << "looking changed the image";
        if (status) {
            EXPECT_TRUE(*status == 0 || *status == 1) << *status;
            return;
        }
        ++failed_;
        EXPECT_TRUE(said.find(kName) != said.npos ||
                    (!step.path.empty() && said.find(step.path) != said.npos))
            << "which volume? " << said;
        EXPECT_EQ(said.find("in doubt"), said.npos) << said;
        // What is opened for writing is repaired and replayed first, which is said; if there is
        // nothing to replay, only the needs-replay bit is cleared.
        const bool said_so = !warnings.empty() || said.find("atomic4ctl recover") != said.npos ||
                             (!before.contains(1) && raw_super(scratch_).needs_replay);
        EXPECT_FALSE(changed && !said_so) << "refused, but changed: " << said;
    }

    std::set<std::string> worse_in(const OverlayDevice& device) {
        std::set<std::string> worse = complaints_of(device.contents());
        if (worse.empty()) return worse;
        if (!before_) before_ = complaints_of(scratch_);
        for (const std::string& complaint : *before_) worse.erase(complaint);
        std::erase_if(
            worse, [&](const std::string& text) { return follows_from(damage_, *before_, text); });
        return worse;
    }
    void judge(const OverlayDevice& device) {
        for (const std::string& complaint : worse_in(device))
            ADD_FAILURE() << "e2fsck did not complain of this before: " << complaint;
    }

    const DamageBase& base_;
    bool verbose_;
    std::vector<std::vector<Step>> chains_;
    Image scratch_;
    std::string damage_;
    std::optional<std::set<std::string>> before_;
    bool judge_each_ = false;
    uint64_t steps_ = 0;
    uint64_t failed_ = 0;
};

const std::vector<DamageBase>& bases() {
    static const std::vector<DamageBase> all = [] {
        std::vector<DamageBase> made;
        made.push_back(make_damage_base("1 KiB blocks", 1024));
        made.push_back(make_damage_base("4 KiB blocks", 4096, {"-J", "size=4"}));
        made.push_back(make_damage_base("no checksums", 1024, {"-O", "^metadata_csum,^64bit"}));
        return made;
    }();
    return all;
}

class DamagedImage : public testing::TestWithParam<DamageArea> {};

TEST_P(DamagedImage, NothingCrashesHangsOrGetsWorse) {
    const char* wanted = std::getenv("ATOMIC4_MUTANT");
    const bool every = long_run();
    uint64_t mutants = 0;
    uint64_t steps = 0;
    uint64_t failed = 0;
    for (size_t i = 0; i < bases().size(); ++i) {
        const DamageBase& base = bases()[i];
        const auto places = base.places(GetParam());
        ASSERT_FALSE(places.empty());
        Judge judge(base, wanted != nullptr && *wanted != 0);
        const auto mutants_here = mutants_of(places, every);
        // Each field on one of the bases; where there are many inodes, each in some of them. (Their
        // number is no multiple of the stride.)
        const size_t stride = mutants_here.size() > 400 ? 7 : bases().size();
        size_t index = 0;
        for (const Mutant& mutant : mutants_here) {
            const std::string name = base.name + ": " + mutant.name;
            if (wanted != nullptr) {
                if (name.find(wanted) == name.npos) continue;
                std::cerr << name << "\n";
            } else if (!every && index++ % stride != i) {
                continue;
            }
            judge.run(mutant);
            ++mutants;
        }
        steps += judge.steps();
        failed += judge.failed();
    }
    std::cout << mutants << " mutants, " << steps << " commands, " << failed << " refused\n";
}

std::string name_of(const testing::TestParamInfo<DamageArea>& info) {
    return to_text(info.param);
}
INSTANTIATE_TEST_SUITE_P(All, DamagedImage, testing::ValuesIn(kDamageAreas), name_of);

// The tests above would pass with commands that refuse everything.
TEST(DamagedImages, AllCommandsTakeTheSoundOnes) {
    for (const DamageBase& base : bases()) {
        SCOPED_TRACE(base.name);
        Judge judge(base, std::getenv("ATOMIC4_MUTANT") != nullptr);
        judge.run(base.image);
        // Before the recovery reading is refused; disable without --force; a name that is taken.
        EXPECT_LE(judge.failed(), 8);
    }
}

TEST(DamagedImages, CutAnywhere) {
    const DamageBase& base = bases().front();
    std::mt19937_64 random(2026);
    std::vector<uint64_t> lengths{
        0,    1,    511,  512,     1023,    1024,    1025,
        1500, 2047, 2048, 4 << 10, 6 << 10, 1 << 20, base.image.size() - 1};
    for (int i = 0; i < (long_run() ? 500 : 20); ++i)
        lengths.push_back(random() % base.image.size());
    for (const uint64_t length : lengths) {
        SCOPED_TRACE(length);
        Judge judge(base, false);
        Image cut = base.image;
        cut.resize(length);
        judge.run(std::move(cut));
        EXPECT_EQ(judge.failed(), judge.steps());
    }
}

}  // namespace
}  // namespace atomic4::test
