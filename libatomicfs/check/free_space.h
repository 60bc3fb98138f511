// How a volume's free space lies: what can be had in aligned runs, and in how long pieces it is.
// The second is what e2freefrag(8) shows; the first is what atomic units need, and much less of it
// may be there.
//
// An aligned run of a unit U is U free bytes that start at a multiple of U, absolute from the start
// of the device: what AlignedAllocator (ext4/aligned_allocator.h) can hand out, as many of them as
// it could if nothing but such runs were asked for. Root's reserved blocks count as free.
//
// Groups whose bitmap or descriptor is damaged are left out, as the allocator leaves them out.
//
// One pass over the bitmaps in order, through the volume's own access to them (uninitialised ones
// are computed, not read); memory doesn't grow with the volume. Reads only.
#pragma once

#include <map>
#include <vector>

#include "ext4/volume.h"

namespace atomic4 {

struct FreeSpace {
    // From the block to 4 MiB, in powers of two.
    struct Unit {
        Bytes unit;
        uint64_t runs = 0;  // aligned, free, of this size
    };
    // Pieces of free space as long as they go, of [length, 2·length).
    struct Piece {
        Bytes length;
        uint64_t count = 0;
        Blocks blocks;  // all together
    };

    Bytes block_size;
    Blocks blocks;                      // of the volume
    Blocks free;                        // by the bitmaps
    std::vector<Unit> units;            // each size, also where there is none
    std::vector<Piece> pieces;          // each size up to the longest that there is
    PblkRun longest;                    // piece, the first of such; length 0: nothing is free
    PblkRun largest_aligned;            // run of a power of two aligned to itself, of any size
    std::map<uint32_t, Error> damaged;  // the groups left out, and why

    uint64_t piece_count() const;
    // Of the free space, what aligned runs of this unit can use, in per cent.
    double usable_percent(const Unit& unit) const;
    // Of the free space, in per cent.
    double share_percent(Blocks part) const;
};

// Opened for anything (OpenFor::Inspect will do). An I/O error is an error.
Result<FreeSpace> measure_free_space(Volume& volume);

}  // namespace atomic4
