// What the sessions of power_cut_test.cc have found, made small.
#include <gtest/gtest.h>

#include "support/bytes.h"
#include "support/crash_scenario.h"

namespace atomic4::test {
namespace {

struct Prepared {
    Image image;
    FileModel file;
};

Prepared one_file(uint64_t blocks, const std::vector<Piece>& pieces) {
    std::mt19937_64 random(1);
    Prepared prepared;
    prepared.image = make_atomic4(4 << 20, {"-b", "1024", "-N", "64"});
    ImageDevice device(prepared.image);
    const auto opened = open_for_writing(borrowed(device));
    if (!opened) throw std::runtime_error(opened.error().message);
    prepared.file = make_file(*opened->volume, "/file", blocks * 1024, pieces, random);
    return prepared;
}

// The range ends inside an extent that isn't the leaf's first: after a goto, libext2fs comes by the
// leaf's extents again, and the walk took the same one for an overlap.
TEST(Found, RangeEndsInsideALaterExtentOfALeaf) {
    Prepared it = one_file(40, {{0, 2}, {4, 2}, {8, 2}, {12, 2}, {16, 8}, {30, 8}});
    ImageDevice device(it.image);
    const auto opened = open_for_reading(borrowed(device));
    ASSERT_TRUE(opened) << opened.error().message;
    const auto file = read_file(*opened->volume, it.file.inode);
    ASSERT_TRUE(file) << file.error().message;
    for (uint64_t first = 0; first < 40; ++first) {
        for (uint64_t end = first + 1; end <= 40; ++end) {
            const auto mappings = map_range(*opened->volume, file->number, file->inode, Lblk(first),
                                            Blocks(end - first));
            ASSERT_TRUE(mappings) << first << " to " << end << ": " << mappings.error().message;
            Lblk at(first);
            for (const Mapping& mapping : *mappings) {
                EXPECT_EQ(mapping.lblk, at);
                at = mapping.end();
            }
            EXPECT_EQ(at, Lblk(end));
        }
    }
}

// A plain write that covers its first and last block in part, into blocks that wait unwritten
// beyond EOF: the rest of those blocks showed what the disk had held before.
TEST(Found, GrowthIntoPreallocationShowsNothingOld) {
    for (const bool hole : {false, true}) {
        SCOPED_TRACE(hole ? "hole" : "preallocated");
        Prepared it =
            hole ? one_file(4, {{0, 4}}) : one_file(4, {{0, 4}, {4, 12, MapState::Unwritten}});
        std::mt19937_64 random(2);
        Scenario scenario(std::move(it.image), {it.file});
        scenario.plain(0, 6 * 1024 + 100, random_bytes(3000, random));
        scenario.close();
        Image image = scenario.device().contents();
        EXPECT_EQ(compare_files(image, scenario.expected_at(scenario.device().events())), "");
    }
}

// Mapping a hole in a full leaf splits it, in a leaf with room moves its later extents: a cut, or a
// torn write, in the middle took mappings with it that had nothing to do with the new one.
TEST(Found, ChangingALeafLosesNothing) {
    for (const uint64_t extents : {40, 84}) {
        SCOPED_TRACE(extents);
        std::vector<Piece> pieces;
        for (uint64_t i = 0; i < extents; ++i) pieces.push_back({2 * i, 1});
        Prepared it = one_file(2 * extents - 1, pieces);
        std::mt19937_64 random(3);
        Scenario scenario(std::move(it.image), {it.file});
        scenario.write(0, 3 * 1024, random_bytes(1024, random));
        scenario.close();
        Image image;
        for (size_t event = 0; event <= scenario.device().events(); ++event) {
            for (uint64_t fate = 0; fate < 16; ++fate) {
                scenario.device().image_after(event, fate, image);
                ImageDevice device(image);
                const auto done = recover(borrowed(device), OnConflict::Keep);
                ASSERT_TRUE(done) << done.error().message;
                const auto& expected = scenario.expected_at(event);
                EXPECT_EQ(compare_files(image, expected), "")
                    << "event " << event << ", fate " << fate;
                EXPECT_LE(e2fsck(image, {"-fy"}, &image).status, 1);
                EXPECT_EQ(compare_files(image, expected), "")
                    << "after e2fsck: event " << event << ", fate " << fate;
            }
        }
    }
}

// 1 KiB blocks hold four inodes. With three deleted ones beside it, e2fsck called the fourth
// garbage and cleared it.
TEST(Found, DeletedInodesDontTakeTheirNeighbourWithThem) {
    for (int before = 0; before < 4; ++before) {
        Image image = make_ext4(4 << 20, {"-b", "1024", "-N", "64"});
        std::mt19937_64 random(4);
        ImageDevice device(image);
        VolumeOptions options;
        options.purpose = OpenFor::Write;
        options.require_atomic4 = false;
        const auto volume = Volume::open(borrowed(device), options);
        ASSERT_TRUE(volume) << volume.error().message;
        for (int i = 0; i <= before; ++i)
            make_file(**volume, fmt::format("/file{}", i), 1024, {{0, 1}}, random);
        ASSERT_TRUE(enable(**volume, {}));
        ASSERT_TRUE(disable(**volume, false));
        EXPECT_EQ(fsck_complaints(image), "");
    }
}

}  // namespace
}  // namespace atomic4::test
