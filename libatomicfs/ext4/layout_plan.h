// Which units of a file have to move for it to keep the invariant (layout.h), and what its mapping
// is then. Pure: nothing is read or changed.
//
// A unit that is one contiguous run at a multiple of the unit stays where it is, whatever its
// blocks' states are: before EOF they become written (what was unwritten has to be zeroed), beyond
// it unwritten. A unit that is one hole stays one. Every other unit moves as a whole: it gets new
// blocks, into which what is written before EOF is copied, and zeros for the rest.
#pragma once

#include <span>
#include <vector>

#include "ext4/extent_map.h"

namespace atomic4 {

// Whole units that share their fate; holes are between stretches.
struct Stretch {
    Lblk lblk;
    Blocks length;
    bool moves = false;
    Pblk pblk;  // where it stays, or has been placed
    Lblk end() const { return lblk + length; }
    bool operator==(const Stretch&) const = default;
};

// old: a file's mapping in ascending order, holes included or not. unit: blocks, a power of two.
std::vector<Stretch> plan_layout(std::span<const Mapping> old, Blocks unit);

// Hands out new_runs, each a multiple of the unit and all together as long as what moves, in order.
// What moves may fall into several stretches then.
std::vector<Stretch> placed(std::span<const Stretch> plan, std::span<const PblkRun> new_runs);

// The mapping of placed stretches; eof: the first block beyond the file's end.
std::vector<Mapping> mapping_of(std::span<const Stretch> stretches, Lblk eof);

// A mapping without its holes, neighbours that continue each other joined: two that are equal so
// are the same.
std::vector<Mapping> joined(std::span<const Mapping> mappings);

}  // namespace atomic4
