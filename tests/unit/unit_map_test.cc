// A file's units by their mappings, against brute force block by block; the picture's words; and
// the SVG writer's escaping.
#include "check/unit_map.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "base/svg.h"
#include "check/unit_map_picture.h"

namespace atomic4::test {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr Bytes kBlock{4096};

Mapping run(uint64_t lblk, uint64_t length, uint64_t pblk, MapState state = MapState::Written) {
    return {Lblk(lblk), Blocks(length), Pblk(pblk), state};
}
Mapping hole(uint64_t lblk, uint64_t length) {
    return run(lblk, length, 0, MapState::Hole);
}

UnitMap map_of(std::vector<Mapping> runs, uint64_t unit_blocks) {
    const uint64_t blocks = runs.empty() ? 0 : runs.back().end().value();
    return make_unit_map(std::move(runs), kBlock * blocks, kBlock * unit_blocks, kBlock);
}

std::vector<UnitState> states_of(const UnitMap& map) {
    std::vector<UnitState> states;
    for (const UnitStretch& stretch : map.stretches) {
        EXPECT_EQ(stretch.first, states.size());
        states.insert(states.end(), stretch.count, stretch.state);
    }
    return states;
}

// What FORMAT.md says, a unit at a time.
UnitState state_by_hand(const std::vector<Mapping>& blocks, uint64_t first, uint64_t count) {
    const auto at = [&](uint64_t i) { return blocks[first + i]; };
    uint64_t holes = 0;
    bool unwritten = false;
    bool contiguous = true;
    for (uint64_t i = 0; i < count; ++i) {
        holes += at(i).state == MapState::Hole;
        unwritten |= at(i).state == MapState::Unwritten;
        contiguous &= at(i).pblk.value() == at(0).pblk.value() + i;
    }
    if (holes == count) return UnitState::Hole;
    if (holes != 0 || !contiguous) return UnitState::Broken;
    if (at(0).pblk.value() % count != 0) return UnitState::Misaligned;
    return unwritten ? UnitState::Unwritten : UnitState::Written;
}

TEST(UnitMap, AgainstBruteForce) {
    std::mt19937_64 random(5);
    for (int round = 0; round < 500; ++round) {
        SCOPED_TRACE(round);
        const uint64_t unit = uint64_t{1} << random() % 5;
        const uint64_t size = (random() % 20 + 1) * unit;
        std::vector<Mapping> runs;
        std::vector<Mapping> blocks;
        while (blocks.size() < size) {
            const uint64_t left = size - blocks.size();
            const uint64_t length = std::min(left, random() % (3 * unit) + 1);
            // Often aligned, often where the last run ends.
            uint64_t pblk = random() % 1000 + 1000;
            if (random() % 2 == 0) pblk = round_down(pblk, unit) + blocks.size() % unit;
            if (random() % 4 == 0 && !runs.empty())
                pblk = runs.back().pblk.value() + runs.back().length.value();
            const MapState state = static_cast<MapState>(random() % 3);
            if (state == MapState::Hole) pblk = 0;
            runs.push_back(run(blocks.size(), length, pblk, state));
            for (uint64_t i = 0; i < length; ++i)
                blocks.push_back(
                    run(blocks.size(), 1, state == MapState::Hole ? 0 : pblk + i, state));
        }
        const UnitMap map = map_of(runs, unit);
        EXPECT_EQ(map.units, size / unit);
        const auto states = states_of(map);
        ASSERT_EQ(states.size(), map.units);
        for (uint64_t i = 0; i < map.units; ++i)
            EXPECT_EQ(states[i], state_by_hand(blocks, i * unit, unit)) << "unit " << i;
        for (const UnitStretch& stretch : map.stretches) {
            if (stretch.state == UnitState::Misaligned) {
                EXPECT_EQ(stretch.shift.value(), blocks[stretch.first * unit].pblk.value() % unit);
            }
        }
    }
}

TEST(UnitMap, WhatLiesBeyondTheEndIsUnwrittenAsItShouldBe) {
    const std::vector<Mapping> runs{run(0, 5, 64), run(5, 3, 69, MapState::Unwritten)};
    EXPECT_EQ(states_of(make_unit_map(runs, kBlock * 4 + Bytes(1), kBlock * 4, kBlock)),
              (std::vector{UnitState::Written, UnitState::Written}));
    EXPECT_EQ(states_of(make_unit_map(runs, kBlock * 5 + Bytes(1), kBlock * 4, kBlock)),
              (std::vector{UnitState::Written, UnitState::Unwritten}));
}

TEST(UnitMap, ManyAlignedUnitsAreOneStretch) {
    const UnitMap map = map_of({run(0, 1 << 20, 1 << 12), hole(1 << 20, 1 << 20)}, 4);
    ASSERT_EQ(map.stretches.size(), 2u);
    EXPECT_EQ(map.stretches[0].count, 1u << 18);
    EXPECT_EQ(map.counts()[static_cast<size_t>(UnitState::Hole)], 1u << 18);
    EXPECT_EQ(map.mapped_runs(), 1u);
}

TEST(UnitMap, CellsShowTheWorst) {
    // 16 units of 4 blocks: 7 aligned, one misaligned, 8 holes but the last.
    const UnitMap map =
        map_of({run(0, 28, 400), run(28, 4, 1001), hole(32, 28), run(60, 4, 800)}, 4);
    UnitCells cells = make_cells(map, 16);
    EXPECT_EQ(cells.per_cell, 1u);
    EXPECT_EQ(cells.cells[7].state, UnitState::Misaligned);
    EXPECT_EQ(cells.cells[7].shift, Blocks(1));
    cells = make_cells(map, 5);
    EXPECT_EQ(cells.per_cell, 4u);
    ASSERT_EQ(cells.cells.size(), 4u);
    EXPECT_EQ(cells.cells[0].state, UnitState::Written);
    EXPECT_EQ(cells.cells[1].state, UnitState::Misaligned);
    EXPECT_FALSE(cells.cells[1].part_hole);
    EXPECT_EQ(cells.cells[2].state, UnitState::Hole);
    EXPECT_FALSE(cells.cells[2].part_hole);
    EXPECT_EQ(cells.cells[3].state, UnitState::Written);
    EXPECT_TRUE(cells.cells[3].part_hole);
}

TEST(UnitMap, TheTerminalShowsEachState) {
    const UnitMap map = map_of({run(0, 4, 400), run(4, 4, 404, MapState::Unwritten),
                                run(8, 4, 1002), run(12, 2, 2000), run(14, 2, 3000), hole(16, 4)},
                               4);
    EXPECT_EQ(unit_map_text(map),
              "  |#-!%.|\n"
              "  one mark is 1 unit: # aligned, - unwritten, ! misaligned, . hole, % in pieces\n"
              "  2 of 5 units aligned, 1 misaligned, 1 in pieces, 1 hole (1 of the aligned "
              "unwritten)\n");
    EXPECT_EQ(unit_map_text(map_of({}, 4)), "");
    EXPECT_THAT(unit_map_text(map_of({run(0, 4, 400)}, 4)), HasSubstr("all 1 unit aligned\n"));
}

TEST(UnitMap, ThePictureSaysWhatItShows) {
    const UnitMap map =
        map_of({run(0, 4, 400), run(4, 4, 1002), run(8, 2, 2000), run(10, 2, 3000)}, 4);
    const std::string svg = unit_map_svg(map, "/a<b", true);
    for (const char* words :
         {"/a&lt;b", "1 of 3 units aligned, 1 misaligned, 1 in pieces",
          "each square is one unit of 16K", "4 runs", ">+2<", ">file offset<", ">device offset<",
          ">400<", ">1002<", "misaligned (+ blocks off)", "in pieces or part hole"})
        EXPECT_THAT(svg, HasSubstr(words));
    EXPECT_THAT(svg, Not(HasSubstr("hole: not mapped")));
    EXPECT_THAT(svg, Not(HasSubstr("an ordinary file")));
    EXPECT_THAT(unit_map_svg(map, "/a", false), HasSubstr("an ordinary file"));
    EXPECT_THAT(unit_map_svg(map_of({}, 4), "/a", true), HasSubstr("the file is empty"));
    EXPECT_THAT(unit_map_svg(map_of({hole(0, 8)}, 4), "/a", true),
                HasSubstr("nothing of it is mapped"));
}

TEST(UnitMap, ThePictureOfAHugeFileStaysSmall) {
    // 100,000 units in as many runs, one of them misaligned.
    std::vector<Mapping> runs;
    std::mt19937_64 random(3);
    for (uint64_t i = 0; i < 100'000; ++i)
        runs.push_back(run(i * 4, 4, (random() % 1'000'000) * 4 + (i == 77'777 ? 1 : 0)));
    const std::string svg = unit_map_svg(map_of(runs, 4), "/big", true);
    EXPECT_LT(svg.size(), 2u << 20);
    EXPECT_THAT(svg, HasSubstr("99,999 of 100,000 units aligned, 1 misaligned"));
    EXPECT_THAT(svg, HasSubstr("each square is 128 units of 16K, together 2M; it shows the worst"));
    EXPECT_THAT(svg, HasSubstr("not all of them drawn"));
    // Its cell, its run above and below, the line between, and the legend.
    size_t shown = 0;
    for (size_t at = svg.find("#fbbf24"); at != std::string::npos; at = svg.find("#fbbf24", at + 1))
        ++shown;
    EXPECT_GE(shown, 5u);
}

TEST(Svg, WordsAreEscaped) {
    EXPECT_EQ(xml_escaped("a<b>&\"c\"'"), "a&lt;b&gt;&amp;&quot;c&quot;&#39;");
    EXPECT_EQ(xml_escaped("Größe €𝄞"), "Größe €𝄞");
    const std::string bad = "\xef\xbf\xbd";
    EXPECT_EQ(xml_escaped("\xff"), bad);
    EXPECT_EQ(xml_escaped("a\xc3"), "a" + bad);               // cut short
    EXPECT_EQ(xml_escaped("\xc0\x80x"), bad + bad + "x");     // overlong
    EXPECT_EQ(xml_escaped("\xed\xa0\x80"), bad + bad + bad);  // half a surrogate pair
    EXPECT_EQ(xml_escaped("\xf4\x90\x80\x80"), bad + bad + bad + bad);
    EXPECT_EQ(xml_escaped("\xef\xbf\xbf"), bad);  // no character
    EXPECT_EQ(xml_escaped("a\nb\x01\x7f"), "a" + bad + "b" + bad + bad);
    EXPECT_EQ(xml_escaped(std::string_view("\0", 1)), bad);
}

TEST(Svg, Numbers) {
    EXPECT_EQ(grouped_digits(0), "0");
    EXPECT_EQ(grouped_digits(999), "999");
    EXPECT_EQ(grouped_digits(1000), "1,000");
    EXPECT_EQ(grouped_digits(~0ull), "18,446,744,073,709,551,615");
}

}  // namespace
}  // namespace atomic4::test
