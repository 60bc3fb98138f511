// A file unit by unit: which are aligned on the device, and which aren't and how.
//
// A unit is aligned if it is wholly mapped, in one contiguous run that starts at a multiple of the
// unit, absolute on the device (FORMAT.md). What lies beyond the end of the file in the last unit
// counts as well. The result grows with the file's extents, not with its units.
#pragma once

#include <array>
#include <string_view>
#include <vector>

#include "ext4/extent_map.h"

namespace atomic4 {

enum class UnitState {
    Hole,        // nothing of it is mapped
    Unwritten,   // aligned, but (in part) unwritten
    Written,     // aligned
    Misaligned,  // one run, but it starts at no multiple of the unit
    Broken,      // not one run: in pieces, or part hole
};
inline constexpr size_t kUnitStates = 5;
const char* to_text(UnitState state);  // "hole", "aligned, unwritten", …
constexpr bool is_aligned_state(UnitState state) {
    return state == UnitState::Unwritten || state == UnitState::Written;
}

// count units from first on, all in one state.
struct UnitStretch {
    uint64_t first = 0;
    uint64_t count = 0;
    UnitState state = UnitState::Hole;
    Blocks shift;  // Misaligned: by how many blocks beyond a multiple of the unit
    bool operator==(const UnitStretch&) const = default;
};

struct UnitMap {
    Bytes unit;
    Bytes block_size;
    Bytes file_size;
    uint64_t units = 0;
    std::vector<UnitStretch> stretches;  // in order, without gaps
    std::vector<Mapping> runs;           // what they were made of

    std::array<uint64_t, kUnitStates> counts() const;  // by state
    uint64_t mapped_runs() const;                      // those that aren't holes
    Blocks unit_blocks() const { return Blocks(unit.value() / block_size.value()); }
};

// mappings: all of [0, file_size rounded up to units), in order, as map_range gives them.
UnitMap make_unit_map(std::vector<Mapping> mappings, Bytes file_size, Bytes unit, Bytes block_size);

// The map at a given resolution: cell i stands for per_cell units from i·per_cell on (the last for
// fewer).
struct UnitCell {
    UnitState state = UnitState::Hole;  // the worst one: Broken, Misaligned, Unwritten, Written
    bool part_hole = false;             // some of its units are holes, not all
    Blocks shift;                       // of the first misaligned unit
};
struct UnitCells {
    uint64_t per_cell = 1;
    std::vector<UnitCell> cells;
};
// As many cells as there are units, or at most limit, of a power of two units each.
UnitCells make_cells(const UnitMap& map, uint64_t limit);

}  // namespace atomic4
