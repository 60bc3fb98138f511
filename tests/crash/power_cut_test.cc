// A power cut at every moment of a session of mixed writes.
//
// The session is random but repeatable: the seed is in the test's name and in every message. Each
// device event is a crash point, with several fates of what no flush covered (crash_device.h). The
// judge is crash_scenario.h: recover takes every image, and leaves no record that only --discard
// could get rid of. Every k-th image also goes to e2fsck.
//
// ATOMIC4_LONG=1: more seeds and fates, and e2fsck on many more images.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "ext4/path.h"
#include "redo/log_format.h"
#include "support/bytes.h"
#include "support/crash_scenario.h"
#include "support/fault_driver.h"
#include "support/small_layouts.h"
#include "unit/volume_fixture.h"

namespace atomic4::test {
namespace {

constexpr uint64_t kUnit = 16384;
constexpr uint64_t kLogSize = 256 * 1024;
constexpr uint64_t kLongestWrite = 32768;

struct Prepared {
    Image image;
    std::vector<FileModel> files;
};

// The files of a session, by what is special about them.
enum : size_t {
    kAtomic,    // atomic, mapped and written
    kSparse,    // atomic, empty: holes and growth
    kMixed,     // written, unwritten, hole
    kReserved,  // unwritten blocks beyond EOF
    kFour,      // four extents: a fifth makes the first tree block
    kLeaves,    // an extent tree of several leaves
    kGrowing,   // empty, not atomic
};

FileModel model_of(Volume& volume, const std::string& path, ext2_ino_t inode) {
    const auto state = read_file(volume, inode);
    if (!state) throw std::runtime_error(state.error().message);
    FileModel model{path, inode, state->generation, {}, {}};
    model.bytes.resize(state->size.value());
    model.unsure.resize((model.bytes.size() + kSector - 1) / kSector);
    return model;
}

std::vector<Piece> every_other_block(uint64_t count) {
    std::vector<Piece> pieces;
    for (uint64_t i = 0; i < count; ++i) pieces.push_back({2 * i, 1});
    return pieces;
}

// More extents than one leaf holds.
uint64_t leaf_file_pieces(uint64_t block) {
    return (block - 16) / 12 + 20;
}

Prepared prepare_files(const SmallLayout& layout, std::mt19937_64& random, uint64_t more_room = 0) {
    EnableOptions options;
    options.unit = Bytes(kUnit);
    options.log_size = Bytes(kLogSize);
    const uint64_t block = layout.block;
    MemoryDevice memory(make_dirty_atomic4(layout.size + more_room, layout.arguments, options));
    auto opened = open_for_writing(borrowed(memory));
    if (!opened) throw std::runtime_error(opened.error().message);
    Volume& volume = *opened->volume;
    Prepared setup;
    const auto atomic = [&](const std::string& path, uint64_t bytes) {
        const auto inode = create_atomic_file(volume, path, {Bytes(bytes), Bytes(kUnit)});
        if (!inode) throw std::runtime_error(inode.error().message);
        setup.files.push_back(model_of(volume, path, *inode));
    };
    const auto plain = [&](const std::string& path, uint64_t blocks,
                           const std::vector<Piece>& pieces) {
        setup.files.push_back(make_file(volume, path, blocks * block, pieces, random));
    };
    atomic("/atomic", 6 * kUnit);
    atomic("/sparse", 0);
    plain("/mixed", 24, {{0, 8}, {8, 8, MapState::Unwritten}});
    plain("/reserved", 4, {{0, 4}, {4, 12, MapState::Unwritten}});
    plain("/four", 32, {{0, 2}, {4, 2}, {8, 2}, {12, 2}});
    const uint64_t pieces = leaf_file_pieces(block);
    plain("/leaves", 2 * pieces - 1, every_other_block(pieces));
    plain("/growing", 0, {});
    opened->volume.reset();
    setup.image = std::move(memory.contents());
    return setup;
}

// Random writes of every kind.
class Session {
  public:
    enum class Payload { Random, Headers };

    Session(Prepared setup, uint64_t seed, Payload payload)
        : scenario(std::move(setup.image), std::move(setup.files)),
          random_(seed),
          payload_(payload) {}

    void run(int steps) {
        for (int i = 0; i < steps; ++i) step();
        scenario.close();
    }

    Scenario scenario;

  private:
    uint64_t pick(uint64_t n) { return random_() % n; }

    std::vector<std::byte> payload(uint64_t size) {
        if (payload_ == Payload::Headers && pick(4) != 0) return headers(size);
        return random_bytes(size, random_);
    }

    // The log's own records, as they stand on the disk now, one after the other; some with another
    // position or sequence, so that they name the place or number where they could do harm.
    std::vector<std::byte> headers(uint64_t size) {
        const auto& disk = scenario.device().contents();
        std::vector<size_t> found;
        for (size_t at = 0; at < disk.size(); at += 1024) {
            if (std::memcmp(disk.data() + at, kRecordMagic.data(), kRecordMagic.size()) == 0)
                found.push_back(at);
        }
        auto bytes = random_bytes(size, random_);
        if (found.empty()) return bytes;
        for (uint64_t at = 0; at < size; at += scenario.block_size()) {
            const size_t from = found[pick(found.size())];
            const uint64_t n = std::min(size - at, disk.size() - from);
            std::memcpy(bytes.data() + at, disk.data() + from, n);
            RecordHeader header;
            if (n < sizeof header) continue;
            std::memcpy(&header, bytes.data() + at, sizeof header);
            if (pick(2) == 0) header.sequence = header.sequence + pick(12);
            if (pick(2) == 0)
                header.position =
                    kFirstRecord.value() + pick((kLogSize - kFirstRecord.value()) / 4096) * 4096;
            std::memcpy(bytes.data() + at, &header, sizeof header);
        }
        return bytes;
    }

    uint64_t blocks_of(size_t file) const {
        return scenario.files()[file].bytes.size() / scenario.block_size();
    }

    // A power of two from the block size on, and a multiple of it inside limit.
    ModelRange atomic_range(size_t file, uint64_t limit) {
        const uint64_t block = scenario.block_size();
        uint64_t length = block << pick(6);
        length = std::min(length, kLongestWrite);
        while (length > limit) length /= 2;
        const uint64_t offset = pick(limit / length) * length;
        return {file, offset, payload(length)};
    }

    ModelRange any_range() {
        const uint64_t block = scenario.block_size();
        switch (const size_t file = pick(7); file) {
            case kAtomic:
                return atomic_range(file, 6 * kUnit);
            case kSparse:
                return atomic_range(file, 8 * kUnit);
            case kMixed:
                return atomic_range(file, 32 * block);
            case kReserved:
                return atomic_range(file, 16 * block);
            case kFour:
                return atomic_range(file, 32 * block);
            case kLeaves:
                // Mostly what is mapped; now and then a hole between, which moves its whole leaf.
                return {file,
                        (2 * pick((blocks_of(file) + 1) / 2) + (pick(4) == 0 ? 1 : 0)) * block,
                        payload(block)};
            default:
                return atomic_range(file,
                                    round_down(scenario.files()[file].bytes.size(), kUnit) + kUnit);
        }
    }

    void write() {
        ModelRange range = any_range();
        scenario.write(range.file, range.offset, std::move(range.data));
    }

    void batch() {
        std::vector<ModelRange> ranges;
        uint64_t total = 0;
        const uint64_t wanted = 2 + pick(5);
        for (uint64_t i = 0; i < wanted; ++i) {
            ModelRange range = any_range();
            range.data.resize(std::min<uint64_t>(range.data.size(), 8192));
            const bool overlaps = std::ranges::any_of(ranges, [&](const ModelRange& other) {
                return other.file == range.file &&
                       other.offset < range.offset + range.data.size() &&
                       range.offset < other.offset + other.data.size();
            });
            if (overlaps || total + range.data.size() > (kLogSize - kFirstRecord.value()) / 4)
                continue;
            total += range.data.size();
            ranges.push_back(std::move(range));
        }
        if (!ranges.empty()) scenario.batch(std::move(ranges));
    }

    void plain() {
        ModelRange range = any_range();
        const uint64_t cut = pick(range.data.size());
        range.offset += cut;
        range.data.resize(range.data.size() - cut);
        scenario.plain(range.file, range.offset, std::move(range.data));
    }

    void step() {
        switch (pick(20)) {
            case 0:
                return scenario.close_and_reopen();
            case 1:
                return scenario.drop_and_reopen();
            case 2:
                return scenario.flush();
            case 3:
                if (created_ == 2) return;
                scenario.create(fmt::format("/new{}", created_++), pick(3) * kUnit, kUnit);
                return;
            case 4:
            case 5:
                return plain();
            case 6:
            case 7:
            case 8:
                return batch();
            default:
                return write();
        }
    }

    std::mt19937_64 random_;
    Payload payload_;
    int created_ = 0;
};

// How often recover had to prove a bitmap that the cut had torn.
size_t rebuilt = 0;

// Recovers the image. Empty, or what is wrong with it or with what recover left.
std::string recover_image(Image& image) {
    const RawSuper raw = raw_super(image);
    if (!raw.checksum_right) return "the superblock's checksum is wrong";
    if (!raw.gate) return "the gate bit is gone";
    ImageDevice device(image);
    const auto first = recover(borrowed(device), OnConflict::Keep);
    if (!first) return "recover: " + first.error().message;
    if (first->records > 0 && !raw.needs_replay)
        return fmt::format("{} live records, but the needs-replay bit is not set", first->records);
    rebuilt += first->rebuilt.size();
    if (!first->failed.empty()) return "recover: " + first->failed.front();
    if (!first->log_emptied) return "recover left something in the log: " + first->end_detail;
    if (!first->skipped.empty()) return "recover skipped " + first->skipped.front();
    const RawSuper after = raw_super(image);
    if (after.needs_replay || !after.gate || !after.checksum_right)
        return "after recover the superblock is not as it should be";
    const uint64_t changes = device.changes();
    const auto second = recover(borrowed(device), OnConflict::Keep);
    if (!second) return "second recover: " + second.error().message;
    if (second->records != 0 || device.changes() != changes)
        return "a second recover changed something";
    return {};
}

std::string repair(Image& image) {
    const Fsck fsck = e2fsck(image, {"-fy"}, &image);
    if (fsck.status > 1) return "e2fsck can't repair it: " + fsck.output;
    auto rest = fsck_complaints(image);
    return rest.empty() ? rest : "after a repair: " + rest + "\nwhich was: " + fsck.output;
}

// e2fsck on what recover left: nothing to say, or, while metadata was changing, something that it
// can repair without touching the data.
std::string judge_by_e2fsck(const Image& recovered, const Scenario::Expected& expected) {
    if (expected.in_flight == nullptr || !expected.in_flight->metadata)
        return fsck_complaints(recovered);
    Image repaired = recovered;
    if (auto wrong = repair(repaired); !wrong.empty()) return wrong;
    if (auto wrong = compare_files(repaired, expected); !wrong.empty())
        return "after the repair by e2fsck: " + wrong;
    return {};
}

// Recovers the image and judges what is there.
std::string judge(Image& image, const Scenario::Expected& expected, bool with_e2fsck) {
    auto wrong = recover_image(image);
    if (wrong.empty()) wrong = compare_files(image, expected);
    if (wrong.empty() && with_e2fsck) wrong = judge_by_e2fsck(image, expected);
    return wrong;
}

// A cut at every point of recover on this image, then recover again.
std::string judge_cuts_in_recover(const Image& image, const Scenario::Expected& expected,
                                  std::mt19937_64& random) {
    CrashDevice device(image);
    if (const auto done = recover(borrowed(device), OnConflict::Keep); !done)
        return "recover: " + done.error().message;
    Image cut;
    for (size_t event = 0; event <= device.events(); ++event) {
        for (const uint64_t seed : {uint64_t{0}, uint64_t{1}, random()}) {
            device.image_after(event, seed, cut);
            if (auto wrong = judge(cut, expected, false); !wrong.empty()) {
                return fmt::format("recover cut at its event {} ({}), seed {}: {}", event,
                                   device.describe(event), seed, wrong);
            }
        }
    }
    return {};
}

struct Thoroughness {
    uint64_t random_fates = long_run() ? 6 : 2;
    size_t images_per_e2fsck = long_run() ? 4 : 24;
    size_t images_per_recover_cut = long_run() ? 16 : 64;
};

void judge_every_cut(Scenario& scenario, uint64_t seed) {
    const Thoroughness thorough;
    rebuilt = 0;
    std::mt19937_64 random(seed);
    size_t images = 0;
    int failures = 0;
    Image image;
    for (size_t event = 0; event <= scenario.device().events(); ++event) {
        const Scenario::Expected& expected = scenario.expected_at(event);
        std::vector<uint64_t> fates{0, 1};
        for (uint64_t i = 0; i < thorough.random_fates; ++i) fates.push_back(random());
        for (const uint64_t fate : fates) {
            scenario.device().image_after(event, fate, image);
            ++images;
            std::string wrong;
            if (images % thorough.images_per_recover_cut == 0 && raw_super(image).needs_replay)
                wrong = judge_cuts_in_recover(image, expected, random);
            if (wrong.empty())
                wrong = judge(image, expected, images % thorough.images_per_e2fsck == 0);
            if (wrong.empty()) continue;
            ADD_FAILURE() << "seed " << seed << ", event " << event << " of "
                          << scenario.device().events() << " (" << scenario.device().describe(event)
                          << ") during ["
                          << (expected.in_flight == nullptr ? "end" : expected.in_flight->what)
                          << "], fate " << fate << ": " << wrong;
            if (++failures == 3) return;
        }
    }
    ::testing::Test::RecordProperty("images", static_cast<int>(images));
    fmt::print("{} events, {} images, {} bitmaps rebuilt\n", scenario.device().events(), images,
               rebuilt);
}

struct Case {
    const SmallLayout& layout;
    uint64_t seed;
    Session::Payload payload;
};

void PrintTo(const Case& it, std::ostream* out) {
    *out << fmt::format("{}_{}_seed{}", it.layout.name,
                        it.payload == Session::Payload::Random ? "random" : "headers", it.seed);
}

std::vector<Case> cases() {
    std::vector<Case> cases;
    const uint64_t seeds = long_run() ? 12 : 2;
    for (const SmallLayout* layout : {&kBlocks1k, &kBlocks4k}) {
        for (uint64_t seed = 1; seed <= seeds; ++seed) {
            cases.push_back({*layout, seed, Session::Payload::Random});
            cases.push_back({*layout, seed + 1000, Session::Payload::Headers});
        }
    }
    for (const SmallLayout* layout : {&kBigalloc, &kInlineBigalloc, &kInlineData}) {
        if (layout == &kInlineData && !long_run()) continue;
        for (uint64_t seed = 1; seed <= seeds / 2; ++seed)
            cases.push_back({*layout, seed + 100, Session::Payload::Random});
    }
    return cases;
}

class PowerCut : public ::testing::TestWithParam<Case> {};

TEST_P(PowerCut, EveryMomentOfASession) {
    const Case& it = GetParam();
    std::mt19937_64 random(it.seed);
    Session session(prepare_files(it.layout, random), it.seed, it.payload);
    session.run(60);
    judge_every_cut(session.scenario, it.seed);
}

INSTANTIATE_TEST_SUITE_P(Sessions, PowerCut, ::testing::ValuesIn(cases()),
                         ::testing::PrintToStringParamName());

// A file whose tree has two levels (above 4 × 84 extents with 1 KiB blocks, 4 × 340 with 4 KiB): a
// node that changes, because a hole is mapped or the file grows, moves to a new block with all that
// lead to it, so no cut tears mappings that were there before.
class DeepTree : public ::testing::TestWithParam<SmallLayout> {};

TEST_P(DeepTree, NoCutTearsIt) {
    const uint64_t block = GetParam().block;
    const uint64_t extents = block == 1024 ? 400 : 1450;
    std::mt19937_64 random(7);
    Prepared it = prepare_files(GetParam(), random, extents * 2 * block);
    {
        ImageDevice device(it.image);
        const auto opened = open_for_writing(borrowed(device));
        ASSERT_TRUE(opened) << opened.error().message;
        it.files.push_back(make_file(*opened->volume, "/deep", (2 * extents - 1) * block,
                                     every_other_block(extents), random));
        const ext2_ino_t inode = it.files.back().inode;
        const auto file = read_file(*opened->volume, inode);
        ASSERT_TRUE(file) << file.error().message;
        const auto nodes = tree_blocks(*opened->volume, inode, file->inode);
        ASSERT_TRUE(nodes) << nodes.error().message;
        ASSERT_GT(nodes->size(), 5u);  // more than the inode has room for
    }
    const size_t deep = it.files.size() - 1;
    Scenario scenario(std::move(it.image), std::move(it.files));
    // Mapped blocks have live records, holes are filled, the file grows.
    scenario.write(deep, 0, random_bytes(block, random));
    scenario.write(kAtomic, 0, random_bytes(kUnit, random));
    scenario.write(deep, block, random_bytes(block, random));
    scenario.write(deep, 101 * block, random_bytes(block, random));
    scenario.write(deep, 2 * extents * block, random_bytes(block, random));
    scenario.close();

    size_t images = 0;
    Image image;
    for (size_t event = 0; event < scenario.device().events(); ++event) {
        for (uint64_t fate = 0; fate < 6; ++fate, ++images) {
            scenario.device().image_after(event, fate, image);
            ASSERT_EQ(recover_image(image), "") << "event " << event << ", fate " << fate;
            ASSERT_EQ(compare_files(image, scenario.expected_at(event)), "")
                << "event " << event << ", fate " << fate;
        }
    }
    EXPECT_GT(images, 200u);
}

INSTANTIATE_TEST_SUITE_P(BlockSizes, DeepTree, ::testing::Values(kBlocks1k, kBlocks4k),
                         ::testing::PrintToStringParamName());

// Preallocation in a directory that grows: out of its inode where it lies there, then by a block,
// which with bigalloc its cluster has already. Free blocks hold garbage, so what is not zeroed
// shows.
class Preallocation : public ::testing::TestWithParam<SmallLayout> {};

TEST_P(Preallocation, EveryMoment) {
    std::mt19937_64 random(1);
    Prepared it = prepare_files(GetParam(), random);
    it.image = debugfs(it.image, {"mkdir made"});
    Scenario scenario(std::move(it.image), std::move(it.files));
    const uint64_t block = GetParam().block;
    size_t length = 10;  // has room in the inode, the longer ones don't
    for (const uint64_t unit : {block, 2 * block, 8 * block, kUnit, 4 * kUnit}) {
        const size_t file =
            scenario.create(fmt::format("/made/{:0>{}}", unit, length), 3 * unit - 100, unit);
        scenario.write(file, unit, random_bytes(block, random));
        length = 250;
    }
    scenario.close();
    judge_every_cut(scenario, 1);
}

INSTANTIATE_TEST_SUITE_P(Layouts, Preallocation,
                         ::testing::Values(kBlocks1k, kBigalloc, kInlineData, kInlineBigalloc),
                         ::testing::PrintToStringParamName());

}  // namespace
}  // namespace atomic4::test
